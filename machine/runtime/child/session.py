"""
A child's session with the broker: its claims, its moves, and when it must begin anew.

One round trip carries moves out and claims in. `InFlight` is the record of
claims held and moves not yet sent; when the server and the record disagree, the
session reads from the server what is held.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from machine.errors import BrokerUnavailable, MachineError
from machine.execution import Failed, Outcome
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Exchange, Finish, Move, Retry, Start, Verdict
from machine.registry import Registry
from machine.runtime.child.instruments import Watch
from machine.runtime.chords import Chords
from machine.runtime.settle import Settled, Terms, canceled, refused, settle
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


#: Moves remembered in case the server forgets them (a failover loses the last writes).
_REMEMBERED = 4096


class Ledger:
    """Claims held, moves owed, and moves made lately."""

    def __init__(self) -> None:
        self.owed: deque[Move] = deque()
        self._held: dict[str, Claim] = {}
        self._per_queue: Counter[str] = Counter()
        self._recent: dict[str, Move] = {}

    def __len__(self) -> int:
        """Return how many claims are held."""
        return len(self._held)

    def hold(self, claims: Iterable[Claim]) -> None:
        """Note new claims."""
        for claim in claims:
            self._held[claim.id] = claim
            self._per_queue[claim.queue] += 1

    def holds(self, claim: Claim) -> bool:
        """Say whether this claim is still ours, as far as we know."""
        return claim.id in self._held

    def drop(self, claim: Claim) -> None:
        """Forget a claim that is not ours any more."""
        if self._held.pop(claim.id, None) is not None:
            self._per_queue[claim.queue] -= 1

    def forget(self, queues: Sequence[str]) -> None:
        """Forget every claim of these queues: the lease there ran out."""
        for claim in [claim for claim in self._held.values() if claim.queue in queues]:
            self.drop(claim)

    def take(self) -> list[Move]:
        """Return all moves owed, which are owed no more."""
        moves = []
        while self.owed:
            moves.append(self.owed.popleft())
        return moves

    def put_back(self, moves: Sequence[Move]) -> None:
        """Owe these again, first: they could not be sent."""
        self.owed.extendleft(reversed(moves))

    def settle(
        self, moves: Sequence[Move], verdicts: Sequence[Verdict]
    ) -> list[tuple[Move, Verdict]]:
        """Note what became of moves; return those with a verdict to act on."""
        odd: list[tuple[Move, Verdict]] = []
        for move, verdict in zip(moves, verdicts, strict=True):
            if type(move) is not Start:
                if verdict not in (Verdict.BAD_KEY, Verdict.CANCELED):
                    self.drop(move.claim)
                    self._recent[move.claim.id] = move
                if verdict is not Verdict.DONE:
                    odd.append((move, verdict))
        if len(self._recent) > _REMEMBERED:
            for claim_id in list(self._recent)[: _REMEMBERED // 2]:
                del self._recent[claim_id]
        return odd

    def differs(self, exchange: Exchange) -> list[str]:
        """Return the queues in which the server says we hold another number of claims."""
        return [
            q
            for q, held in exchange.held.items()
            if held is not None and held != self._per_queue[q]
        ]

    def reconcile(
        self, queue: str, worker_id: str, server: Sequence[Claim]
    ) -> tuple[list[Claim], list[Claim]]:
        """
        Compare with all claims the server says we hold in a queue.

        A claim whose end we have sent before is owed that end again: the
        server has forgotten it.

        Returns:
            Claims we did not know of (their answer was lost), to be run; and
            claims that are not ours any more.
        """
        theirs = {claim.id for claim in server}
        unknown = []
        for claim in server:
            if claim.id in self._held:
                continue
            made = self._recent.pop(claim.id, None)
            if made is None:
                unknown.append(claim)
            else:
                self.hold([claim])
                self.owed.append(made)
        mine = [c for c in self._held.values() if c.queue == queue and c.worker_id == worker_id]
        gone = [claim for claim in mine if claim.id not in theirs]
        for claim in gone:
            self.drop(claim)
        return unknown, gone


def call_back(broker: Broker, queues: Sequence[str], registry: Registry) -> None:
    """
    Let messages of tasks registered here run now, instead of up to a minute later.

    Args:
        broker: The child's own.
        queues: What it consumes; messages of other queues are left alone.
        registry: The tasks it knows.
    """
    try:
        for queue in queues:
            count = broker.unpark(queue, lambda name: name in registry)
            if count:
                _log.info(
                    "%d messages on '%s' were put aside; their tasks are known now", count, queue
                )
    except MachineError as error:
        # They come back by themselves within a minute.
        _log.warning("cannot look for messages that were put aside: %s", error)
