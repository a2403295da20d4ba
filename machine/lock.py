"""
Machinery's lock for periodic tasks: one fire for each period among all who share it.

Go's protocol, byte for byte: the value is the moment it lapses, nobody ever releases it. Only
schedulers that share their schedules with Go need it; among ourselves the marks do.
"""

from __future__ import annotations

import threading


class EagerLock:
    """The lock in one process's memory; safe from any number of threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, int] = {}

    def lock(self, key: str, until_ns: int, now_ns: int) -> bool:
        """Take it if it is free or has lapsed; say whether it is ours."""
        with self._guard:
            if until_ns < now_ns or self._held.get(key, 0) >= now_ns:
                return False
            self._held[key] = until_ns
            return True

    def close(self) -> None:
        """Do nothing: there is no connection."""
