"""
The timetable's watermarks on Redis: one script for each entry that moves on.

It has connections of its own, so that whoever runs schedules in a thread shares none; they open
when the first entry is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from machine.ports.periodic import Tick, Ticked, Watermarks
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import Command, script
from machine.redis.roles import PENDING_AT_LEAST_S, QueueSettings


class RedisPeriodicStore:
    """
    Watermarks on one Redis or Valkey server. See `PeriodicStore` for each method's contract.

    Args:
        connections: Where the server is; theirs is the patience while it is away.
        settings: How long states live, and how many messages a queue may hold.
    """

    def __init__(self, connections: Connections, settings: QueueSettings) -> None:
        self._connections = connections
        self._pending_s = max(settings.results_expire_s, PENDING_AT_LEAST_S)
        self._max_queue_length = settings.max_queue_length

    def read_watermarks(self, home: str) -> Watermarks:
        return _read_answers(self._connections.execute(_read_commands(home)))

    async def aread_watermarks(self, home: str) -> Watermarks:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        return _read_answers(await links_of(self._connections).execute(_read_commands(home)))

    def key_of(self, home: str) -> str:
        """Return the key of a timetable's watermarks."""
        return keys.periodic(home)

    def switch(self, home: str, name: str, *, canceled: bool) -> bool:
        """Cancel an entry, or let it go on; the script may run twice, and the second is false."""
        [answer] = self._connections.execute([_switch(home, name, canceled=canceled)])
        return bool(answer)

    async def aswitch(self, home: str, name: str, *, canceled: bool) -> bool:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        command = _switch(home, name, canceled=canceled)
        [answer] = await links_of(self._connections).execute([command])
        return bool(answer)

    def tick(self, ticks: Sequence[Tick]) -> list[Ticked]:
        """Move entries on, in order and in one round trip; the scripts may run twice."""
        commands = [self._command(tick) for tick in ticks]
        answers = self._connections.execute(commands) if commands else []
        return [Ticked(code) for code in answers]

    def _command(self, tick: Tick) -> Command:
        names = [keys.periodic(tick.home), keys.periodic_off(tick.home)]
        args: list[str | bytes | int] = [tick.name, tick.before, tick.after]
        args += (self._max_queue_length, self._pending_s)
        for message in tick.messages:
            names += (message.uuid if message.pending else message.queue, message.queue)
            args += (message.payload, message.pending)
        return script("tick").call(names, args)

    async def aclose(self) -> None:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        await links_of(self._connections).close()
        self.close()

    def close(self) -> None:
        self._connections.close()


def _read_commands(home: str) -> list[Command]:
    return [
        ("TIME",),
        ("HGETALL", keys.periodic(home)),
        ("HKEYS", keys.periodic_off(home)),
    ]


def _read_answers(answers: Sequence[Any]) -> Watermarks:
    now, flat, canceled = answers
    texts = {
        name.decode(errors="replace"): text.decode(errors="replace")
        for name, text in zip(flat[::2], flat[1::2], strict=True)
    }
    off = frozenset(name.decode(errors="replace") for name in canceled)
    return Watermarks(int(now[0]) * 1000 + int(now[1]) // 1000, texts, off)


def _switch(home: str, name: str, *, canceled: bool) -> Command:
    names = [keys.periodic_off(home), keys.periodic(home)]
    return script("switch").call(names, [name, int(canceled)])
