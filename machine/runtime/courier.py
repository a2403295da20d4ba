"""
Carries moves to the broker and brings claims back, and keeps the books straight.

One incarnation of a worker at a time: its id, what it holds, what it owes. When
the server and the books disagree (a lost answer, a lost lease, a failover), the
difference is found and mended here. It runs nothing and waits for nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from machine.errors import BrokerUnavailable
from machine.execution import Failed, Outcome
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Finish, Move, Retry, Start, Verdict
from machine.runtime.chords import Chords
from machine.runtime.ledger import Ledger
from machine.runtime.settle import Settled, Terms, canceled, refused, settle
from machine.runtime.watch import Watch
from machine.wire.signature import Signature, TaskState

_log = logging.getLogger("machine.worker")


def new_worker_id() -> str:
    """Return a new incarnation's id: host, process, 64 random bits."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"


class Courier:
    """
    One worker's dealings with the broker. `carry` may be called from two threads.

    Args:
        broker: The queues.
        backend: Where results are, for chords and separate stores.
        queues: What this worker consumes, most urgent first.
        terms: How outcomes are settled.
        clock: Its clocks.
        on_incarnation: Told each new worker id, before it is registered.
        watch: Counts; ``None`` = nothing is counted.
    """

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        queues: Sequence[str],
        terms: Terms,
        clock: Clock,
        on_incarnation: Callable[[str], None],
        watch: Watch | None = None,
    ) -> None:
        self._broker, self._backend, self._queues = broker, backend, queues
        self._terms, self._clock, self._on_incarnation = terms, clock, on_incarnation
        self._watch = watch
        self._ledger = Ledger()
        self._unrecorded: deque[TaskState] = deque()
        self._chords = Chords(broker, backend, terms, clock)
        self._armed: deque[Finish] = deque()
        self._lock = threading.Lock()
        self.worker_id = ""
        #: How often a lease ran out.
        self.losses = 0
        #: How many tasks were marked as canceled when we last claimed.
        self.marks = 0
        #: Monotonic second of the last round trip.
        self.carried_s = 0.0

    # -- the books -------------------------------------------------------------------------
    @property
    def held_count(self) -> int:
        """Return how many claims are held, ended ones that are not sent yet included."""
        return len(self._ledger)

    @property
    def owed_count(self) -> int:
        """Return how many moves wait to be sent."""
        return len(self._ledger.owed)

    def holds(self, claim: Claim) -> bool:
        """Say whether this claim is still ours, as far as we know."""
        return self._ledger.holds(claim)

    def owe(self, moves: Iterable[Move]) -> None:
        """Send these with the next round trip."""
        self._ledger.owed.extend(moves)

    def owe_end(self, claim: Claim, signature: Signature, outcome: Outcome) -> Settled:
        """Settle what a task came to; on any thread."""
        settled = settle(claim, signature, outcome, self._terms, self._clock.now_ns())
        self._unrecorded.extend(settled.unkept)
        self._ledger.owed.append(settled.move)
        return settled

    def owe_unrun(self, claim: Claim, signature: Signature, failed: Failed) -> None:
        """Settle a task that is not to run."""
        self.owe_end(claim, signature, failed)
        if self._watch is not None:
            self._watch.unstarted(claim, signature, failed)

    # -- one round trip --------------------------------------------------------------------
    def carry(
        self, queues: Sequence[str], want: int, starts: Callable[[], list[Start]]
    ) -> list[Claim]:
        """
        Send all that is owed, and claim.

        Args:
            queues: Where to claim; none = only send.
            want: Messages to claim at most.
            starts: Asked for what is to be shown as started, just before sending.

        Returns:
            The claims, those included whose answer was lost an earlier time.
        """
        with self._lock:
            owed = self._ledger.take()
            moves = [*starts(), *owed]
            try:
                # States kept elsewhere come first, and those of all that is owed now are there.
                while self._unrecorded:
                    self._backend.record(self._unrecorded[0])
                    self._unrecorded.popleft()
                exchange = self._broker.exchange(self.worker_id, queues, moves, want)
            except BaseException as error:
                self._ledger.put_back(owed)
                if self._watch is not None and isinstance(error, BrokerUnavailable):
                    self._watch.redis_error("exchange")
                raise
            self.carried_s = self._clock.monotonic_s()
            if queues:
                self.marks = exchange.marks
            self._heed(self._ledger.settle(moves, exchange.verdicts))
            claims = exchange.claims
            lost = [queue for queue, held in exchange.held.items() if held is None]
            if lost:
                self._lose(lost)
            elif differing := self._ledger.differs(exchange):
                claims = claims + self._resync(differing, claims)
            self._ledger.hold(exchange.claims)
            return claims

    def _heed(self, odd: Sequence[tuple[Move, Verdict]]) -> None:
        """Act on verdicts other than "done"."""
        for move, verdict in odd:
            if verdict is Verdict.ARMED and isinstance(move, Finish):
                self._armed.append(move)
            elif verdict is Verdict.CANCELED:
                settled = canceled(move.claim, self._terms, self._clock.now_ns())
                self._unrecorded.extend(settled.unkept)
                self.owe([settled.move])
            elif verdict is Verdict.BAD_KEY and isinstance(move, Finish | Retry):
                _log.error(
                    "a task on '%s' cannot end as it should: its state's key, or the queue of its "
                    "next task, holds something else; it is buried",
                    move.claim.queue,
                )
                self.owe([refused(move, self._terms, self._clock.now_ns())])
            elif verdict is Verdict.FENCED:
                _log.warning(
                    "claim %s was settled before or has another owner; nothing was changed",
                    move.claim.id,
                )

    def fire_chords(self) -> None:
        """Fire the chords that our moves armed; one that cannot be now is left to a sweep."""
        while self._armed:
            self._chords.fire_armed(self._armed.popleft())

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these tasks that are marked as canceled."""
        with self._lock:
            return self._broker.canceled(uuids)

    # -- incarnations ----------------------------------------------------------------------
    def become(self) -> None:
        """Register under a new id."""
        worker_id = new_worker_id()
        self._on_incarnation(worker_id)
        try:
            self._broker.register(worker_id, self._queues)
        except BrokerUnavailable:
            if self._watch is not None:
                self._watch.redis_error("register")
            raise
        self.worker_id = worker_id

    def leave(self) -> None:
        """Leave the roster of every queue where nothing is held."""
        if self.worker_id:
            self._broker.unregister(self.worker_id, self._queues)

    def _lose(self, queues: Sequence[str]) -> None:
        """Begin anew where our lease ran out: others have what we held there."""
        _log.warning(
            "worker %s lost its lease on %s; its tasks of there belong to others now",
            *(self.worker_id, ", ".join(queues)),
        )
        self._ledger.forget(queues)
        self.losses += 1
        # Under the same id: claim ids are never reused, so an old one can never be ours again.
        self._broker.register(self.worker_id, queues)

    def _resync(self, queues: Sequence[str], fresh: Sequence[Claim]) -> list[Claim]:
        """Ask what we hold, and return claims whose answer was lost on the way."""
        found: list[Claim] = []
        known = {claim.id for claim in fresh}
        for queue in queues:
            server = [c for c in self._broker.held(queue, self.worker_id) if c.id not in known]
            unknown, gone = self._ledger.reconcile(queue, self.worker_id, server)
            _log.warning("resync of '%s': %d claims found, %d lost", queue, len(unknown), len(gone))
            self._ledger.hold(unknown)
            found += unknown
        return found
