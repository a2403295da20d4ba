"""
Tasks that run long: their state is shown, and what waits behind them goes back.

A child with threads looks after them on its main thread. A child that runs
tasks on its main thread cannot: while a task runs there, a second thread does
it, the relief thread.
"""

from __future__ import annotations

import logging
import threading
import time

from machine.errors import MachineError
from machine.ports.moves import Release, Start
from machine.runtime.child.cancellation import CancellationWatcher
from machine.runtime.child.pool import Job, Pool
from machine.runtime.child.session import Session
from machine.runtime.settle import SettleRules, make_starts

_log = logging.getLogger("machine.worker")
#: A task that all slots wait for keeps the claims behind it for so long, seconds.
_KEEP_S = 0.01
#: How often a task's progress is written at most, seconds.
PROGRESS_S = 0.1
#: How often the relief thread looks at a task whose state is shown already, seconds.
_LOOK_S = 0.05
#: After so many looks without a running task the relief thread sleeps until it is roused.
_IDLE_LOOKS = 20


class LongTasks:
    """
    Looks after the tasks of one child that run longer than a flush.

    Args:
        pool: Where they run.
        session: Where their moves go.
        cancellations: Finds those of them that were canceled.
        rules: Whether states are kept beside the queue.
        slots: Tasks at once.
        flush_s: A task that runs for longer is shown as STARTED.
    """

    def __init__(
        self,
        pool: Pool,
        session: Session,
        cancellations: CancellationWatcher,
        rules: SettleRules,
        *,
        slots: int,
        flush_s: float,
    ) -> None:
        self._pool, self._session, self._cancellations = pool, session, cancellations
        self._rules, self._slots, self._flush_s = rules, slots, flush_s

    def unshown(self) -> list[Job]:
        """Return the jobs whose state does not say yet that they run, or how far they are."""
        now_s, flush_s = time.perf_counter(), self._flush_s
        return [
            job
            for job in self._pool.running()
            if job.started_s and now_s - job.started_s >= flush_s
            if not job.shown
            or (job.context.said is not job.shown_progress and now_s - job.shown_s >= PROGRESS_S)
        ]

    def make_starts(self) -> list[Start]:
        """Return the moves that show them, and note that they are shown."""
        starts: list[Start] = []
        for job in self.unshown():
            if self._session.holds(job.claim):
                said = job.context.said
                job.shown, job.shown_s, job.shown_progress = True, time.perf_counter(), said
                starts += make_starts(job.claim, job.signature, self._rules, said)
        return starts

    def give_back(self) -> None:
        """Release the claims of jobs that have not started, for other workers to run."""
        jobs = self._pool.take_back()
        ours = [job.claim for job in jobs if self._session.holds(job.claim)]
        self._session.add_moves([Release(claim=claim) for claim in ours])

    def look_after(self) -> None:
        """Show what runs long, cancel what was canceled, give back what waits for a slot."""
        running = self._pool.running()
        now_s = time.perf_counter()
        if len(running) >= self._slots and all(now_s - j.started_s > _KEEP_S for j in running):
            self.give_back()
        if self.unshown():
            self._session.exchange((), 0, self.make_starts)
        self._cancellations.cancel_running(running)

    def relieve(self) -> None:
        """Do the same for a task that holds the main thread, which sends nothing meanwhile."""
        self.give_back()
        if self._session.unsent_count or self.unshown():
            self._session.exchange((), 0, self.make_starts)
        self._cancellations.cancel_running(self._pool.running())


class ReliefThread:
    """
    Acts for the main thread while one task holds it.

    It sends the results of earlier tasks, shows the present one as STARTED, and
    gives back the claims that wait behind it.
    """

    def __init__(self, pool: Pool, long_tasks: LongTasks, flush_s: float) -> None:
        self._pool, self._long_tasks, self._flush_s = pool, long_tasks, flush_s
        self._roused = threading.Event()

    def start(self) -> None:
        """Start the thread; a daemon, so that a task that never ends keeps no process."""
        threading.Thread(target=self._run, name="relief", daemon=True).start()

    def rouse(self) -> None:
        """Have the thread look at what runs; call it before tasks may run."""
        if not self._roused.is_set():
            self._roused.set()

    def _run(self) -> None:
        last: Job | None = None
        idle_looks = 0
        while True:
            self._roused.wait()
            current = self._current()
            is_shown = current is not None and current is last and current.shown
            # It polls, because nobody can wake it: the main thread is busy with the task.
            time.sleep(_LOOK_S if is_shown else 2 * self._flush_s)
            current = self._current()
            idle_looks = 0 if current is not None else idle_looks + 1
            if idle_looks > _IDLE_LOOKS:
                self._roused.clear()
            # Only a task that was there at the last look too runs for long.
            if current is not None and current is last:
                try:
                    self._long_tasks.relieve()
                except MachineError as error:
                    _log.debug("relief waits: %s", error)
            last = current

    def _current(self) -> Job | None:
        return next(iter(self._pool.running()), None)
