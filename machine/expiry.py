"""
When a task is too late to start: the two headers that say so, written and read. Pure.

A caller says a time, or how long the task may wait. The second becomes the first
when the task is queued: for a later link of a chain that is when the one before it
has ended. What a header from the wire says and cannot be read, is not said.
"""

from __future__ import annotations

import logging
import re

from machine.errors import SignatureError, WireError
from machine.outcome import EXPIRED, Failed
from machine.signature import EXPIRES_HEADER, EXPIRES_IN_HEADER, Signature
from machine.wire_text import now_text, ns_from_text, shown

_log = logging.getLogger("machine.worker")
_SECONDS = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?", re.ASCII)


def dated(signature: Signature, now_ns: int) -> None:
    """
    Write down when it is too late, where only how long it may wait is known.

    Args:
        signature: Written into; about to be queued.
        now_ns: Unix nanoseconds; a task that is due later waits from then on.

    Raises:
        SignatureError: That would be after the year 9999.
    """
    headers = signature.headers
    if not headers or EXPIRES_IN_HEADER not in headers:
        return
    wait_ns = _wait_ns(headers.pop(EXPIRES_IN_HEADER))
    if wait_ns is not None:
        headers.setdefault(EXPIRES_HEADER, now_text(max(now_ns, signature.eta_ns or 0) + wait_ns))


def check(signature: Signature) -> None:
    """
    Refuse to send what could never start in time, or does not say when.

    Raises:
        SignatureError: A header is no time or no number, or the time is not after the eta.
    """
    headers = signature.headers or {}
    if EXPIRES_IN_HEADER in headers and _wait_ns(headers[EXPIRES_IN_HEADER]) is None:
        raise SignatureError(
            f"Task {signature.name!r}: header {EXPIRES_IN_HEADER} is "
            f"{shown(headers[EXPIRES_IN_HEADER])}; expected text of seconds, as in '60' or '0.5'."
        )
    if EXPIRES_HEADER not in headers:
        return
    try:
        until_ns = ns_from_text(signature.header(EXPIRES_HEADER))
    except WireError as error:
        raise SignatureError(f"Task {signature.name!r}: header {EXPIRES_HEADER}: {error}") from None
    if signature.eta_ns is not None and until_ns <= signature.eta_ns:
        raise SignatureError(
            f"Task {signature.name!r} expires at {now_text(until_ns)}, and is not to start before "
            f"{now_text(signature.eta_ns)}; it could never run. Give a later expires."
        )


def lateness(signature: Signature, now_ns: int) -> Failed | None:
    """Return how a task ends whose time has passed; ``None`` for one that may start."""
    headers = signature.headers
    if not headers or EXPIRES_HEADER not in headers:
        return None
    try:
        until_ns = ns_from_text(signature.header(EXPIRES_HEADER))
    except WireError as error:
        # Anybody may set any header: one that says nothing must not keep a task from running.
        _log.debug("task %s: header %s is ignored: %s", signature.uuid, EXPIRES_HEADER, error)
        return None
    if now_ns < until_ns:
        return None
    return Failed(f"{EXPIRED}it was to start before {now_text(until_ns)}")


def _wait_ns(text: object) -> int | None:
    match = _SECONDS.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))
