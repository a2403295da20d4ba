"""A worker's child process: it claims messages, runs their tasks and settles the outcomes."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from machine.config import Config
from machine.config.queues import read_queue_names, read_queue_weights
from machine.errors import BrokerUnavailable, MachineError
from machine.execution import Outcome
from machine.ports.backend import Backend
from machine.ports.broker import Claims
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Park, Release
from machine.registry import Registry
from machine.runtime.child.admission import admit, count_to_keep, split_expired
from machine.runtime.child.cancellation import CHECK_S, CancellationWatcher
from machine.runtime.child.executor import call_after_hooks
from machine.runtime.child.instruments import Instruments
from machine.runtime.child.pool import InlinePool, Job, MixedPool, Pool
from machine.runtime.child.queue_order import QueueOrder
from machine.runtime.child.relief import PROGRESS_S, LongTasks, ReliefThread
from machine.runtime.child.session import Session, unpark_known
from machine.runtime.chords import Chords
from machine.runtime.health import Liveness
from machine.runtime.settle import SettleRules
from machine.runtime.wakeup import Wakeup
from machine.telemetry.logs import log_extra

_log = logging.getLogger("machine.worker")
#: Most claims held by one child beyond its slots.
_MOST_AHEAD = 200
#: Pauses while the server is away, seconds: first and longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: How long a child sleeps that has no room, or asks for no wake-up, seconds.
_LOOK_S = 0.05
#: After it parked a message a child asks for no wake-up for so long, seconds. A parked message
#: comes back after a minute: the wake-up for it then goes to a worker that knows its task.
_UNARMED_S = 65.0
#: A finished task waits so long for others to share its round trip while more of them run, seconds.
_GATHER_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """
    The settings of a child.

    Attributes:
        queues: The queues it consumes, most urgent first.
        weights: Each queue's share of the claims; none = strictly most urgent first.
        slots: Tasks at once.
        flush_s: Seconds that a finished task waits at most for its result to be sent.
        block_s: Seconds that it sleeps at most when the queues are empty.
        rules: How outcomes are settled.
        max_tasks: It ends after so many tasks, and another child takes its place; 0 = never.
        max_memory_bytes: It ends when it holds more; 0 = never.
    """

    queues: Sequence[str]
    weights: Sequence[int]
    slots: int
    flush_s: float
    block_s: float
    rules: SettleRules
    max_tasks: int
    max_memory_bytes: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a worker's settings mean to each of its children."""
        return cls(
            queues=read_queue_names(config.worker_queues),
            weights=read_queue_weights(config.worker_queues),
            slots=config.slot_count,
            flush_s=config.worker_flush_ms / 1000,
            block_s=config.worker_block_s,
            rules=SettleRules.of(config),
            max_tasks=config.worker_max_tasks,
            max_memory_bytes=config.worker_max_memory_mb << 20,
        )


class Child:
    """
    Claims messages and runs their tasks until `stop`.

    Args:
        broker: Made in this process, with ``worker=True``.
        chords: Fires the chords that its tasks arm.
        backend: Where results are that the broker does not keep.
        registry: The tasks it can run.
        settings: See `ChildSettings`.
        clock: The times in states, and the time that pauses are measured with.
        on_incarnation: Called with each new worker id before that is registered.
        liveness: Where it marks its turns; by default nobody reads the marks.
        instruments: Count and trace tasks; ``None`` = neither.
    """

    def __init__(
        self,
        broker: Claims,
        chords: Chords,
        backend: Backend,
        registry: Registry,
        settings: ChildSettings,
        clock: Clock,
        *,
        on_incarnation: Callable[[str], None] = lambda _id: None,
        liveness: Liveness | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._broker, self._registry, self._settings = broker, registry, settings
        self._clock, self._instruments = clock, instruments
        self._hooks = registry.hooks
        self._liveness = liveness or Liveness()
        self._queue_order = QueueOrder(settings.queues, settings.weights)
        self._wakeup = Wakeup(lambda: broker.waker(settings.queues))
        self._session = Session(
            broker,
            chords,
            backend,
            settings.queues,
            settings.rules,
            clock,
            on_incarnation,
            instruments,
        )
        self._cancellations = CancellationWatcher(self._session)
        # With several queues the main thread must stay free to answer wake-ups.
        self._inline = settings.slots == 1 and len(settings.queues) == 1
        pool = InlinePool if self._inline else MixedPool
        self._pool: Pool = pool(settings.slots, self._finish, self._hooks.pre_task, instruments)
        self._long_tasks = LongTasks(
            self._pool,
            self._session,
            self._cancellations,
            settings.rules,
            slots=settings.slots,
            flush_s=settings.flush_s,
        )
        self._relief: ReliefThread | None = None
        if self._inline:
            self._relief = ReliefThread(self._pool, self._long_tasks, settings.flush_s)
        self._ended_count = 0
        #: Seconds that a task takes, a moving average.
        self._task_s = settings.flush_s
        #: Whether one message is held whose last worker died, so that nothing may run beside it.
        self._alone = False
        #: Monotonic second until which we ask for no wake-up.
        self._unarmed_until_s = 0.0
        self._stopping = False

    @property
    def worker_id(self) -> str:
        """Return the id of the present incarnation, "" before the first."""
        return self._session.worker_id

    # -- life ------------------------------------------------------------------------------
    def start(self) -> None:
        """Register as a new incarnation; while the server is away, try again until stopped."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping:
            self._liveness.mark_turn()
            try:
                self._session.register()
            except BrokerUnavailable as error:
                pause_s = self._pause(pause_s, error)
            else:
                unpark_known(self._broker, self._settings.queues, self._registry)
                break
        if self._relief is not None:
            self._relief.start()

    def run(self) -> None:
        """Work until `stop`, then let what runs end, settle it, and leave the roster."""
        self.start()
        pause_s = _FIRST_PAUSE_S
        while not self._is_finished():
            try:
                self.run_once(self._settings.block_s)
            except BrokerUnavailable as error:
                pause_s = self._pause(pause_s, error)
            except MachineError as error:
                _log.error("cannot work: %s", error)
                self._wakeup.sleep(_LONGEST_PAUSE_S)
            else:
                if pause_s != _FIRST_PAUSE_S:
                    _log.info("Redis is back")
                pause_s = _FIRST_PAUSE_S
        self.leave()

    def _pause(self, pause_s: float, error: BrokerUnavailable) -> float:
        """Wait for an absent server; return the next pause, which is longer."""
        if pause_s == _FIRST_PAUSE_S:
            _log.warning("waiting for Redis: %s", error)
        self._wakeup.sleep(pause_s)
        return min(_LONGEST_PAUSE_S, pause_s * 2)

    def stop(self) -> None:
        """Claim nothing more; may be called from a signal handler."""
        self._stopping = True
        self._wakeup.wake()

    def _is_finished(self) -> bool:
        return self._stopping and not self._session.held_count and not self._session.unsent_count

    def leave(self) -> None:
        """Leave the roster and close everything; `run` does it at its end."""
        self._pool.close()
        self._wakeup.close()
        try:
            self._session.unregister()
        except MachineError as error:
            _log.warning("left without a goodbye: %s", error)

    # -- one turn --------------------------------------------------------------------------
    def run_once(self, wait_s: float) -> int:
        """
        Do one turn: send moves, claim as much as there is room for, run it, or wait.

        Args:
            wait_s: Seconds to wait at most when there is nothing to do.

        Returns:
            How many messages were claimed.
        """
        if self._is_worn_out():
            _log.info("this process has done its share; another one takes its place")
            self._stopping = True
        if self._stopping:
            self._long_tasks.give_back()
        self._liveness.mark_turn(busy=bool(self._pool.running()))
        room = self._count_room()
        claims: list[Claim] = []
        if room or self._session.unsent_count:
            loss_count = self._session.loss_count
            queues = self._queue_order.take_turn(room)
            claims = self._session.exchange(queues, room, self._long_tasks.make_starts)
            if loss_count != self._session.loss_count:
                self._long_tasks.give_back()
            self._accept(claims)
        self._session.fire_chords()
        if self._relief is not None:
            self._relief.rouse()
        self._liveness.mark_turn(busy=self._session.held_count > self._session.unsent_count)
        self._pool.work(self._settings.flush_s)
        if self._inline:
            self._liveness.mark_turn()
        if self._session.unsent_count:
            self._gather()
        elif not claims or not self._inline:
            self._wait(wait_s, room=room > len(claims))
        return len(claims)

    def _count_room(self) -> int:
        """Return how many messages to claim: the free slots, and more while tasks are short."""
        if self._stopping or (self._hooks.pre_consume and not self._hooks.pre_consume()):
            return 0
        busy = self._session.held_count - self._session.unsent_count
        if self._alone:
            return 0 if busy > 0 else 1
        flush_s = self._settings.flush_s
        # As many as run within a flush, so that one round trip claims them together.
        ahead = int(2 * flush_s / self._task_s) if self._task_s < flush_s else 0
        room = self._settings.slots + min(ahead, _MOST_AHEAD)
        return max(0, room - max(busy, 0))

    # -- claims and outcomes ---------------------------------------------------------------
    def _accept(self, claims: Sequence[Claim]) -> None:
        """Submit what can run here, settle what cannot, give back what must run alone."""
        if not claims:
            return
        idle = self._session.held_count == len(claims)
        keep, self._alone = count_to_keep(claims, idle=idle)
        if self._stopping:
            keep = 0
        now_ns = self._clock.now_ns()
        settings = self._settings
        jobs, moves = admit(claims[:keep], self._registry, settings.rules, settings.queues, now_ns)
        jobs, expired = split_expired(jobs, now_ns)
        for job, failed in expired:
            _log.info("task %s %s %s", job.signature.name, job.signature.uuid, failed.error)
            self._session.settle_unrun(job.claim, job.signature, failed)
        if self._instruments is not None:
            self._instruments.count_buried(moves)
        if any(type(move) is Park for move in moves):
            self._unarmed_until_s = self._clock.monotonic_s() + _UNARMED_S
        self._session.add_moves(moves)
        self._session.add_moves(Release(claim=claim) for claim in claims[keep:])
        if self._session.canceled_count:
            jobs = self._cancellations.drop_canceled(jobs)
        self._pool.submit(jobs)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Settle a job that ended; called on the thread that ran it."""
        settled = self._session.settle(job.claim, job.signature, outcome)
        took_s = time.perf_counter() - job.started_s
        if self._instruments is not None:
            self._instruments.count_end(job, outcome, took_s, failed=settled.state.is_failure)
        self._task_s += (took_s - self._task_s) * 0.1
        if _log.isEnabledFor(logging.INFO):
            name, uuid = job.signature.name, job.signature.uuid
            text, extra = "task %s %s ended: %s in %.3f s", log_extra(job.context)
            _log.info(text, name, uuid, settled.state.state, took_s, extra=extra)
        self._ended_count += 1
        call_after_hooks(self._hooks, job.signature, outcome)
        if not self._inline and not self._pool.running():
            self._liveness.mark_idle()
        self._wakeup.wake_if_asleep()

    def _is_worn_out(self) -> bool:
        """Say whether this process has run enough tasks, or holds too much memory."""
        settings = self._settings
        if self._stopping or not self._ended_count:
            return False
        if settings.max_tasks and self._ended_count >= settings.max_tasks:
            return True
        return settings.max_memory_bytes > 0 and resident_bytes() > settings.max_memory_bytes

    # -- waiting ---------------------------------------------------------------------------
    def _gather(self) -> None:
        """Let tasks that end about now share a round trip; the first of a burst does not wait."""
        if not self._inline and self._session.held_count > self._session.unsent_count:
            left_s = self._session.exchanged_s + _GATHER_S - self._clock.monotonic_s()
            if left_s > 0:
                self._wakeup.sleep(left_s)

    def _wait(self, wait_s: float, *, room: bool) -> None:
        """Wait for a wake-up: work in a queue, a job that ended, a signal, or the time."""
        room = room and not self._stopping and not self._alone
        # A Go worker waits in a blocking pop and gets a parked message at once when that comes
        # back. A wake-up of ours would take it first, only to park it again.
        armed = room and self._clock.monotonic_s() >= self._unarmed_until_s
        busy = self._session.held_count - self._session.unsent_count
        if busy > sum(job.shown for job in self._pool.running()):
            wait_s = min(wait_s, self._settings.flush_s)  # a task has to be shown as STARTED soon
        elif not armed:
            wait_s = min(wait_s, _LOOK_S)
        elif busy:
            said = any(job.context.said for job in self._pool.running())
            wait_s = min(wait_s, PROGRESS_S if said else CHECK_S)
        woken = self._wakeup.wait(wait_s, arm=armed, unless=self._has_unsent_moves)
        if woken and not room:
            self._wakeup.pass_on()
        if not self._inline:
            self._long_tasks.look_after()

    def _has_unsent_moves(self) -> bool:
        return self._session.unsent_count > 0


def resident_bytes() -> int:
    """Return the memory this process holds now, or its peak where the system hides that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
