"""
Queues on Redis, as supervisors keep them up.

They renew leases, recover the work of dead workers, move due messages to their
queues, and fire chords.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from machine.errors import BrokerRefused, WireError
from machine.ports.broker import Reaped, Roster
from machine.ports.moves import ChordShot, Claim, Verdict
from machine.redis import keys
from machine.redis.link import script
from machine.redis.moves import digest_of, shot_command
from machine.redis.roles import RedisRole
from machine.wire.messages import decode_signature
from machine.wire.states import encode_letter

#: Claims that one reap takes, and messages that one promote moves: about 2 ms of the server.
_REAP_BATCH = 200


class RedisUpkeep(RedisRole):
    """The broker's side for supervisors. See `Upkeep`."""

    def heartbeat(self, queue: str, worker_ids: Sequence[str]) -> list[int | None]:
        names = [keys.workers(queue), *(keys.held(queue, worker) for worker in worker_ids)]
        command = script("heartbeat").call(names, [self._lease_ms, *worker_ids])
        return [None if count < 0 else count for count in self._execute([command])[0]]

    def roster(self, queue: str) -> Roster:
        now, flat = self._execute([("TIME",), ("ZRANGE", keys.workers(queue), 0, -1, "WITHSCORES")])
        stamps = {
            name.decode(): int(float(score))
            for name, score in zip(flat[::2], flat[1::2], strict=True)
        }
        return Roster(int(now[0]) * 1000 + int(now[1]) // 1000, stamps)

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        names = [
            keys.workers(queue),
            keys.held(queue, worker_id),
            keys.held(queue, heir),
            keys.redelivered(queue),
            queue,
        ]
        args = [worker_id, stamp, heir, self._settings.max_deliveries, _REAP_BATCH, *convict]
        reply = self._execute([script("reap").call(names, args)])[0]
        taken = zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
        convicted = [Claim(i.decode(), heir, queue, payload, count) for i, payload, count in taken]
        return Reaped(max(reply[0], 0), convicted)

    def promote(self, most: int) -> int:
        due: list[bytes] = self._execute(
            [script("due").call([self._settings.delayed_key], [most])]
        )[0]
        if not due:
            return 0
        codes = self._promote([(message, *self._target(message)) for message in due])
        stuck = [message for message, code in zip(due, codes, strict=True) if code < 0]
        if stuck:
            # Its queue's name belongs to something that is not a list: it can never be moved there.
            reason = "the queue it names is not a list"
            self._promote([(m, self._settings.default_queue, reason) for m in stuck])
        return len(due) - codes.count(0)

    def _target(self, message: bytes) -> tuple[str, str]:
        """Return the queue a delayed message names, and why to bury it instead ("" = do not)."""
        try:
            routing_key = decode_signature(
                message, delayed_key=self._settings.delayed_key
            ).routing_key
        except WireError as error:
            return self._settings.default_queue, str(error)
        return routing_key or self._settings.default_queue, ""

    def _promote(self, entries: Sequence[tuple[bytes, str, str]]) -> list[int]:
        queue = self._settings.default_queue
        names = [self._settings.delayed_key, keys.dead(queue), keys.dead_index(queue)]
        args: list[str | bytes] = []
        for message, target, reason in entries:
            names.append(target)
            args += (message, *(_letter(message, reason) if reason else ("", b"")))
        codes: list[int] = self._execute([script("promote").call(names, args)])[0]
        return codes

    def armed(self, queue: str, cursor: int, most: int) -> tuple[int, list[tuple[str, bytes]]]:
        after, flat = self._execute([("HSCAN", keys.chords(queue), cursor, "COUNT", most)])[0]
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return int(after), [(group.decode(), callback) for group, callback in pairs]

    def fire_chord(self, shot: ChordShot) -> Verdict:
        command = shot_command(shot, self._context())
        code: int = self._execute([command])[0]
        if code == -1:
            queues = ", ".join(sorted({message.queue for message in shot.messages}))
            raise BrokerRefused(f"One of these queues is a key of another kind: {queues}.")
        return Verdict(max(code, 0))


def _letter(message: bytes, reason: str) -> tuple[str, bytes]:
    """Return a dead letter's id, the same whoever buries it, and its envelope."""
    envelope = encode_letter(
        reason=reason,
        payload=message,
        crash_count=0,
        worker_id="",
        buried_ms=time.time_ns() // 1_000_000,
    )
    return digest_of(message), envelope
