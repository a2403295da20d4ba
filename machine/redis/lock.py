"""
Machinery's lock for periodic tasks: one fire for each period among all who share it.

Go's protocol, byte for byte: the value is the moment it lapses, nobody ever releases it. Only
schedulers that share their schedules with Go need it; among ourselves the marks do.
"""

from __future__ import annotations

from machine.redis.connections import Connections


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
        self._connections.close()


def _moment(value: bytes | None) -> int:
    """Return a value's nanoseconds; 0 where there is none, or something else."""
    text = (value or b"").decode(errors="replace")
    return int(text) if text.isdecimal() else 0
