"""
Counting what is in queues on Redis, for whoever watches them: plain reads, two round trips.

The second one asks after the workers that the first one found. No script: it would
read keys that it was not told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from machine.ports.broker import QueueCount, Survey
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import Command

#: Commands of the first round trip for each queue.
_EACH = 5


class RedisSurvey:
    """The part of `RedisBroker` that counts."""

    _connections: Connections
    _delayed_key: str

    def survey(self, queues: Sequence[str]) -> Survey:
        """Count what is in these queues; see `Broker.survey`."""
        commands: list[Command] = [("TIME",), ("ZCARD", self._delayed_key)]
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
                workers=_alive(roster, now_ms),
                oldest=first[0] if first else b"",
            )
            for queue, (ready, landed, dead, roster, first) in zip(queues, rows, strict=True)
        ]
        return Survey(delayed, counts)


def _alive(roster: Sequence[bytes], now_ms: int) -> list[str]:
    """Return the workers of a roster whose lease has not run out; the others are not reaped yet."""
    stamps = zip(roster[::2], roster[1::2], strict=True)
    return [worker.decode() for worker, stamp in stamps if float(stamp) > now_ms]
