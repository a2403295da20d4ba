"""
Pools that run a child's tasks: on its main thread, in threads, or on an event loop.

A pool takes jobs and calls ``done(job, outcome)`` for each on the thread that
ran it. It neither claims nor settles. Each kind has its use: the main thread
costs no hand-over, threads overlap tasks that block, and one event loop holds
thousands of ``async def`` tasks that wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Protocol

from machine.execution import Outcome, TaskContext
from machine.ports.moves import Claim
from machine.registry.task import Task
from machine.runtime.child.executor import PreTask, aexecute, execute
from machine.wire.signature import Progress, Signature


class Job:
    """
    One claimed task.

    Attributes:
        claim: The claim it runs under.
        signature: The message to settle. Tracing replaces it after the run by a copy
            with the run's trace in its headers.
        task: The registered task.
        context: What `current_task` returns in this run.
        started_s: When it began, on `perf_counter`; 0.0 while it has not.
        shown: Whether its STARTED state was sent.
        shown_s: When that was, on `perf_counter`.
        shown_progress: The progress that was sent with it.
        interrupt: Interrupts a running ``async def`` task; ``None`` where nothing can.
    """

    __slots__ = (
        "claim",
        "context",
        "interrupt",
        "shown",
        "shown_progress",
        "shown_s",
        "signature",
        "started_s",
        "task",
    )

    def __init__(self, claim: Claim, signature: Signature, task: Task[..., Any]) -> None:
        self.claim = claim
        self.signature = signature
        self.task = task
        self.context = TaskContext(signature, claim.fence)
        self.started_s = self.shown_s = 0.0
        self.shown = False
        self.shown_progress: Progress | None = None
        self.interrupt: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Tell the task that it was canceled, and interrupt it where that is possible."""
        self.context.canceled = True
        if self.interrupt is not None:
            self.interrupt()

    def run(self, pre_task: PreTask, runner: JobRunner | None) -> Outcome:
        """Run a synchronous task on this thread."""
        if runner is not None:
            return runner.run(self, pre_task)
        return execute(self.task, self.context, pre_task)

    async def run_async(self, pre_task: PreTask, runner: JobRunner | None) -> Outcome:
        """Run an ``async def`` task on the running loop, so that `cancel` can interrupt it."""
        current = asyncio.current_task()
        if current is not None:
            stop = current.get_loop().call_soon_threadsafe
            self.interrupt = partial(stop, current.cancel)
        try:
            if runner is not None:
                return await runner.arun(self, pre_task)
            return await aexecute(self.task, self.context, pre_task)
        finally:
            self.interrupt = None


class JobRunner(Protocol):
    """Runs jobs as `executor` does, and measures them."""

    def run(self, job: Job, pre_task: PreTask) -> Outcome:
        """Run a synchronous job."""
        ...

    async def arun(self, job: Job, pre_task: PreTask) -> Outcome:
        """Run an ``async def`` job."""
        ...


#: Called for each job that ended.
Done = Callable[[Job, Outcome], None]


class Pool(Protocol):
    """Runs jobs."""

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run, in order."""
        ...

    def work(self, budget_s: float) -> None:
        """
        Run jobs on this thread until none is left or the time is used up, at least one.

        Returns at once in a pool that has threads of its own.
        """
        ...

    def take_back(self) -> list[Job]:
        """Remove and return the jobs that have not started, oldest first."""
        ...

    def running(self) -> list[Job]:
        """Return the jobs that have started and not ended."""
        ...

    def close(self) -> None:
        """Take no more jobs; does not wait for those that run."""
        ...


class InlinePool:
    """
    Runs one job after the other on the thread that calls `work`.

    ``async def`` jobs run there too, each until it ends, on an event loop.
    """

    def __init__(
        self, _slots: int, done: Done, pre_task: PreTask = None, runner: JobRunner | None = None
    ) -> None:
        self._done, self._pre_task, self._runner = done, pre_task, runner
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._async_runner: asyncio.Runner | None = None

    def submit(self, jobs: Iterable[Job]) -> None:
        self._waiting.extend(jobs)

    def work(self, budget_s: float) -> None:
        started_s = now_s = perf_counter()
        while now_s - started_s < budget_s:
            try:
                job = self._waiting.popleft()
            except IndexError:
                return
            job.started_s = now_s
            self._current = job
            if job.task.is_async:
                outcome = self._event_loop().run(job.run_async(self._pre_task, self._runner))
            else:
                outcome = job.run(self._pre_task, self._runner)
            self._current = None
            self._done(job, outcome)
            now_s = perf_counter()

    def _event_loop(self) -> asyncio.Runner:
        if self._async_runner is None:
            self._async_runner = asyncio.Runner()
        return self._async_runner

    def take_back(self) -> list[Job]:
        jobs: deque[Job] = deque()
        while self._waiting:
            try:
                jobs.appendleft(self._waiting.pop())
            except IndexError:  # another thread calls this: the main one took the last job
                break
        return list(jobs)

    def running(self) -> list[Job]:
        job = self._current
        return [job] if job is not None else []

    def close(self) -> None:
        if self._async_runner is not None:
            self._async_runner.close()


class ThreadPool:
    """
    Runs synchronous jobs in threads of its own, fed by one queue.

    Threads start as jobs come, up to ``slots``. They are daemons: a task that
    never returns must not keep the process from ending.
    """

    def __init__(
        self, slots: int, done: Done, pre_task: PreTask = None, runner: JobRunner | None = None
    ) -> None:
        self._slots = slots
        self._done, self._pre_task, self._runner = done, pre_task, runner
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._running: dict[int, Job] = {}
        self._threads = 0

    def submit(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._queue.put(job)
            if (
                self._threads < self._slots
                and self._queue.qsize() + len(self._running) > self._threads
            ):
                self._threads += 1
                name = f"task-{self._threads}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        me = threading.get_ident()
        while (job := self._queue.get()) is not None:
            job.started_s = perf_counter()
            self._running[me] = job
            outcome = job.run(self._pre_task, self._runner)
            del self._running[me]
            self._done(job, outcome)

    def work(self, budget_s: float) -> None:
        """Do nothing: the jobs run on threads of their own."""

    def take_back(self) -> list[Job]:
        jobs = []
        while not self._queue.empty():
            job = self._queue.get()
            if job is not None:
                jobs.append(job)
        return jobs

    def running(self) -> list[Job]:
        return list(self._running.values())

    def close(self) -> None:
        # One for each thread, which ends when it gets it.
        for _ in range(self._threads):
            self._queue.put(None)


class LoopPool:
    """Runs ``async def`` jobs side by side on one event loop, in a thread of its own."""

    def __init__(
        self, done: Done, pre_task: PreTask = None, runner: JobRunner | None = None
    ) -> None:
        self._done, self._pre_task, self._runner = done, pre_task, runner
        self._running: set[Job] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._serve, name="task-loop", daemon=True)
        self._thread.start()

    def submit(self, jobs: Iterable[Job]) -> None:
        batch = list(jobs)
        if batch:
            self._running.update(batch)
            self._loop.call_soon_threadsafe(self._start, batch)

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _start(self, jobs: list[Job]) -> None:
        for job in jobs:
            task = self._loop.create_task(self._run(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        job.started_s = perf_counter()
        outcome = await job.run_async(self._pre_task, self._runner)
        self._running.discard(job)
        self._done(job, outcome)

    def work(self, budget_s: float) -> None:
        """Do nothing: the jobs run on threads of their own."""

    def take_back(self) -> list[Job]:
        return []  # all have started: `submit` starts them

    def running(self) -> list[Job]:
        return list(self._running)

    def close(self) -> None:
        # What still runs ends with the process.
        self._loop.call_soon_threadsafe(self._loop.stop)


class MixedPool:
    """
    Runs synchronous jobs in threads, and ``async def`` jobs on an event loop.

    Threads and loop are made when the first job needs them.
    """

    def __init__(
        self, slots: int, done: Done, pre_task: PreTask = None, runner: JobRunner | None = None
    ) -> None:
        self._slots = slots
        self._done, self._pre_task, self._runner = done, pre_task, runner
        self._threads = ThreadPool(slots, done, pre_task, runner)
        self._loop: LoopPool | None = None

    def submit(self, jobs: Iterable[Job]) -> None:
        batch = list(jobs)
        self._threads.submit(job for job in batch if not job.task.is_async)
        waiting = [job for job in batch if job.task.is_async]
        if waiting:
            if self._loop is None:
                self._loop = LoopPool(self._done, self._pre_task, self._runner)
            self._loop.submit(waiting)

    def work(self, budget_s: float) -> None:
        """Do nothing: the jobs run on threads of their own."""

    def take_back(self) -> list[Job]:
        return self._threads.take_back()

    def running(self) -> list[Job]:
        return self._threads.running() + (self._loop.running() if self._loop else [])

    def close(self) -> None:
        self._threads.close()
        if self._loop:
            self._loop.close()
