"""A worker's child process: it claims messages, runs tasks and settles them."""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from machine.errors import BrokerUnavailable, MachineError
from machine.execution import Outcome
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Park, Release, Start
from machine.registry import Registry
from machine.runtime.child.admission import admit, kept_together, split_expired
from machine.runtime.child.cancellation import LOOK_S, Marks
from machine.runtime.child.executor import call_after_hooks
from machine.runtime.child.instruments import Watch
from machine.runtime.child.pool import InlinePool, Job, MixedPool, Pool
from machine.runtime.child.queue_order import Turns
from machine.runtime.child.session import Courier, call_back
from machine.runtime.health import Pulse
from machine.runtime.settle import Terms, started
from machine.runtime.wakeup import Doorbell
from machine.telemetry.logs import log_extra

_log = logging.getLogger("machine.worker")
#: Most claims held by one child beyond its slots.
_MOST_AHEAD = 200
#: Pauses while the server is away, seconds: first and longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: How often a full child looks at what runs, seconds.
_LOOK_S = 0.05
#: How long after a task that nobody here knows we leave the queue's wake-ups to others, seconds.
_SHY_S = 65.0
#: Turns without a running task after which the relief thread rests.
_QUIET_TURNS = 20
#: How often a task's progress is shown at most, seconds.
_PROGRESS_S = 0.1
#: Finished tasks wait this long for others while more of them run, seconds.
_GATHER_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class Ways:
    """
    How a child works.

    Attributes:
        queues: What it consumes, most urgent first.
        weights: Of each queue its share of the claims; none = strictly most urgent first.
        slots: Tasks at once.
        flush_s: Seconds that a finished task waits at most for its result to be sent.
        block_s: Seconds of idle waiting before it looks by itself.
        max_message_bytes: Larger messages are buried.
        terms: How outcomes are settled.
        max_tasks: It ends after so many, for another to take its place; 0 = never.
        max_memory_bytes: It ends when it holds more; 0 = never.
    """

    queues: Sequence[str]
    weights: Sequence[int] = ()
    slots: int = 1
    flush_s: float = 0.005
    block_s: float = 2.0
    max_message_bytes: int = 1_048_576
    terms: Terms = field(default_factory=Terms)
    max_tasks: int = 0
    max_memory_bytes: int = 0


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
        pulse: Where it marks its turns; by default nobody looks.
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
        pulse: Pulse | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._registry, self._ways, self._clock = registry, ways, clock
        self._turns = Turns(ways.queues, ways.weights)
        self._pulse = pulse or Pulse()
        self._call_back = partial(call_back, broker, ways.queues, registry)
        self._watch = watch
        self._courier = Courier(
            *(broker, backend, ways.queues, ways.terms, clock, on_incarnation, watch)
        )
        self._marks = Marks(self._courier)
        # With several queues the main thread must stay free to answer wake-ups.
        self._inline = ways.slots == 1 and len(ways.queues) == 1
        self._hooks = registry.hooks
        pool = InlinePool if self._inline else MixedPool
        self._pool: Pool = pool(ways.slots, self._done, self._hooks.pre_task, watch)
        self._ended_count = 0
        self._doorbell = Doorbell(lambda: broker.waker(ways.queues))
        #: Seconds that a task takes, the average of late.
        self._task_s = ways.flush_s
        self._alone = False
        self._shy_until_s = 0.0
        self._stopping = False
        self._relief = threading.Event()

    @property
    def worker_id(self) -> str:
        """Return the id of the present incarnation, "" before the first."""
        return self._courier.worker_id

    # -- life ------------------------------------------------------------------------------
    def start(self) -> None:
        """Register as a new incarnation; waits for an absent server until stopped."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping:
            self._pulse.turn()
            try:
                self._courier.become()
            except BrokerUnavailable as error:
                if pause_s == _FIRST_PAUSE_S:
                    _log.warning("waiting for Redis: %s", error)
                self._doorbell.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                self._call_back()
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
        self.leave()

    def stop(self) -> None:
        """Claim nothing more; may be called from a signal handler."""
        self._stopping = True
        self._doorbell.ring()

    def _is_done(self) -> bool:
        return self._stopping and not self._courier.held_count and not self._courier.owed_count

    def leave(self) -> None:
        """Leave the roster and close everything; `run` does it at its end."""
        self._pool.close()
        self._doorbell.close()
        try:
            self._courier.leave()
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
        if self._is_worn_out():
            _log.info("this process has done its share; another one takes its place")
            self._stopping = True
        if self._stopping:
            self._give_back()
        self._pulse.turn(busy=bool(self._pool.running()))
        want = self._want()
        claims: list[Claim] = []
        if want or self._courier.owed_count:
            losses = self._courier.losses
            claims = self._courier.carry(self._turns.order(want), want, self._starts)
            if losses != self._courier.losses:
                self._give_back()
            self._take(claims)
        self._courier.fire_chords()
        if not self._relief.is_set():
            self._relief.set()
        self._pulse.turn(busy=self._courier.held_count > self._courier.owed_count)
        self._pool.work(self._ways.flush_s)
        if self._inline:
            self._pulse.turn()
        if self._courier.owed_count:
            self._gather()
        elif not claims or not self._inline:
            self._wait(wait_s, room=want > len(claims))
        return len(claims)

    def _want(self) -> int:
        """Return how many messages there is room for: the slots, and more while tasks are short."""
        if self._stopping or (self._hooks.pre_consume and not self._hooks.pre_consume()):
            return 0
        busy = self._courier.held_count - self._courier.owed_count
        if self._alone:
            return 0 if busy > 0 else 1
        ahead = (
            int(2 * self._ways.flush_s / self._task_s) if self._task_s < self._ways.flush_s else 0
        )
        room = self._ways.slots + min(ahead, _MOST_AHEAD)
        return max(0, room - max(busy, 0))

    def _starts(self) -> list[Start]:
        """Return STARTED for what has run longer than a flush and does not show it yet."""
        starts: list[Start] = []
        for job in self._unshown():
            if self._courier.holds(job.claim):
                said = job.context.said
                job.shown, job.shown_s, job.shown_progress = True, time.perf_counter(), said
                starts += started(job.claim, job.signature, self._ways.terms, said)
        return starts

    def _unshown(self) -> list[Job]:
        """Return the jobs that run longer than a flush and whose state does not say so, or how."""
        now_s, flush_s = time.perf_counter(), self._ways.flush_s
        return [
            job
            for job in self._pool.running()
            if job.started_s and now_s - job.started_s >= flush_s
            if not job.shown
            or (job.context.said is not job.shown_progress and now_s - job.shown_s >= _PROGRESS_S)
        ]

    # -- what comes in ---------------------------------------------------------------------
    def _take(self, claims: Sequence[Claim]) -> None:
        """Submit what can be run here, settle what cannot, give back what must run alone."""
        if not claims:
            return
        idle = self._courier.held_count == len(claims)
        keep, self._alone = kept_together(claims, idle=idle)
        if self._stopping:
            keep = 0
        now_ns = self._clock.now_ns()
        jobs, moves = admit(claims[:keep], self._registry, self._ways, now_ns)
        jobs, expired = split_expired(jobs, now_ns)
        for job, failed in expired:
            _log.info("task %s %s %s", job.signature.name, job.signature.uuid, failed.error)
            self._courier.owe_unrun(job.claim, job.signature, failed)
        if self._watch is not None:
            self._watch.buried(moves)
        if any(type(move) is Park for move in moves):
            self._shy_until_s = self._clock.monotonic_s() + _SHY_S
        self._courier.owe(moves)
        self._courier.owe(Release(claim=claim) for claim in claims[keep:])
        self._pool.submit(self._marks.sift(jobs) if self._courier.marks else jobs)

    def _done(self, job: Job, outcome: Outcome) -> None:
        """Settle a job that ended; called on the thread that ran it."""
        settled = self._courier.owe_end(job.claim, job.signature, outcome)
        took_s = time.perf_counter() - job.started_s
        if self._watch is not None:
            self._watch.over(job, outcome, took_s, failed=settled.state.is_failure)
        self._task_s += (took_s - self._task_s) * 0.1
        if _log.isEnabledFor(logging.INFO):
            name, uuid = job.signature.name, job.signature.uuid
            text, extra = "task %s %s ended: %s in %.3f s", log_extra(job.context)
            _log.info(text, name, uuid, settled.state.state, took_s, extra=extra)
        self._ended_count += 1
        call_after_hooks(self._hooks, job.signature, outcome)
        if not self._inline and not self._pool.running():
            self._pulse.rest()
        self._doorbell.ring_if_asleep()

    def _is_worn_out(self) -> bool:
        """Say whether this process has run enough tasks, or holds too much memory."""
        ways = self._ways
        if self._stopping or not self._ended_count:
            return False
        if ways.max_tasks and self._ended_count >= ways.max_tasks:
            return True
        return ways.max_memory_bytes > 0 and resident_bytes() > ways.max_memory_bytes

    def _is_shy(self) -> bool:
        """
        Say whether to look for work without asking to be woken.

        What was put aside comes back for somebody who knows its task. Asleep in a
        blocking pop, a Go worker gets it at once; asleep before it, we would.
        """
        return self._clock.monotonic_s() < self._shy_until_s

    def _give_back(self) -> None:
        """Release what has not started."""
        jobs = self._pool.take_back()
        ours = [job.claim for job in jobs if self._courier.holds(job.claim)]
        self._courier.owe([Release(claim=claim) for claim in ours])

    # -- waiting ---------------------------------------------------------------------------
    def _gather(self) -> None:
        """Let tasks that end about now share a round trip; the first of a burst does not wait."""
        if not self._inline and self._courier.held_count > self._courier.owed_count:
            left_s = self._courier.carried_s + _GATHER_S - self._clock.monotonic_s()
            if left_s > 0:
                self._doorbell.sleep(left_s)

    def _wait(self, wait_s: float, *, room: bool) -> None:
        """Wait for a wake-up: work in a queue, a job that ended, a signal, or the time."""
        room = room and not self._stopping and not self._alone
        busy = self._courier.held_count - self._courier.owed_count
        if busy > sum(job.shown for job in self._pool.running()):
            wait_s = min(wait_s, self._ways.flush_s)  # something is to be shown as started soon
        elif not room or self._is_shy():
            wait_s = min(wait_s, _LOOK_S)
        elif busy:
            said = any(job.context.said for job in self._pool.running())
            wait_s = min(wait_s, _PROGRESS_S if said else LOOK_S)
        arm = room and not self._is_shy()
        woken = self._doorbell.listen(wait_s, arm=arm, unless=lambda: self._courier.owed_count > 0)
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
        if self._unshown():
            self._courier.carry((), 0, self._starts)
        self._marks.look(running)

    def _relieve(self) -> None:
        """
        Act for the main thread while one task holds it.

        Results before it go out, STARTED is shown, and what waits behind it goes back for
        others to run.
        """
        last: Job | None = None
        quiet = 0
        while True:
            self._relief.wait()
            current = next(iter(self._pool.running()), None)
            settled_down = current is not None and current is last and current.shown
            # A look now and then: the main thread, which could ring, is the one that is held.
            time.sleep(_LOOK_S if settled_down else 2 * self._ways.flush_s)
            current = next(iter(self._pool.running()), None)
            quiet = 0 if current is not None else quiet + 1
            if quiet > _QUIET_TURNS:
                self._relief.clear()
            if current is not None and current is last:
                self._give_back()
                try:
                    if self._courier.owed_count or self._unshown():
                        self._courier.carry((), 0, self._starts)
                    self._marks.look(self._pool.running())
                except MachineError as error:
                    _log.debug("relief waits: %s", error)
            last = current


def resident_bytes() -> int:
    """Return the memory this process holds now; its highest so far where now is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
