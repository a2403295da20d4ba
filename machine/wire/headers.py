"""
The headers of a signature that are ours, and how each is written and read.

They hold the number of the attempt, the time a task expires, the key that makes
it unique, and its correlation id, trace and time of sending. A peer may write
anything into them: a worker ignores what it cannot read, because a bad header
must not keep a task from running.
"""

from __future__ import annotations

import logging
import re
from typing import Literal, NamedTuple, get_args

from machine.errors import SignatureError, WireError
from machine.wire.signature import JSON, Signature
from machine.wire.states import EXPIRED
from machine.wire.text import format_time, parse_time, shorten

#: Header with the number of the next run as text, from "2" on; absent for the first one.
ATTEMPT_HEADER = "x-attempt"
#: Header for the time after a worker died: "fail", or absent to run the task again.
ON_CRASH_HEADER = "x-on-crash"
#: Header with the time from which on a task is not started: RFC 3339, up to nanoseconds.
EXPIRES_HEADER = "x-expires-at"
#: Header with the seconds that a task may wait; replaced by the one above when it is queued.
EXPIRES_IN_HEADER = "x-expires-in"
#: Header with the key that one task at a time may have, as text.
UNIQUE_HEADER = "x-unique"
#: Header that says what happens when another has the key: "join" (or absent), "refuse", "replace".
ON_DUPLICATE_HEADER = "x-on-duplicate"
#: Header that a task and all that it sends have in common; absent = the first task's id.
CORRELATION_HEADER = "x-correlation-id"
#: Header with the time of sending, Unix milliseconds as text; written only if waits are measured.
SENT_HEADER = "x-sent-at"
#: Headers of a trace, as W3C has them.
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
#: The headers that are ours.
OWN_HEADERS = frozenset(
    {
        ATTEMPT_HEADER,
        ON_CRASH_HEADER,
        EXPIRES_HEADER,
        EXPIRES_IN_HEADER,
        UNIQUE_HEADER,
        ON_DUPLICATE_HEADER,
        CORRELATION_HEADER,
        SENT_HEADER,
        *TRACE_HEADERS,
    }
)


def attempt_of(signature: Signature) -> int:
    """Return which run of the task this is, from 1; Go's retries are not counted."""
    text = signature.headers.get(ATTEMPT_HEADER) if signature.headers else None
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 10:
        return max(1, int(text))
    return 1


#: What sending a unique task does when another one has its key.
OnDuplicate = Literal["join", "refuse", "replace"]
ON_DUPLICATE = get_args(OnDuplicate)
#: Characters of a key.
LONGEST_KEY = 256


def check_unique_key(key: object) -> str:
    """Return the key unchanged, or raise `SignatureError` if it cannot be used."""
    if isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable():
        return key
    kind = shorten(key) if isinstance(key, str) else f"a {type(key).__name__}"
    raise SignatureError(f"unique is {kind}; give 1 to {LONGEST_KEY} printable characters.")


def check_on_duplicate(on_duplicate: object) -> str:
    """Return the option unchanged, or raise `SignatureError` if it is none of the three."""
    if isinstance(on_duplicate, str) and on_duplicate in ON_DUPLICATE:
        return on_duplicate
    raise SignatureError(f"on_duplicate is {on_duplicate!r}; give 'join', 'refuse' or 'replace'.")


class Unique(NamedTuple):
    """The key that one task at a time may have, and what happens if another task has it."""

    key: str
    on_duplicate: str


def unique_of(signature: Signature) -> Unique | None:
    """
    Return the key of a signature and its ``on_duplicate``; ``None`` if it is not unique.

    Raises:
        SignatureError: One of them cannot be used.
    """
    headers = signature.headers
    if not headers or UNIQUE_HEADER not in headers:
        return None
    try:
        key = check_unique_key(headers[UNIQUE_HEADER])
        return Unique(key, check_on_duplicate(headers.get(ON_DUPLICATE_HEADER, "join")))
    except SignatureError as error:
        raise SignatureError(f"Task {signature.name!r}: {error}") from None


def refuse_unique(signature: Signature) -> None:
    """
    Refuse a unique task in a workflow or a timetable.

    Only the script that enqueues a task sent by itself looks at keys.

    Raises:
        SignatureError: It is unique.
    """
    if signature.headers and UNIQUE_HEADER in signature.headers:
        raise SignatureError(
            f"Task {signature.name!r} is unique, and only a task that is sent by itself can be: "
            "not one in a chain, a group or a chord, a callback, or one that is periodic. Say "
            ".options(unique='') for this sending, or send it by itself."
        )


_log = logging.getLogger("machine.worker")
_SECONDS = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?", re.ASCII)


def set_expiry(signature: Signature, now_ns: int) -> None:
    """
    Replace the seconds that a signature may wait by the time when they end.

    Args:
        signature: About to be queued; its headers are changed.
        now_ns: Unix nanoseconds. The seconds of a task with an eta count from the eta.

    Raises:
        SignatureError: That would be after the year 9999.
    """
    headers = signature.headers
    if not headers or EXPIRES_IN_HEADER not in headers:
        return
    wait_ns = _wait_ns(headers.pop(EXPIRES_IN_HEADER))
    if wait_ns is not None:
        headers.setdefault(
            EXPIRES_HEADER, format_time(max(now_ns, signature.eta_ns or 0) + wait_ns)
        )


def check_expiry(signature: Signature) -> None:
    """
    Check the headers of expiry before a signature is sent.

    Raises:
        SignatureError: One cannot be read, or the task expires before its eta.
    """
    headers = signature.headers or {}
    if EXPIRES_IN_HEADER in headers and _wait_ns(headers[EXPIRES_IN_HEADER]) is None:
        raise SignatureError(
            f"Task {signature.name!r}: header {EXPIRES_IN_HEADER} is "
            f"{shorten(headers[EXPIRES_IN_HEADER])}; expected text of seconds, as in '60' or '0.5'."
        )
    if EXPIRES_HEADER not in headers:
        return
    try:
        until_ns = parse_time(signature.header(EXPIRES_HEADER))
    except WireError as error:
        raise SignatureError(f"Task {signature.name!r}: header {EXPIRES_HEADER}: {error}") from None
    if signature.eta_ns is not None and until_ns <= signature.eta_ns:
        raise SignatureError(
            f"Task {signature.name!r} expires at {format_time(until_ns)}, and is not to start "
            f"before {format_time(signature.eta_ns)}; it could never run. Give a later expires."
        )


def describe_lateness(signature: Signature, now_ns: int) -> str:
    """Return the error of a task that has expired, or "" if it may start."""
    headers = signature.headers
    if not headers or EXPIRES_HEADER not in headers:
        return ""
    try:
        until_ns = parse_time(signature.header(EXPIRES_HEADER))
    except WireError as error:
        # Anybody may set any header, and a bad one must not keep a task from running.
        _log.debug("task %s: header %s is ignored: %s", signature.uuid, EXPIRES_HEADER, error)
        return ""
    if now_ns < until_ns:
        return ""
    return f"{EXPIRED}it was to start before {format_time(until_ns)}"


def _wait_ns(text: object) -> int | None:
    match = _SECONDS.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


#: Characters kept of a correlation id: it goes into every log line, and anybody may set it.
_MOST_SHOWN = 128
#: Milliseconds, 30 days. A longer wait means that one of the two clocks is wrong.
_MOST_WAIT_MS = 30 * 86_400_000


def correlation_id_of(signature: Signature) -> str:
    """Return the correlation id; without a header it is the group's id, else the task's own."""
    given = signature.header(CORRELATION_HEADER)[:_MOST_SHOWN]
    return given or signature.group_uuid or signature.uuid


def inherit_headers(parent: Signature, child: Signature) -> None:
    """
    Copy correlation, trace and time of sending to a child that has none.

    Args:
        parent: The task that sends; not changed.
        child: What it sends; its headers are changed.
    """
    own: dict[str, JSON] = child.headers if child.headers is not None else {}
    given = parent.headers or {}
    if CORRELATION_HEADER not in own and (common := correlation_id_of(parent)):
        own[CORRELATION_HEADER] = common
    if SENT_HEADER in given:
        own.setdefault(SENT_HEADER, given[SENT_HEADER])
    if TRACE_HEADERS[0] not in own:  # all three or none: a tracestate belongs to its traceparent
        own |= {name: given[name] for name in TRACE_HEADERS if name in given}
    child.headers = own


def stamp_sent(signature: Signature, now_ns: int) -> None:
    """Set the time of sending; ``now_ns`` is Unix nanoseconds."""
    signature.headers = {**(signature.headers or {}), SENT_HEADER: str(now_ns // 1_000_000)}


def restamp_sent(signature: Signature, now_ns: int) -> None:
    """Set the time of sending again if there is one: the parent's waits are measured."""
    if signature.headers and SENT_HEADER in signature.headers:
        signature.headers[SENT_HEADER] = str(now_ns // 1_000_000)


def measure_wait_s(signature: Signature, now_ns: int) -> float | None:
    """
    Return how long a task that starts now has waited since it was due.

    Args:
        signature: Its message.
        now_ns: Unix nanoseconds.

    Returns:
        Seconds, ≥ 0; ``None`` if the time of sending is absent or cannot be right.
    """
    text = signature.header(SENT_HEADER)
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        return None
    ready_ns = max(int(text) * 1_000_000, signature.eta_ns or 0)
    waited_ms = (now_ns - ready_ns) / 1e6
    return max(0.0, waited_ms / 1000) if waited_ms < _MOST_WAIT_MS else None
