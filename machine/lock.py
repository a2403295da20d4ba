"""
Machinery's lock for periodic tasks: one fire for each period among all who share it.

Go's protocol, byte for byte: the value is the moment it lapses, nobody ever releases it. Only
schedulers that share their schedules with Go need it; among ourselves the marks do.
"""

from __future__ import annotations

import threading

from machine.connection import Connections
from machine.ports.periodic import Lock
from machine.wire.limits import PERIODIC_LOCK_PREFIX

#: Go tries once, and three times more, without a pause.
TRIES = 4


def lock_name(program: str, name: str, spec: str) -> str:
    """Return the key of a schedule's lock, in which Go puts nothing between the parts."""
    return f"{PERIODIC_LOCK_PREFIX}{program}{name}{spec}"


def lock_with_retries(lock: Lock, key: str, until_ns: int, now_ns: int) -> bool:
    """Try up to four times; say whether the lock is ours."""
    return any(lock.lock(key, until_ns, now_ns) for _ in range(TRIES))


class RedisLock:
    """
    The lock on a Redis server that Go's schedulers use too.

    Args:
        connections: Where it is; a database in the URL counts, unlike in Go.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def lock(self, key: str, until_ns: int, now_ns: int) -> bool:
        """Take it if it is free, or if by its value it has lapsed; say whether it is ours."""
        if until_ns < now_ns:
            return False
        # The key lapses at the moment itself: one that outlived it would make Go, whose timer goes
        # off right then, find a value that is gone between its two questions, and send nothing.
        value, until_ms = str(until_ns), until_ns // 1_000_000
        if self._execute("SET", key, value, "PXAT", until_ms, "NX"):
            return True
        held_ns = _moment(self._execute("GET", key))
        if not 0 < held_ns < now_ns:
            return False
        # Whoever gets the lapsed value back was first; its key must lapse too, whoever that was.
        swap = [("GETSET", key, value), ("PEXPIREAT", key, until_ms)]
        return _moment(self._connections.execute(swap, retry=False)[0]) < now_ns

    def _execute(self, *command: str | int) -> bytes | None:
        # Not repeated: a SET NX whose answer was lost would find its own value.
        answer: bytes | None = self._connections.execute([command], retry=False)[0]
        return answer

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()


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


def _moment(value: bytes | None) -> int:
    """Return a value's nanoseconds; 0 where there is none, or something else."""
    text = (value or b"").decode(errors="replace")
    return int(text) if text.isdecimal() else 0
