"""
What a task hands on to those that it sends: headers. Pure.

Whatever follows one sending has one correlation id, and, where they are traced,
one trace. A time of sending is handed on as the wish to have one.
"""

from __future__ import annotations

from machine.signature import (
    CORRELATION_HEADER,
    JSON,
    SENT_HEADER,
    TRACE_HEADERS,
    Signature,
)

#: Characters of a correlation id that are shown; anybody may set any header.
_MOST_SHOWN = 128
#: Longer waits are no waits but wrong clocks, milliseconds: 30 days.
_MOST_WAIT_MS = 30 * 86_400_000


def correlation_id(signature: Signature) -> str:
    """Return what a task and all that follows have in common; by default its group's or own id."""
    said = signature.header(CORRELATION_HEADER)[:_MOST_SHOWN]
    return said or signature.group_uuid or signature.uuid


def inherit(parent: Signature, child: Signature) -> None:
    """
    Hand on correlation, trace and time of sending, unless the child has its own.

    Args:
        parent: The task that sends; read only.
        child: Its headers are written into.
    """
    own: dict[str, JSON] = child.headers if child.headers is not None else {}
    given = parent.headers or {}
    if CORRELATION_HEADER not in own and (common := correlation_id(parent)):
        own[CORRELATION_HEADER] = common
    if SENT_HEADER in given:
        own.setdefault(SENT_HEADER, given[SENT_HEADER])
    if TRACE_HEADERS[0] not in own:  # together or not at all: a state belongs to its parent
        own |= {name: given[name] for name in TRACE_HEADERS if name in given}
    child.headers = own


def stamp(signature: Signature, now_ns: int) -> None:
    """Write down when a signature is sent; ``now_ns`` is Unix nanoseconds."""
    signature.headers = {**(signature.headers or {}), SENT_HEADER: str(now_ns // 1_000_000)}


def restamp(signature: Signature, now_ns: int) -> None:
    """Do what `stamp` does, where the wish was handed on."""
    if signature.headers and SENT_HEADER in signature.headers:
        signature.headers[SENT_HEADER] = str(now_ns // 1_000_000)


def waited_s(signature: Signature, now_ns: int) -> float | None:
    """
    Return how long a task waited that starts now, its deliberate delay left out.

    Args:
        signature: Its message.
        now_ns: Unix nanoseconds.

    Returns:
        Seconds, ≥ 0; ``None`` where the message does not say, or says nonsense.
    """
    text = signature.header(SENT_HEADER)
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        return None
    ready_ns = max(int(text) * 1_000_000, signature.eta_ns or 0)
    waited_ms = (now_ns - ready_ns) / 1e6
    return max(0.0, waited_ms / 1000) if waited_ms < _MOST_WAIT_MS else None
