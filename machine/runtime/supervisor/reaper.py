"""
Dead workers' claims -> back to their queue, or failed where they must not run again.

A worker counts as dead when its stamp has not moved for long enough on *our
own* monotonic clock; the server's clock can step without killing anybody. The
script looks at the stamp once more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from machine.errors import WireError
from machine.execution import Failed
from machine.ports.backend import Backend
from machine.ports.broker import Broker, Roster
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Finish, Verdict
from machine.runtime.chords import Chords
from machine.runtime.loop import Loop
from machine.runtime.settle import Terms, buried, canceled, refused, settle
from machine.wire.headers import ON_CRASH_HEADER
from machine.wire.messages import decode_signature

_log = logging.getLogger("machine.worker")


class Reaper(Loop):
    """
    Finds dead workers of some queues and takes what they held.

    Args:
        broker: The queues.
        backend: Where states are, if not with the queues.
        terms: How failures are settled.
        clock: Our own clocks.
        chords: Fires those that a failure completes.
        queues: The queues to look after.
        own_id: This supervisor's worker id: the heir of what must not run again.
        lease_s: Seconds of a lease.
        heartbeat_s: Seconds between heartbeats.
    """

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        terms: Terms,
        clock: Clock,
        chords: Chords,
        queues: Sequence[str],
        own_id: str,
        *,
        lease_s: float,
        heartbeat_s: float,
    ) -> None:
        super().__init__("reaper", max(0.05, heartbeat_s / 4))
        self._broker, self._backend, self._terms, self._clock = broker, backend, terms, clock
        self._chords, self._queues, self._own_id = chords, queues, own_id
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}

    def run_once(self, now_s: float) -> None:
        """Look at every queue's roster, and reap the dead."""
        self._take_over()
        present = set()
        for queue in self._queues:
            roster = self._broker.roster(queue)
            for worker_id, stamp in roster.stamps.items():
                present.add((queue, worker_id))
                if worker_id != self._own_id and self._is_dead(
                    queue, worker_id, stamp, roster, now_s
                ):
                    self.reap(queue, worker_id, stamp)
        self._seen = {key: seen for key, seen in self._seen.items() if key in present}

    def _is_dead(
        self, queue: str, worker_id: str, stamp: int, roster: Roster, now_s: float
    ) -> bool:
        """Decide by how long the stamp has stood still, on our clock first, the server's second."""
        seen_stamp, since_s = self._seen.get((queue, worker_id), (None, now_s))
        if seen_stamp != stamp:
            self._seen[queue, worker_id] = (stamp, now_s)
            return False
        still_s = now_s - since_s
        expired = roster.now_ms > stamp and still_s >= 1.5 * self._heartbeat_s
        return expired or still_s >= self._lease_s + self._heartbeat_s

    def reap_at_once(self, worker_id: str) -> None:
        """Take what a worker held that is known to be dead: a child whose process has ended."""
        for queue in self._queues:
            stamp = self._broker.roster(queue).stamps.get(worker_id)
            if stamp is not None:
                self.reap(queue, worker_id, stamp)

    def reap(self, queue: str, worker_id: str, stamp: int) -> None:
        """Take all claims of a dead worker, in batches, and fail those that must not run again."""
        while True:
            held = self._broker.held(queue, worker_id)
            convict = [claim.id for claim in held if not may_run_again(claim)]
            reaped = self._broker.reap(queue, worker_id, stamp, self._own_id, convict)
            for claim in reaped.convicted:
                self.fail(claim, quarantined=claim.id not in convict)
            if held or reaped.requeued:
                _log.warning(
                    "worker %s died: %d tasks put back, %d failed",
                    *(worker_id, reaped.requeued, len(reaped.convicted)),
                )
            if reaped.requeued + len(reaped.convicted) == 0 or len(held) <= reaped.requeued + len(
                reaped.convicted
            ):
                return

    def _take_over(self) -> None:
        """Fail what we inherited and could not fail then: the answer or the server was lost."""
        for queue in self._queues:
            for claim in self._broker.held(queue, self._own_id):
                self.fail(claim, quarantined=may_run_again(claim))

    def fail(self, claim: Claim, *, quarantined: bool) -> None:
        """
        End a claim, ours or of a child that is gone, as failed.

        Args:
            claim: What is to end.
            quarantined: Whether it killed too many workers, and is buried; else its
                worker died and ``on_crash`` forbids another run.
        """
        reason = f"quarantined: killed {claim.crash_count or 'its'} workers"
        if not quarantined:
            reason = "the worker died while it ran this task, and on_crash is 'fail'"
        move = self._failure(claim, reason, quarantined=quarantined)
        verdict = self._carry(move)
        if verdict is Verdict.CANCELED:
            move = cast(Finish, canceled(claim, self._terms, self._clock.now_ns()).move)
            verdict = self._carry(move)
        while verdict is Verdict.BAD_KEY:  # ends: the last resort, a burial alone, needs no key
            move = refused(move, self._terms, self._clock.now_ns())
            verdict = self._carry(move)
        if verdict is Verdict.ARMED:
            self._chords.fire_armed(move)

    def _carry(self, move: Finish) -> Verdict:
        return self._broker.exchange(self._own_id, (), [move], 0).verdicts[0]

    def _failure(self, claim: Claim, reason: str, *, quarantined: bool) -> Finish:
        """Return the move that ends a claim as failed, and records what must be before it."""
        now_ns = self._clock.now_ns()
        try:
            signature = decode_signature(claim.payload, delayed_key=self._terms.delayed_key)
        except WireError as error:
            return buried(claim, str(error), now_ns)
        settled = settle(claim, signature, Failed(reason), self._terms, now_ns)
        move = cast(Finish, settled.move)  # a failure is never a retry
        if quarantined:
            move.letter = buried(claim, reason, now_ns).letter
        for state in settled.unkept:
            self._backend.record(state)
        return move


def may_run_again(claim: Claim) -> bool:
    """Say whether a claim's task may run again after its worker died (``on_crash``)."""
    try:
        return decode_signature(claim.payload).header(ON_CRASH_HEADER) != "fail"
    except WireError:
        return True  # the next worker buries it; that is no crash of its own
