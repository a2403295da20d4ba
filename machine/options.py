"""
What a caller may say about one sending, checked: option values -> fields of a signature.

Pure but for the clock, which a countdown counts from.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta

from machine.errors import SignatureError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def eta_ns(eta: datetime | None, countdown: float | timedelta | None) -> int | None:
    """Return when not to start before, Unix ns; ``None`` where neither says so."""
    if eta is not None and countdown is not None:
        raise SignatureError("Both eta and countdown are given; they say the same, so give one.")
    if eta is not None:
        if eta.utcoffset() is None:
            raise SignatureError(
                f"eta {eta.isoformat()} has no time zone; say which, as in datetime.now(UTC)."
            )
        return (eta - _EPOCH) // timedelta(microseconds=1) * 1000
    if countdown is None:
        return None
    seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else float(countdown)
    if not math.isfinite(seconds):
        raise SignatureError(f"countdown {seconds} is not a number of seconds.")
    return time.time_ns() + round(seconds * 1e9)


def whole(name: str, value: int | None, most: int | None) -> int | None:
    """Return a whole number ≥ 0 and ≤ ``most`` as it is; refuse another."""
    if value is None or (value >= 0 and (most is None or value <= most)):
        return value
    bound = "0 or more" if most is None else f"between 0 and {most}"
    raise SignatureError(f"{name} {value} is out of bounds; give {bound}.")
