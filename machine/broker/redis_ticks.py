"""
The timetable's marks on Redis: one script for each entry that moves on.

It has connections of its own, so that whoever runs schedules in a thread shares none; they open
when the first entry is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from machine import keys
from machine.broker.base import Enqueued
from machine.broker.ticks import Marks, Tick
from machine.connection import Command, Connections, script

#: A state that is not final outlives a long queue, whatever the results' own time.
_PENDING_AT_LEAST_S = 86_400


class RedisTicker:
    """
    Marks on one Redis or Valkey server. See `Ticker` for each method's contract.

    Args:
        connections: Where the server is; theirs is the patience while it is away.
        results_expire_s: Seconds a final state lives, ≥ 1.
        max_queue_length: `Enqueued.FULL` from this length on.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        results_expire_s: int = 3600,
        max_queue_length: int = 1_000_000,
    ) -> None:
        self._connections = connections
        self._pending_s = max(results_expire_s, _PENDING_AT_LEAST_S)
        self._max_queue_length = max_queue_length

    def marks(self, home: str) -> Marks:
        """Return Redis's time, and all marks of a timetable, in one round trip."""
        now, flat = self._connections.execute([("TIME",), ("HGETALL", keys.periodic(home))])
        texts = {
            name.decode(errors="replace"): mark.decode(errors="replace")
            for name, mark in zip(flat[::2], flat[1::2], strict=True)
        }
        return Marks(int(now[0]) * 1000 + int(now[1]) // 1000, texts)

    def tick(self, ticks: Sequence[Tick]) -> list[Enqueued]:
        """Move entries on, in order and in one round trip; the scripts may run twice."""
        commands = [self._command(tick) for tick in ticks]
        answers = self._connections.execute(commands) if commands else []
        return [Enqueued(code) for code in answers]

    def _command(self, tick: Tick) -> Command:
        names = [keys.periodic(tick.home)]
        args: list[str | bytes | int] = [tick.name, tick.before, tick.after]
        args += (self._max_queue_length, self._pending_s)
        for message in tick.messages:
            names += (message.uuid if message.pending else message.queue, message.queue)
            args += (message.payload, message.pending)
        return script("tick").call(names, args)

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()
