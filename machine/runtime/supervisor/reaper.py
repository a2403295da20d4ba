"""
Takes the claims of dead workers: they go back to their queue, or fail if they must not run again.

Each heartbeat moves a worker's stamp. A worker counts as dead when its stamp
has stood still for long enough on *our own* monotonic clock: the server's clock
may step, and that must kill nobody. The script checks that the stamp is still
the one that we saw.
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
from machine.runtime.settle import SettleRules, bury, replace_refused, settle, settle_canceled
from machine.wire.headers import ON_CRASH_HEADER
from machine.wire.messages import decode_signature

_log = logging.getLogger("machine.worker")


class Reaper(Loop):
    """
    Finds dead workers of some queues and takes the claims that they held.

    Args:
        broker: The queues.
        backend: Where states are, if not with the queues.
        rules: How failures are settled.
        clock: The times in states and dead letters.
        chords: Fires the chords that a failure arms.
        queues: The queues to look after.
        own_id: This supervisor's worker id. Claims that must not run again are moved
            to it, so that it can fail them, and its heir can if it dies before.
        lease_s: Seconds of a lease.
        heartbeat_s: Seconds between heartbeats.
    """

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        rules: SettleRules,
        clock: Clock,
        chords: Chords,
        queues: Sequence[str],
        own_id: str,
        *,
        lease_s: float,
        heartbeat_s: float,
    ) -> None:
        super().__init__("reaper", max(0.05, heartbeat_s / 4))
        self._broker, self._backend, self._rules, self._clock = broker, backend, rules, clock
        self._chords, self._queues, self._own_id = chords, queues, own_id
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        #: (queue, worker id) -> its stamp, and the monotonic second when we saw that first.
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}

    def run_once(self, now_s: float) -> None:
        """Look at the roster of each queue, and reap the dead workers on it."""
        self._fail_inherited()
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
        """Decide by how long the stamp has stood still on our clock, and by the server's clock."""
        seen_stamp, since_s = self._seen.get((queue, worker_id), (None, now_s))
        if seen_stamp != stamp:
            self._seen[queue, worker_id] = (stamp, now_s)
            return False
        still_s = now_s - since_s
        # By the server's clock the lease is over, and by ours a heartbeat was missed.
        expired = roster.now_ms > stamp and still_s >= 1.5 * self._heartbeat_s
        return expired or still_s >= self._lease_s + self._heartbeat_s

    def reap_at_once(self, worker_id: str) -> None:
        """Take the claims of a child whose process has ended; its lease need not run out."""
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
                    worker_id,
                    reaped.requeued,
                    len(reaped.convicted),
                )
            taken = reaped.requeued + len(reaped.convicted)
            if not taken or taken >= len(held):
                return

    def _fail_inherited(self) -> None:
        """Fail claims that an earlier `reap` moved to us, and whose answer was lost."""
        for queue in self._queues:
            for claim in self._broker.held(queue, self._own_id):
                self.fail(claim, quarantined=may_run_again(claim))

    def fail(self, claim: Claim, *, quarantined: bool) -> None:
        """
        End a claim as failed: one of ours, or of a child that is gone.

        Args:
            claim: What to end.
            quarantined: True = it killed too many workers, and its message is buried.
                False = its worker died, and ``on_crash`` forbids another run.
        """
        reason = f"quarantined: killed {claim.crash_count or 'its'} workers"
        if not quarantined:
            reason = "the worker died while it ran this task, and on_crash is 'fail'"
        move = self._make_failure(claim, reason, quarantined=quarantined)
        verdict = self._send(move)
        if verdict is Verdict.CANCELED:
            move = cast(Finish, settle_canceled(claim, self._rules, self._clock.now_ns()).move)
            verdict = self._send(move)
        while verdict is Verdict.BAD_KEY:  # ends: the last replacement writes no key
            move = replace_refused(move, self._rules, self._clock.now_ns())
            verdict = self._send(move)
        if verdict is Verdict.ARMED:
            self._chords.fire_armed(move)

    def _send(self, move: Finish) -> Verdict:
        return self._broker.exchange(self._own_id, (), [move], 0).verdicts[0]

    def _make_failure(self, claim: Claim, reason: str, *, quarantined: bool) -> Finish:
        """Return the move that fails a claim; record the states that must be there before it."""
        now_ns = self._clock.now_ns()
        try:
            signature = decode_signature(claim.payload, delayed_key=self._rules.delayed_key)
        except WireError as error:
            return bury(claim, str(error), now_ns)
        settled = settle(claim, signature, Failed(reason), self._rules, now_ns)
        move = cast(Finish, settled.move)  # a failure is never a retry
        if quarantined:
            move.letter = bury(claim, reason, now_ns).letter
        for state in settled.unkept:
            self._backend.record(state)
        return move


def may_run_again(claim: Claim) -> bool:
    """Say whether a claim's task may run again after its worker died (``on_crash``)."""
    try:
        return decode_signature(claim.payload).header(ON_CRASH_HEADER) != "fail"
    except WireError:
        return True  # a worker that claims it buries it
