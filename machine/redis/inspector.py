"""
Queues on Redis, as people look at them: what waits, what is dead, how much of each.

All but `replay` and `purge_dead` are plain reads. `survey` asks in two round
trips, the second about the workers that the first one found; a script would
read keys that it was not told of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from machine.errors import BrokerRefused
from machine.ports.broker import QueueCount, Survey
from machine.ports.moves import DeadLetter
from machine.redis import keys
from machine.redis.link import Command, script
from machine.redis.roles import RedisRole
from machine.wire.states import decode_letter

#: Commands of the first round trip of `survey` for each queue.
_EACH = 5


class RedisInspector(RedisRole):
    """The broker's side for people and what shows them queues. See `Inspector`."""

    def pending(self, queue: str, most: int = -1) -> list[bytes]:
        last = -1 if most < 0 else most - 1
        reply: list[bytes] = self._execute([("LRANGE", queue, 0, last)])[0] if most else []
        return reply

    def delayed(self, most: int = -1) -> list[bytes]:
        last = -1 if most < 0 else most - 1
        reply: list[bytes] = (
            self._execute([("ZRANGE", self._settings.delayed_key, 0, last)])[0] if most else []
        )
        return reply

    def dead(self, queue: str, most: int = 100) -> list[DeadLetter]:
        ids = self._execute([("ZRANGE", keys.dead_index(queue), 0, most - 1)])[0] if most else []
        envelopes = self._execute([("HMGET", keys.dead(queue), *ids)])[0] if ids else []
        return [
            DeadLetter(letter.decode(), *decode_letter(envelope))
            for letter, envelope in zip(ids, envelopes, strict=True)
            if envelope is not None
        ]

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        envelopes = self._execute([("HMGET", keys.dead(queue), *ids)])[0] if ids else []
        args: list[str | bytes] = []
        for letter, envelope in zip(ids, envelopes, strict=True):
            if envelope is not None:
                args += (letter, decode_letter(envelope).payload)
        if not args:
            return 0
        names = [
            keys.dead(queue),
            keys.dead_index(queue),
            keys.redelivered(queue),
            keys.parked(queue),
            queue,
        ]
        return int(self._execute([script("replay").call(names, args)])[0])

    def purge_dead(self, queue: str, ids: Sequence[str]) -> int:
        names = [keys.dead(queue), keys.dead_index(queue)]
        return int(self._execute([script("purge_dead").call(names, list(ids))])[0]) if ids else 0

    def survey(self, queues: Sequence[str]) -> Survey:
        commands: list[Command] = [("TIME",), ("ZCARD", self._settings.delayed_key)]
        for queue in queues:
            commands += (
                ("LLEN", queue),
                ("LLEN", keys.hop(queue)),
                ("ZCARD", keys.dead_index(queue)),
                ("ZRANGE", keys.workers(queue), 0, -1, "WITHSCORES"),
                ("LRANGE", queue, 0, 0),
            )
        now, delayed, *answers = self._connections.execute(commands, retry=False)
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        rows = [answers[at : at + _EACH] for at in range(0, len(answers), _EACH)]
        holders = [
            keys.held(queue, worker.decode())
            for queue, row in zip(queues, rows, strict=True)
            for worker in row[3][::2]
        ]
        held = iter(
            self._connections.execute([("HLEN", key) for key in holders], retry=False)
            if holders
            else ()
        )
        counts = [
            QueueCount(
                queue=queue,
                pending=ready + landed,
                running=sum(islice(held, len(roster) // 2)),
                dead=dead,
                workers=_list_alive(roster, now_ms),
                oldest=first[0] if first else b"",
            )
            for queue, (ready, landed, dead, roster, first) in zip(queues, rows, strict=True)
        ]
        return Survey(delayed, counts)

    def ping(self) -> None:
        self._connections.execute([("PING",)], retry=False)

    def eviction_policy(self) -> str:
        """Return the server's ``maxmemory-policy``; "" where this user may not ask."""
        try:
            info = self._connections.execute([("INFO", "memory")], retry=False)[0]
        except BrokerRefused:
            return ""
        found = re.search(rb"^maxmemory_policy:(\S+)", info, re.MULTILINE)
        return found[1].decode() if found else ""


def _list_alive(roster: Sequence[bytes], now_ms: int) -> list[str]:
    """Return the workers of a roster whose lease has not run out; the others are not reaped yet."""
    stamps = zip(roster[::2], roster[1::2], strict=True)
    return [worker.decode() for worker, stamp in stamps if float(stamp) > now_ms]
