"""
The Redis adapter of the broker port: each method one script, or one plain read.

Every change of state is a file in ``lua/``, safe to send twice, so whatever
fails on the way is simply sent again. Nothing here decodes a message but
`promote`, which needs the name of its queue.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from machine.errors import BrokerRefused, WireError
from machine.ports.broker import Reaped, Roster
from machine.ports.moves import (
    Canceled,
    ChordShot,
    Claim,
    DeadLetter,
    Enqueued,
    Exchange,
    Message,
    Move,
    Verdict,
)
from machine.redis import keys
from machine.redis.claims import RedisParked
from machine.redis.connections import Connections
from machine.redis.inspector import RedisSurvey
from machine.redis.link import Command, loads, script
from machine.redis.moves import (
    MOST_MOVES,
    Terms,
    calls,
    message_words,
    read_claims,
    read_verdicts,
    shot_command,
)
from machine.redis.queues import RedisUnique, cancel_codes, cancel_commands
from machine.redis.waker import RedisWaker
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.messages import decode_signature
from machine.wire.states import decode_letter, encode_letter
from machine.wire.text import now_text

#: A state that is not final outlives a long queue, whatever the results' own time.
_PENDING_AT_LEAST_S = 86_400
#: Claims that one reap takes, and messages that one promote moves: about 2 ms of the server.
_REAP_BATCH = 200
_CODES = {int(code): code for code in Enqueued}


class RedisBroker(RedisUnique, RedisParked, RedisSurvey):
    """
    Queues on one Redis or Valkey server. See `Broker` for each method's contract.

    Args:
        connections: Where the server is.
        default_queue: Where a delayed message without a routing key goes.
        delayed_key: Name of the delayed set.
        results_expire_s: Seconds a final state lives, ≥ 1.
        max_queue_length: `Enqueued.FULL` from this length on.
        max_deliveries: Workers that one message may kill before it is convicted.
        lease_s: Seconds a worker may be silent.
        keeps_states: Whether results live on this server too.
        block_s: Seconds that one blocking wait lasts at most.
        worker: Whether this is a worker's side, which waits for an absent
            server in its own loop, not in here.
    """

    def __init__(
        self,
        connections: Connections,
        *,
        default_queue: str = "machinery_tasks",
        delayed_key: str = DELAYED_DEFAULT,
        results_expire_s: int = 3600,
        max_queue_length: int = 1_000_000,
        max_deliveries: int = 3,
        lease_s: float = 15.0,
        keeps_states: bool = True,
        block_s: float = 2.0,
        worker: bool = False,
    ) -> None:
        self.keeps_states = keeps_states
        self._connections = connections
        self._default_queue = default_queue
        self._delayed_key = delayed_key
        self._canceled_key = keys.canceled(default_queue)
        self._kept_s = results_expire_s
        self._pending_s = max(results_expire_s, _PENDING_AT_LEAST_S)
        self._max_queue_length = max_queue_length
        self._max_deliveries = max_deliveries
        self._lease_ms = int(lease_s * 1000)
        self._block_s = block_s
        self._patient = not worker
        self._nonce = os.urandom(6).hex()
        self._calls = itertools.count()

    # -- callers ---------------------------------------------------------------------------
    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Write each PENDING state and queue its message; one call for each 500."""
        return self._codes(self._execute(self._enqueue_commands(messages)))

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Do what `enqueue` does, without blocking the event loop."""
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        commands = self._enqueue_commands(messages)
        return self._codes(await links_of(self._connections).execute(commands))

    def _enqueue_commands(self, messages: Sequence[Message]) -> list[Command]:
        commands = []
        for start in range(0, len(messages), MOST_MOVES):
            names, args = message_words(messages[start : start + MOST_MOVES])
            names.insert(0, self._delayed_key)
            args[:0] = (self._max_queue_length, self._pending_s)
            commands.append(script("enqueue").call(names, args))
        return commands

    @staticmethod
    def _codes(answers: list[list[int]]) -> list[Enqueued]:
        return [_CODES[code] for answer in answers for code in answer]

    def cancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Let tasks end as canceled; see `Broker.cancel`."""
        return cancel_codes(self._execute(self._cancel_commands(uuids, ahead)))

    async def acancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Do what `cancel` does, without blocking the event loop."""
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        commands = self._cancel_commands(uuids, ahead)
        return cancel_codes(await links_of(self._connections).execute(commands))

    def _cancel_commands(self, uuids: Sequence[str], ahead: Sequence[str]) -> list[Command]:
        return cancel_commands(uuids, ahead, self._terms(), keeps_states=self.keeps_states)

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these tasks that are marked as canceled."""
        if not uuids:
            return set()
        marks = self._execute([("ZMSCORE", self._canceled_key, *uuids)])[0]
        return {uuid for uuid, mark in zip(uuids, marks, strict=True) if mark is not None}

    # -- workers ---------------------------------------------------------------------------
    def register(self, worker_id: str, queues: Sequence[str]) -> None:
        """Give a worker its lease on each queue."""
        names = [keys.workers(queue) for queue in queues]
        # With every script known, a finish and a claim of one round trip cannot change places.
        self._execute([*loads(), script("register").call(names, [worker_id, self._lease_ms])])

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
        """Carry out the moves, then claim up to ``want`` messages, in one round trip."""
        built = calls(moves, self._terms()) if moves else []
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

    def _terms(self) -> Terms:
        return Terms(
            delayed_key=self._delayed_key,
            kept_s=self._kept_s,
            pending_s=self._pending_s,
            created=f'"CreatedAt":"{now_text(time.time_ns())}"',
            canceled_key=self._canceled_key,
        )

    def waker(self, queues: Sequence[str]) -> RedisWaker:
        """Return a new waker, with one connection for each queue."""
        return RedisWaker(self._connections, queues, self._block_s)

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        """Return all claims the server says this worker holds, in fence order."""
        reply = self._execute([("HGETALL", keys.held(queue, worker_id))])[0]
        if not reply:
            return []
        digests = [_digest(payload) for payload in reply[1::2]]
        counts = self._execute([("HMGET", keys.redelivered(queue), *digests)])[0]
        claims = [
            Claim(field.decode(), worker_id, queue, payload, int(count or 0))
            for field, payload, count in zip(reply[::2], reply[1::2], counts, strict=True)
        ]
        return sorted(claims, key=lambda claim: claim.fence)

    # -- supervisors -----------------------------------------------------------------------
    def heartbeat(self, queue: str, worker_ids: Sequence[str]) -> list[int | None]:
        """Renew leases; for each worker the number of claims held, ``None`` if lost."""
        names = [keys.workers(queue), *(keys.held(queue, worker) for worker in worker_ids)]
        command = script("heartbeat").call(names, [self._lease_ms, *worker_ids])
        return [None if count < 0 else count for count in self._execute([command])[0]]

    def roster(self, queue: str) -> Roster:
        """Return the queue's workers and their stamps."""
        now, flat = self._execute([("TIME",), ("ZRANGE", keys.workers(queue), 0, -1, "WITHSCORES")])
        stamps = {
            name.decode(): int(float(score))
            for name, score in zip(flat[::2], flat[1::2], strict=True)
        }
        return Roster(int(now[0]) * 1000 + int(now[1]) // 1000, stamps)

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        """Take up to 200 claims from a dead worker; see `Broker.reap`."""
        names = [
            keys.workers(queue),
            keys.held(queue, worker_id),
            keys.held(queue, heir),
            keys.redelivered(queue),
            queue,
        ]
        args = [worker_id, stamp, heir, self._max_deliveries, _REAP_BATCH, *convict]
        reply = self._execute([script("reap").call(names, args)])[0]
        taken = zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
        convicted = [Claim(i.decode(), heir, queue, payload, count) for i, payload, count in taken]
        return Reaped(max(reply[0], 0), convicted)

    def promote(self, most: int) -> int:
        """Move up to ``most`` due messages to the queues they name, earliest first."""
        due: list[bytes] = self._execute([script("due").call([self._delayed_key], [most])])[0]
        if not due:
            return 0
        codes = self._promote([(message, *self._target(message)) for message in due])
        stuck = [message for message, code in zip(due, codes, strict=True) if code < 0]
        if stuck:
            # Its queue's name belongs to something that is not a list: it can never be moved there.
            reason = "the queue it names is not a list"
            self._promote([(m, self._default_queue, reason) for m in stuck])
        return len(due) - codes.count(0)

    def _target(self, message: bytes) -> tuple[str, str]:
        """Return the queue a delayed message names, and why to bury it instead ("" = do not)."""
        try:
            routing_key = decode_signature(message, delayed_key=self._delayed_key).routing_key
        except WireError as error:
            return self._default_queue, str(error)
        return routing_key or self._default_queue, ""

    def _promote(self, entries: Sequence[tuple[bytes, str, str]]) -> list[int]:
        queue = self._default_queue
        names = [self._delayed_key, keys.dead(queue), keys.dead_index(queue)]
        args: list[str | bytes] = []
        for message, target, reason in entries:
            names.append(target)
            args += (message, *(_letter(message, reason) if reason else ("", b"")))
        codes: list[int] = self._execute([script("promote").call(names, args)])[0]
        return codes

    def armed(self, queue: str, cursor: int, most: int) -> tuple[int, list[tuple[str, bytes]]]:
        """Return some chords that have not fired, and where to go on; see `Broker.armed`."""
        after, flat = self._execute([("HSCAN", keys.chords(queue), cursor, "COUNT", most)])[0]
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return int(after), [(group.decode(), callback) for group, callback in pairs]

    def fire_chord(self, shot: ChordShot) -> Verdict:
        """Fire an armed chord; exactly one call for each chord does it."""
        command = shot_command(shot, self._terms())
        code: int = self._execute([command])[0]
        if code == -1:
            queues = ", ".join(sorted({message.queue for message in shot.messages}))
            raise BrokerRefused(f"One of these queues is a key of another kind: {queues}.")
        return Verdict(max(code, 0))

    # -- people ----------------------------------------------------------------------------
    def pending(self, queue: str, most: int = -1) -> list[bytes]:
        """Return messages ready in a queue, next first; -1 = all."""
        last = -1 if most < 0 else most - 1
        reply: list[bytes] = self._execute([("LRANGE", queue, 0, last)])[0] if most else []
        return reply

    def delayed(self, most: int = -1) -> list[bytes]:
        """Return delayed messages of all queues, earliest first; -1 = all."""
        last = -1 if most < 0 else most - 1
        reply: list[bytes] = (
            self._execute([("ZRANGE", self._delayed_key, 0, last)])[0] if most else []
        )
        return reply

    def dead(self, queue: str, most: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first."""
        ids = self._execute([("ZRANGE", keys.dead_index(queue), 0, most - 1)])[0] if most else []
        envelopes = self._execute([("HMGET", keys.dead(queue), *ids)])[0] if ids else []
        return [
            DeadLetter(letter.decode(), *decode_letter(envelope))
            for letter, envelope in zip(ids, envelopes, strict=True)
            if envelope is not None
        ]

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        """Put dead letters back at the tail of their queue, crash count 0; say how many."""
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
        """Delete dead letters for good; say how many."""
        names = [keys.dead(queue), keys.dead_index(queue)]
        return int(self._execute([script("purge_dead").call(names, list(ids))])[0]) if ids else 0

    def ping(self) -> None:
        """Raise unless the server answers."""
        self._connections.execute([("PING",)], retry=False)

    def eviction_policy(self) -> str:
        """Return the server's ``maxmemory-policy``; "" where this user may not ask."""
        try:
            info = self._connections.execute([("INFO", "memory")], retry=False)[0]
        except BrokerRefused:
            return ""
        found = re.search(rb"^maxmemory_policy:(\S+)", info, re.MULTILINE)
        return found[1].decode() if found else ""

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    async def aclose(self) -> None:
        """Close every connection, those of the running event loop included."""
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        await links_of(self._connections).close()
        self.close()

    def _execute(self, commands: Sequence[Command]) -> list[Any]:
        return self._connections.execute(commands, retry=self._patient)


def _letter(message: bytes, reason: str) -> tuple[str, bytes]:
    """Return a dead letter's id, the same whoever buries it, and its envelope."""
    envelope = encode_letter(
        reason=reason,
        payload=message,
        crash_count=0,
        worker_id="",
        buried_ms=time.time_ns() // 1_000_000,
    )
    return _digest(message), envelope


def _digest(message: bytes) -> str:
    """Return the name under which the scripts count for these bytes."""
    return hashlib.sha1(message, usedforsecurity=False).hexdigest()
