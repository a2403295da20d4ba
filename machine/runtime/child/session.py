"""
A child's session with the broker: the claims it holds and the moves it has to send.

One round trip sends moves and brings claims. Any answer may be lost on the way,
and any lease may run out. `InFlight` records what is held and what is unsent;
where the server holds another number of claims for us, the session reads them
all and corrects the record.
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
from machine.ports.broker import Claims
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Exchange, Finish, Move, Retry, Start, Verdict
from machine.registry import Registry
from machine.runtime.child.instruments import Instruments
from machine.runtime.chords import Chords
from machine.runtime.settle import (
    Settled,
    SettleRules,
    replace_refused,
    settle,
    settle_canceled,
)
from machine.wire.signature import Signature, TaskState

_log = logging.getLogger("machine.worker")


def find_next_move(
    move: Move, verdict: Verdict, rules: SettleRules, now_ns: int
) -> tuple[Move | None, Sequence[TaskState]]:
    """
    Return the move to make after one that was refused, and the states to record before it.

    Args:
        move: What was refused, or not.
        verdict: What became of it.
        rules: How outcomes are settled.
        now_ns: Unix nanoseconds.

    Returns:
        ``None`` where the claim is over. A move that came too late is logged.
    """
    if verdict is Verdict.CANCELED:
        settled = settle_canceled(move.claim, rules, now_ns)
        return settled.move, settled.unkept
    if verdict is Verdict.BAD_KEY and isinstance(move, Finish | Retry):
        _log.error(
            "a task on '%s' cannot end as it should: its state's key, or the queue of its "
            "next task, holds something else; it is buried",
            move.claim.queue,
        )
        return replace_refused(move, rules, now_ns), ()
    if verdict is Verdict.FENCED:
        _log.warning(
            "claim %s was settled before or has another owner; nothing was changed", move.claim.id
        )
    return None, ()


#: Moves remembered in case the server forgets them (a failover loses the last writes).
_REMEMBERED = 4096


def new_worker_id() -> str:
    """Return a new incarnation's id: host, process, 64 random bits."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"


class Session:
    """
    One worker's session with the broker. Two threads may call `exchange`.

    Args:
        broker: The queues.
        chords: Fires the chords that moves arm.
        backend: Where results are that the broker does not keep.
        queues: What this worker consumes, most urgent first.
        rules: How outcomes are settled.
        clock: The times in states.
        on_incarnation: Called with each new worker id before that is registered.
        instruments: Count tasks and errors; ``None`` = nothing is counted.
    """

    def __init__(
        self,
        broker: Claims,
        chords: Chords,
        backend: Backend,
        queues: Sequence[str],
        rules: SettleRules,
        clock: Clock,
        on_incarnation: Callable[[str], None],
        instruments: Instruments | None = None,
    ) -> None:
        self._broker, self._backend, self._queues = broker, backend, queues
        self._rules, self._clock, self._on_incarnation = rules, clock, on_incarnation
        self._instruments = instruments
        self._in_flight = InFlight()
        #: States for another store, which must be there before their moves are sent.
        self._unrecorded: deque[TaskState] = deque()
        self._chords = chords
        self._armed: deque[Finish] = deque()
        self._lock = threading.Lock()
        self.worker_id = ""
        #: How often a lease ran out.
        self.loss_count = 0
        #: How many tasks were marked as canceled when we last claimed.
        self.canceled_count = 0
        #: Monotonic second of the last round trip.
        self.exchanged_s = 0.0

    # -- claims and moves ------------------------------------------------------------------
    @property
    def held_count(self) -> int:
        """Return how many claims are held, those included whose last move is still unsent."""
        return len(self._in_flight)

    @property
    def unsent_count(self) -> int:
        """Return how many moves wait to be sent."""
        return len(self._in_flight.unsent)

    def holds(self, claim: Claim) -> bool:
        """Say whether this claim is still ours, as far as we know."""
        return self._in_flight.holds(claim)

    def add_moves(self, moves: Iterable[Move]) -> None:
        """Send these moves with the next round trip."""
        self._in_flight.unsent.extend(moves)

    def settle(self, claim: Claim, signature: Signature, outcome: Outcome) -> Settled:
        """Add the move that an outcome calls for; may be called on any thread."""
        settled = settle(claim, signature, outcome, self._rules, self._clock.now_ns())
        # In this order: a move that is sent must find its states recorded.
        self._unrecorded.extend(settled.unkept)
        self._in_flight.unsent.append(settled.move)
        return settled

    def settle_unrun(self, claim: Claim, signature: Signature, failed: Failed) -> None:
        """Settle and count a task that must not run: it expired or was canceled."""
        self.settle(claim, signature, failed)
        if self._instruments is not None:
            self._instruments.count_unstarted(claim, signature, failed)

    # -- one round trip --------------------------------------------------------------------
    def exchange(
        self, queues: Sequence[str], want: int, make_starts: Callable[[], list[Start]]
    ) -> list[Claim]:
        """
        Send all unsent moves, and claim.

        Args:
            queues: Where to claim; none = only send.
            want: Messages to claim at most.
            make_starts: Called just before sending for the tasks to show as STARTED.

        Returns:
            The claims, with those that the server gave us earlier in an answer that was lost.
        """
        with self._lock:
            unsent = self._in_flight.take_unsent()
            moves = [*make_starts(), *unsent]
            try:
                # `settle` adds states before moves, so this records those of all moves above.
                while self._unrecorded:
                    self._backend.record(self._unrecorded[0])
                    self._unrecorded.popleft()
                exchange = self._broker.exchange(self.worker_id, queues, moves, want)
            except BaseException as error:
                self._in_flight.put_back(unsent)
                if self._instruments is not None and isinstance(error, BrokerUnavailable):
                    self._instruments.count_redis_error("exchange")
                raise
            self.exchanged_s = self._clock.monotonic_s()
            if queues:
                self.canceled_count = exchange.marks
            self._handle_verdicts(self._in_flight.record(moves, exchange.verdicts))
            claims = exchange.claims
            lost = [queue for queue, held in exchange.held.items() if held is None]
            if lost:
                self._register_again(lost)
            elif differing := self._in_flight.differing_queues(exchange):
                claims = claims + self._resync(differing, claims)
            self._in_flight.hold(exchange.claims)
            return claims

    def _handle_verdicts(self, odd: Sequence[tuple[Move, Verdict]]) -> None:
        """Act on verdicts other than DONE."""
        for move, verdict in odd:
            if verdict is Verdict.ARMED and isinstance(move, Finish):
                self._armed.append(move)
                continue
            next_move, unkept = find_next_move(move, verdict, self._rules, self._clock.now_ns())
            self._unrecorded.extend(unkept)
            if next_move is not None:
                self.add_moves([next_move])

    def fire_chords(self) -> None:
        """Fire the chords that our moves armed; where that fails, a supervisor's sweep does it."""
        while self._armed:
            self._chords.fire_armed(self._armed.popleft())

    def find_canceled(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these tasks that are marked as canceled."""
        with self._lock:
            return self._broker.canceled(uuids)

    # -- incarnations ----------------------------------------------------------------------
    def register(self) -> None:
        """Register under a new worker id."""
        worker_id = new_worker_id()
        # First: the supervisor must know the id of a child that dies right after.
        self._on_incarnation(worker_id)
        try:
            self._broker.register(worker_id, self._queues)
        except BrokerUnavailable:
            if self._instruments is not None:
                self._instruments.count_redis_error("register")
            raise
        self.worker_id = worker_id

    def unregister(self) -> None:
        """Leave the roster of every queue where nothing is held."""
        if self.worker_id:
            self._broker.unregister(self.worker_id, self._queues)

    def _register_again(self, queues: Sequence[str]) -> None:
        """Forget the claims of queues where our lease ran out, and register there again."""
        _log.warning(
            "worker %s lost its lease on %s; its tasks of there belong to others now",
            self.worker_id,
            ", ".join(queues),
        )
        self._in_flight.forget(queues)
        self.loss_count += 1
        # Under the same id: claim ids are never reused, so an old one can never be ours again.
        self._broker.register(self.worker_id, queues)

    def _resync(self, queues: Sequence[str], fresh: Sequence[Claim]) -> list[Claim]:
        """Read what we hold in these queues; return claims whose answer was lost on the way."""
        found: list[Claim] = []
        known = {claim.id for claim in fresh}
        for queue in queues:
            server = [c for c in self._broker.held(queue, self.worker_id) if c.id not in known]
            unknown, gone = self._in_flight.reconcile(queue, self.worker_id, server)
            _log.warning("resync of '%s': %d claims found, %d lost", queue, len(unknown), len(gone))
            self._in_flight.hold(unknown)
            found += unknown
        return found


class InFlight:
    """The claims held, the moves not sent yet, and the moves sent lately."""

    def __init__(self) -> None:
        self.unsent: deque[Move] = deque()
        self._held: dict[str, Claim] = {}
        self._per_queue: Counter[str] = Counter()
        self._sent: dict[str, Move] = {}

    def __len__(self) -> int:
        """Return how many claims are held."""
        return len(self._held)

    def hold(self, claims: Iterable[Claim]) -> None:
        """Add new claims."""
        for claim in claims:
            self._held[claim.id] = claim
            self._per_queue[claim.queue] += 1

    def holds(self, claim: Claim) -> bool:
        """Say whether this claim is still ours, as far as we know."""
        return claim.id in self._held

    def drop(self, claim: Claim) -> None:
        """Remove a claim that is not ours any more, if it is here."""
        if self._held.pop(claim.id, None) is not None:
            self._per_queue[claim.queue] -= 1

    def forget(self, queues: Sequence[str]) -> None:
        """Remove every claim of these queues: the lease there ran out."""
        for claim in [claim for claim in self._held.values() if claim.queue in queues]:
            self.drop(claim)

    def take_unsent(self) -> list[Move]:
        """Remove and return all unsent moves. Other threads may add some meanwhile."""
        moves = []
        while self.unsent:
            moves.append(self.unsent.popleft())
        return moves

    def put_back(self, moves: Sequence[Move]) -> None:
        """Put moves back in front: they could not be sent."""
        self.unsent.extendleft(reversed(moves))

    def record(
        self, moves: Sequence[Move], verdicts: Sequence[Verdict]
    ) -> list[tuple[Move, Verdict]]:
        """Record what became of moves that were sent; return those to act on."""
        odd: list[tuple[Move, Verdict]] = []
        for move, verdict in zip(moves, verdicts, strict=True):
            if type(move) is not Start:
                if verdict not in (Verdict.BAD_KEY, Verdict.CANCELED):
                    self.drop(move.claim)
                    self._sent[move.claim.id] = move
                if verdict is not Verdict.DONE:
                    odd.append((move, verdict))
        if len(self._sent) > _REMEMBERED:
            for claim_id in list(self._sent)[: _REMEMBERED // 2]:
                del self._sent[claim_id]
        return odd

    def differing_queues(self, exchange: Exchange) -> list[str]:
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
        Correct the record by all claims that the server says we hold in a queue.

        The server may hold a claim whose last move we sent: a failover lost that
        write. The move becomes unsent again, so that the task does not run twice.

        Returns:
            Claims we did not know of (their answer was lost), to be run; and
            claims that are not ours any more.
        """
        theirs = {claim.id for claim in server}
        unknown = []
        for claim in server:
            if claim.id in self._held:
                continue
            sent = self._sent.pop(claim.id, None)
            if sent is None:
                unknown.append(claim)
            else:
                self.hold([claim])
                self.unsent.append(sent)
        mine = [c for c in self._held.values() if c.queue == queue and c.worker_id == worker_id]
        gone = [claim for claim in mine if claim.id not in theirs]
        for claim in gone:
            self.drop(claim)
        return unknown, gone


def unpark_known(broker: Claims, queues: Sequence[str], registry: Registry) -> None:
    """
    Make parked messages of tasks registered here ready now, instead of up to a minute later.

    A worker that does not know a task parks its message. Where a deployment adds
    a task, its new workers call this when they start.

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
