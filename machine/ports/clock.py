"""
The time, as something that can be passed in.

Loops and adapters take a Clock so that tests decide what time it is. Redis's
own clock is another one: scripts ask the server (see ``redis/lua``).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock and monotonic time."""

    def now_ns(self) -> int:
        """Return Unix nanoseconds."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never steps."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        """Return Unix nanoseconds."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never steps."""
        return time.monotonic()
