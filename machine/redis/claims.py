"""
Claims on Redis, as a child of a worker uses them: register, exchange, look, bring back.

Every change of state is a script that may run twice. An exchange is not
repeated in here: a claim sent twice takes twice, so the session asks the
server what it holds instead.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence

from machine.errors import WireError
from machine.ports.broker import UNPARK_MOST, UNPARK_WITHIN_S
from machine.ports.moves import Claim, Exchange, Move
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import load_commands, script
from machine.redis.moves import MOST_MOVES, build_calls, digest_of, read_claims, read_verdicts
from machine.redis.roles import QueueSettings, RedisRole
from machine.redis.waker import RedisWaker
from machine.wire.messages import decode_signature

#: Messages asked about, or changed, in one command: about 1 ms of the server.
_BATCH = 500


class RedisClaims(RedisRole):
    """The broker's side for those who run tasks. See `Claims`."""

    def __init__(self, connections: Connections, settings: QueueSettings) -> None:
        super().__init__(connections, settings)
        self._nonce = os.urandom(6).hex()
        self._calls = itertools.count()

    def register(self, worker_id: str, queues: Sequence[str]) -> None:
        names = [keys.workers(queue) for queue in queues]
        # With every script known, a finish and a claim of one round trip cannot change places.
        self._execute(
            [*load_commands(), script("register").call(names, [worker_id, self._lease_ms])]
        )

    def unregister(self, worker_id: str, queues: Sequence[str]) -> None:
        """Take the worker off the roster where it holds nothing; empty the landing lists."""
        commands = []
        for queue in queues:
            names = [keys.workers(queue), keys.held(queue, worker_id), keys.hop(queue), queue]
            commands.append(script("unregister").call(names, [worker_id, MOST_MOVES]))
        self._execute(commands)

    def exchange(
        self, worker_id: str, queues: Sequence[str], moves: Sequence[Move], want: int
    ) -> Exchange:
        built = build_calls(moves, self._context()) if moves else []
        commands = [call.command for call in built]
        nonce = f"{self._nonce}{next(self._calls):x}"
        if queues:
            names = [name for queue in queues for name in self._claim_keys(queue, worker_id)]
            names.append(self._canceled_key)
            args = [worker_id, self._lease_ms, want, nonce]
            commands.append(script("claim").call(names, args))
        # Not repeated here: a claim sent twice takes twice, and the caller's resync wants to know.
        answers = self._connections.execute(commands, retry=False) if commands else []
        exchange = Exchange(read_verdicts(built, answers[: len(built)], len(moves)))
        if queues:
            read_claims(answers[-1], worker_id, queues, nonce, exchange)
        return exchange

    @staticmethod
    def _claim_keys(queue: str, worker_id: str) -> tuple[str, ...]:
        return (
            keys.workers(queue),
            keys.held(queue, worker_id),
            keys.sequence(queue),
            keys.redelivered(queue),
            keys.hop(queue),
            queue,
        )

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        if not uuids:
            return set()
        marks = self._execute([("ZMSCORE", self._canceled_key, *uuids)])[0]
        return {uuid for uuid, mark in zip(uuids, marks, strict=True) if mark is not None}

    def waker(self, queues: Sequence[str]) -> RedisWaker:
        """Return a new waker, with one connection for each queue."""
        return RedisWaker(self._connections, queues, self._settings.block_s)

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        reply = self._execute([("HGETALL", keys.held(queue, worker_id))])[0]
        if not reply:
            return []
        digests = [digest_of(payload) for payload in reply[1::2]]
        counts = self._execute([("HMGET", keys.redelivered(queue), *digests)])[0]
        claims = [
            Claim(field.decode(), worker_id, queue, payload, int(count or 0))
            for field, payload, count in zip(reply[::2], reply[1::2], counts, strict=True)
        ]
        return sorted(claims, key=lambda claim: claim.fence)

    def unpark(self, queue: str, knows: Callable[[str], bool]) -> int:
        parked = keys.parked(queue)
        count, now = self._execute([("HLEN", parked), ("TIME",)])
        if not count:
            return 0
        now_ns = (int(now[0]) * 1_000_000 + int(now[1])) * 1000
        last_ns = now_ns + UNPARK_WITHIN_S * 1_000_000_000
        limits = ("BYSCORE", "LIMIT", 0, UNPARK_MOST)
        [soon] = self._execute([("ZRANGE", self._settings.delayed_key, now_ns, last_ns, *limits)])
        ours: list[bytes] = []
        for messages in _in_batches(soon):
            digests = [digest_of(m) for m in messages]
            [times] = self._execute([("HMGET", parked, *digests)])
            aside = [m for m, time in zip(messages, times, strict=True) if time is not None]
            ours += [m for m in aside if self._is_for(queue, m, knows)]
        names = [parked, self._settings.delayed_key]
        commands = [script("unpark").call(names, messages) for messages in _in_batches(ours)]
        return sum(self._execute(commands)) if commands else 0

    def _is_for(self, queue: str, message: bytes, knows: Callable[[str], bool]) -> bool:
        try:
            signature = decode_signature(message, delayed_key=self._settings.delayed_key)
        except WireError:
            return False  # `promote` buries it when its time comes
        return (signature.routing_key or self._settings.default_queue) == queue and knows(
            signature.name
        )


def _in_batches(messages: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [messages[start : start + _BATCH] for start in range(0, len(messages), _BATCH)]
