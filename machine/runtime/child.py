"""
One worker process: claim, run, settle, and the same round trip again.

A child is a worker incarnation of its own: it claims under its own id, and
only moves of claims it holds change anything. It runs no heartbeat (the
supervisor does, in a process that no task can stall) and decides nothing
about dead workers.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from machine import wire
from machine.backend.base import Backend
from machine.broker.base import Broker, Claim, Finish, Member, Move, Release, Start, Verdict
from machine.clock import Clock
from machine.errors import BrokerUnavailable, MachineError
from machine.outcome import Outcome
from machine.registry import Registry
from machine.runtime import chords, intake
from machine.runtime.doorbell import Doorbell
from machine.runtime.ledger import Ledger
from machine.runtime.pool import InlinePool, Job, MixedPool, Pool
from machine.runtime.settle import Settled, Terms, buried, settle
from machine.signature import State, TaskState

_log = logging.getLogger("machine.worker")

#: Most claims held by one child beyond its slots.
_MOST_AHEAD = 200
#: Pauses while the server is away, seconds: first and longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: How often a full child looks at what runs, seconds.
_LOOK_S = 0.05
#: Turns without a running task after which the relief thread rests.
_QUIET_TURNS = 20
#: Finished tasks wait this long for others while more of them run, seconds.
_GATHER_S = 0.0005


def new_worker_id() -> str:
    """Return a new incarnation's id: host, process, 64 random bits."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"


@dataclass(frozen=True, kw_only=True)
class Ways:
    """
    How a child works.

    Attributes:
        queues: What it consumes, most urgent first.
        slots: Tasks at once.
        flush_s: Seconds that a finished task waits at most for its result to be sent.
        block_s: Seconds of idle waiting before it looks by itself.
        max_message_bytes: Larger messages are buried.
        terms: How outcomes are settled.
    """

    queues: Sequence[str]
    slots: int = 1
    flush_s: float = 0.002
    block_s: float = 2.0
    max_message_bytes: int = 1_048_576
    terms: Terms = field(default_factory=Terms)


class Child:
    """
    Claims and runs until told to stop.

    Args:
        broker: Made in this process, with ``worker=True``.
        backend: Where results are, for chords and separate stores.
        registry: The tasks it can run.
        ways: How it works.
        clock: Its clocks.
        on_incarnation: Told each new worker id, before it is registered.
    """

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        registry: Registry,
        ways: Ways,
        clock: Clock,
        *,
        on_incarnation: Callable[[str], None] = lambda _id: None,
    ) -> None:
        self._broker, self._backend, self._registry = broker, backend, registry
        self._ways, self._clock, self._on_incarnation = ways, clock, on_incarnation
        self._ledger = Ledger()
        # With several queues the main thread must stay free to answer wake-ups.
        inline = ways.slots == 1 and len(ways.queues) == 1
        self._inline = inline
        self._pool: Pool = InlinePool(self._done) if inline else MixedPool(ways.slots, self._done)
        self._unrecorded: list[TaskState] = []
        self._armed: list[Member] = []
        self._exchanging = threading.Lock()
        self._task_s = ways.flush_s
        self._flushed_s = 0.0
        self._alone = False
        self._stopping = False
        self._doorbell = Doorbell(lambda: broker.waker(ways.queues))
        self._relief = threading.Event()
        self.worker_id = ""

    # -- life ------------------------------------------------------------------------------
    def start(self) -> None:
        """Register as a new incarnation; waits for an absent server until stopped."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping:
            try:
                self._become(new_worker_id())
            except BrokerUnavailable as error:
                if pause_s == _FIRST_PAUSE_S:
                    _log.warning("waiting for Redis: %s", error)
                self._doorbell.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                break
        if self._inline:
            threading.Thread(target=self._relieve, name="relief", daemon=True).start()

    def run(self) -> None:
        """Work until `stop`, then let what runs end, settle it, and leave the roster."""
        self.start()
        pause_s = _FIRST_PAUSE_S
        while not self._is_done():
            try:
                self.run_once(self._ways.block_s)
            except BrokerUnavailable as error:
                if pause_s == _FIRST_PAUSE_S:
                    _log.warning("waiting for Redis: %s", error)
                self._doorbell.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            except MachineError as error:
                _log.error("cannot work: %s", error)
                self._doorbell.sleep(_LONGEST_PAUSE_S)
            else:
                if pause_s != _FIRST_PAUSE_S:
                    _log.info("Redis is back")
                pause_s = _FIRST_PAUSE_S
        self._leave()

    def stop(self) -> None:
        """Claim nothing more; may be called from a signal handler."""
        self._stopping = True
        self._doorbell.ring()

    def _is_done(self) -> bool:
        return self._stopping and not len(self._ledger) and not self._ledger.owed

    def _become(self, worker_id: str) -> None:
        self._on_incarnation(worker_id)
        self._broker.register(worker_id, self._ways.queues)
        self.worker_id = worker_id

    def _leave(self) -> None:
        self._pool.close()
        self._doorbell.close()
        if self.worker_id:
            try:
                self._broker.unregister(self.worker_id, self._ways.queues)
            except MachineError as error:
                _log.warning("left without a goodbye: %s", error)

    # -- one turn --------------------------------------------------------------------------
    def run_once(self, wait_s: float) -> int:
        """
        Send what is owed, claim what there is room for, run it; wait if there is nothing.

        Args:
            wait_s: Seconds to wait at most when there is nothing to do.

        Returns:
            How many messages were claimed.
        """
        if self._stopping:
            self._give_back()
        want = self._want()
        claims: list[Claim] = []
        if want or self._ledger.owed:
            claims = self._exchange(self._ways.queues, want)
            self._take(claims)
        self._fire()
        if not self._relief.is_set():
            self._relief.set()
        self._pool.work(self._ways.flush_s)
        if self._ledger.owed:
            self._gather()
        elif not claims or not self._inline:
            self._wait(wait_s, room=want > len(claims))
        return len(claims)

    def _want(self) -> int:
        """Return how many messages there is room for: the slots, and more while tasks are short."""
        if self._stopping:
            return 0
        busy = len(self._ledger) - len(self._ledger.owed)
        if self._alone:
            return 0 if busy > 0 else 1
        ahead = (
            int(2 * self._ways.flush_s / self._task_s) if self._task_s < self._ways.flush_s else 0
        )
        room = self._ways.slots + min(ahead, _MOST_AHEAD)
        return max(0, room - max(busy, 0))

    def _exchange(self, queues: Sequence[str], want: int) -> list[Claim]:
        """Send moves and claim, and keep the books; see `Broker.exchange`."""
        with self._exchanging:
            self._record()
            moves = self._starts() + self._ledger.take()
            try:
                exchange = self._broker.exchange(self.worker_id, queues, moves, want)
            except BaseException:
                self._ledger.put_back([move for move in moves if type(move) is not Start])
                raise
            self._flushed_s = self._clock.monotonic_s()
            odd = self._ledger.settle(moves, exchange.verdicts)
            if odd:
                self._explain(odd)
            if queues:
                claims = exchange.claims
                if None in exchange.held.values():
                    self._reincarnate()
                elif differing := self._ledger.differs(exchange):
                    claims = claims + self._resync(differing, claims)
                self._ledger.hold(exchange.claims)
                return claims
        return []

    def _starts(self) -> list[Move]:
        """Return STARTED for what has run longer than a flush and does not show it yet."""
        moves: list[Move] = []
        if not self._ways.terms.keeps_states:
            return moves
        now_s = time.perf_counter()
        for job in self._pool.running():
            slow = not job.shown and job.started_s and now_s - job.started_s >= self._ways.flush_s
            if slow and job.signature.uuid and self._ledger.holds(job.claim):
                job.shown = True
                state = TaskState(
                    task_uuid=job.signature.uuid, task_name=job.signature.name, state=State.STARTED
                )
                head = wire.encode_state_head(state)
                moves.append(Start(claim=job.claim, state_key=job.signature.uuid, state=head))
        return moves

    def _record(self) -> None:
        """Write states that the moves do not carry, before the moves: at least once, then acknowledged."""
        while self._unrecorded:
            self._backend.record(self._unrecorded[-1])
            self._unrecorded.pop()

    # -- what comes in ---------------------------------------------------------------------
    def _take(self, claims: Sequence[Claim]) -> None:
        """Submit what can be run here, settle what cannot, give back what must run alone."""
        if not claims:
            return
        idle = len(self._ledger) == len(claims)
        keep, self._alone = intake.kept_together(claims, idle=idle)
        if self._stopping:
            keep = 0
        jobs, moves = intake.sort(
            claims[:keep], self._registry, self._ways.max_message_bytes, self._clock.now_ns()
        )
        self._owe(moves)
        self._owe(Release(claim=claim) for claim in claims[keep:])
        self._pool.submit(jobs)

    def _owe(self, moves: Iterable[Move]) -> None:
        self._ledger.owed.extend(moves)

    # -- what goes out ---------------------------------------------------------------------
    def _done(self, job: Job, outcome: Outcome) -> None:
        """Settle a job that ended; called on the thread that ran it."""
        settled: Settled = settle(
            job.claim, job.signature, outcome, self._ways.terms, self._clock.now_ns()
        )
        if not self._ways.terms.keeps_states and job.signature.uuid:
            self._unrecorded.append(settled.state)
        took_s = time.perf_counter() - job.started_s
        self._task_s += (took_s - self._task_s) * 0.1
        self._ledger.owed.append(settled.move)
        if _log.isEnabledFor(logging.INFO):
            _log.info(
                "task %s %s ended: %s in %.3f s",
                *(job.signature.name, job.signature.uuid, settled.state.state, took_s),
            )
        self._doorbell.ring_if_asleep()

    def _explain(self, odd: Sequence[tuple[Move, Verdict]]) -> None:
        for move, verdict in odd:
            if verdict is Verdict.ARMED and isinstance(move, Finish) and move.member:
                self._armed.append(move.member)
            elif verdict is Verdict.BAD_KEY:
                reason = "the key of its state, or its queue, holds something that is not ours"
                _log.error("a message on '%s' is buried: %s", move.claim.queue, reason)
                self._owe([buried(move.claim, reason, self._clock.now_ns())])
            elif verdict is Verdict.FENCED:
                _log.warning(
                    "claim %s was settled before or has another owner; nothing was changed",
                    move.claim.id,
                )

    def _fire(self) -> None:
        """Fire the chords that our last moves armed."""
        while self._armed:
            member = self._armed.pop()
            chords.fire(
                *(self._broker, self._backend, self._ways.terms, self._clock),
                *(member.home, member.group_uuid, member.callback),
            )

    def _give_back(self) -> None:
        """Release what has not started."""
        self._owe([Release(claim=job.claim) for job in self._pool.take_back()])

    # -- when the server and we disagree ---------------------------------------------------
    def _reincarnate(self) -> None:
        """Begin anew: our lease ran out and others have what we held."""
        _log.warning("worker %s lost its lease; its tasks belong to others now", self.worker_id)
        self._pool.take_back()
        self._ledger.forget_all()
        self._become(new_worker_id())

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

    # -- waiting ---------------------------------------------------------------------------
    def _gather(self) -> None:
        """Let tasks that end about now share a round trip; the first of a burst does not wait."""
        if not self._inline and len(self._ledger) > len(self._ledger.owed):
            left_s = self._flushed_s + _GATHER_S - self._clock.monotonic_s()
            if left_s > 0:
                self._doorbell.sleep(left_s)

    def _wait(self, wait_s: float, *, room: bool) -> None:
        """Wait for a wake-up: work in a queue, a job that ended, a signal, or the time."""
        room = room and not self._stopping and not self._alone
        if any(not job.shown for job in self._pool.running()):
            wait_s = min(wait_s, self._ways.flush_s)
        elif not room:
            wait_s = min(wait_s, _LOOK_S)
        woken = self._doorbell.listen(wait_s, arm=room, unless=lambda: bool(self._ledger.owed))
        if woken and not room:
            self._doorbell.give_back()
        if not self._inline:
            self._tend()

    def _tend(self) -> None:
        """Show what runs long, and give back what waits behind it."""
        running = self._pool.running()
        now_s = time.perf_counter()
        if len(running) >= self._ways.slots and all(now_s - j.started_s > 0.01 for j in running):
            self._give_back()
        if self._starts_due(running, now_s):
            self._exchange((), 0)

    def _starts_due(self, running: Sequence[Job], now_s: float) -> bool:
        return any(not j.shown and now_s - j.started_s >= self._ways.flush_s for j in running)

    def _relieve(self) -> None:
        """
        Act for the main thread while one task holds it: results before it go out, STARTED is
        shown, and what waits behind it goes back for others to run.
        """
        last: Job | None = None
        quiet = 0
        while True:
            self._relief.wait()
            current = next(iter(self._pool.running()), None)
            settled_down = current is not None and current is last and current.shown
            time.sleep(_LOOK_S if settled_down else 2 * self._ways.flush_s)
            current = next(iter(self._pool.running()), None)
            quiet = 0 if current is not None else quiet + 1
            if quiet > _QUIET_TURNS:
                self._relief.clear()
            if current is not None and current is last:
                self._give_back()
                if self._ledger.owed or not current.shown:
                    try:
                        self._exchange((), 0)
                    except MachineError as error:
                        _log.debug("relief waits: %s", error)
            last = current
