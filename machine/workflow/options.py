"""
The options of one sending, checked: their values -> fields of a signature.

Pure but for the clock: a countdown counts from now.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from machine.errors import SignatureError
from machine.wire.headers import (
    EXPIRES_HEADER,
    EXPIRES_IN_HEADER,
    ON_DUPLICATE_HEADER,
    UNIQUE_HEADER,
    check_on_duplicate,
    check_unique_key,
)
from machine.wire.limits import is_result_id
from machine.wire.signature import JSON
from machine.wire.text import format_time, shorten

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NS = 1_000_000_000
#: Seconds that a task may wait at most: about 30 years.
_LONGEST_WAIT_S = 1_000_000_000


def choose_eta_ns(eta: datetime | None, countdown: float | timedelta | None) -> int | None:
    """Return the time before which not to start, Unix ns; ``None`` where neither is given."""
    if eta is not None and countdown is not None:
        raise SignatureError("Both eta and countdown are given; they say the same, so give one.")
    if eta is not None:
        return _unix_ns("eta", eta)
    if countdown is None:
        return None
    seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else float(countdown)
    if not math.isfinite(seconds):
        raise SignatureError(f"countdown {seconds} is not a number of seconds.")
    return time.time_ns() + round(seconds * 1e9)


def _unix_ns(name: str, when: datetime) -> int:
    if when.utcoffset() is None:
        raise SignatureError(
            f"{name} {when.isoformat()} has no time zone; say which, as in datetime.now(UTC)."
        )
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


def check_whole_number(name: str, value: int | None, most: int | None) -> int | None:
    """Return a whole number ≥ 0 and ≤ ``most`` as it is; refuse another."""
    if value is None or (value >= 0 and (most is None or value <= most)):
        return value
    bound = "0 or more" if most is None else f"between 0 and {most}"
    raise SignatureError(f"{name} {value} is out of bounds; give {bound}.")


def check_task_id(uuid: str | None) -> str | None:
    """Return an id that a state may be kept under as it is; refuse another."""
    if uuid is None or is_result_id(uuid):
        return uuid
    raise SignatureError(
        f"uuid {shorten(uuid)} is not usable; give 1 to 128 characters A-Z a-z 0-9 _ . : {{ }} - "
        "that name no key of another kind."
    )


def make_expiry_headers(expires: datetime | float | timedelta) -> dict[str, JSON]:
    """Return the header for a time, or for seconds that count from when the task is queued."""
    if isinstance(expires, datetime):
        return {EXPIRES_HEADER: format_time(_unix_ns("expires", expires))}
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
    wait_ns = round(seconds * _SECOND_NS) if math.isfinite(seconds) else 0
    if not 0 < wait_ns <= _LONGEST_WAIT_S * _SECOND_NS:
        raise SignatureError(
            f"expires {seconds:g} is out of bounds; give a time with a time zone, or more than 0 "
            f"and at most {_LONGEST_WAIT_S} seconds."
        )
    rest = f".{wait_ns % _SECOND_NS:09d}".rstrip("0") if wait_ns % _SECOND_NS else ""
    return {EXPIRES_IN_HEADER: f"{wait_ns // _SECOND_NS}{rest}"}


def merge_headers(
    had: Mapping[str, JSON] | None,
    added: Mapping[str, JSON] | None,
    *,
    expires: datetime | float | timedelta | None = None,
    unique: str | None = None,
    on_duplicate: str | None = None,
) -> dict[str, JSON] | None:
    """
    Return a signature's headers with these options in them; ``None`` when none is given.

    Args:
        had: What it has.
        added: What the caller adds.
        expires: See `make_expiry_headers`; takes the place of an earlier one.
        unique: See `check_unique_key`; "" = not unique any more.
        on_duplicate: See `check_on_duplicate`.

    Raises:
        SignatureError: One is out of bounds, or there is a policy and no key.
    """
    if added is None and expires is None and unique is None and on_duplicate is None:
        return None
    now: dict[str, Any] = {**(had or {}), **(added or {})}
    if expires is not None:
        now.pop(EXPIRES_HEADER, None)
        now.pop(EXPIRES_IN_HEADER, None)
        now |= make_expiry_headers(expires)
    if unique == "":
        now.pop(UNIQUE_HEADER, None)
        now.pop(ON_DUPLICATE_HEADER, None)
    elif unique is not None:
        now[UNIQUE_HEADER] = check_unique_key(unique)
    if on_duplicate is not None:
        now[ON_DUPLICATE_HEADER] = check_on_duplicate(on_duplicate)
        if UNIQUE_HEADER not in now:
            raise SignatureError(
                f"on_duplicate={on_duplicate!r} without a key; give unique='…' with it."
            )
    return now
