"""
How a child runs tasks: on its main thread, in threads, or on an event loop.

A pool takes jobs and calls ``done(job, outcome)`` for each, on whatever thread
it ran. It neither claims nor settles. There are three because each wins
somewhere: inline costs nothing, threads overlap blocking tasks, and one loop
holds thousands of waiting ``async def`` tasks.
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
from machine.runtime.child.executor import Before, aexecute, execute
from machine.wire.signature import Progress, Signature


class Job:
    """
    One claimed task.

    Attributes:
        context: What the task may know of this run, and say about it.
        started_s: When it began, on `perf_counter`; 0.0 while it has not.
        shown: Whether its STARTED state has been asked for.
        shown_s: When it was, on `perf_counter`.
        interrupt: Interrupts an ``async def`` task that runs; ``None`` where nothing can.
    """

    __slots__ = (
        *("claim", "context", "interrupt", "shown", "shown_progress", "shown_s", "signature"),
        *("started_s", "task"),
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
        """Tell the task that it was canceled; interrupt it where that can be done."""
        self.context.canceled = True
        if self.interrupt is not None:
            self.interrupt()

    def run(self, before: Before, watch: Watching | None) -> Outcome:
        """Run a synchronous task on this thread."""
        if watch is not None:
            return watch.run(self, before)
        return execute(self.task, self.context, before)

    async def run_async(self, before: Before, watch: Watching | None) -> Outcome:
        """Run an ``async def`` task on the running loop, so that `cancel` can interrupt it."""
        current = asyncio.current_task()
        if current is not None:
            stop = current.get_loop().call_soon_threadsafe
            self.interrupt = partial(stop, current.cancel)
        try:
            if watch is not None:
                return await watch.arun(self, before)
            return await aexecute(self.task, self.context, before)
        finally:
            self.interrupt = None


class Watching(Protocol):
    """Runs jobs as `executor` does, and looks on."""

    def run(self, job: Job, before: Before) -> Outcome:
        """Run a synchronous job."""
        ...

    async def arun(self, job: Job, before: Before) -> Outcome:
        """Run an ``async def`` job."""
        ...


#: Told of each job that ended.
Done = Callable[[Job, Outcome], None]


class Pool(Protocol):
    """Runs jobs."""

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run, in order."""
        ...

    def work(self, budget_s: float) -> None:
        """Run jobs on this thread until none is left or the time is used up; threads need none."""
        ...

    def take_back(self) -> list[Job]:
        """Return the jobs that have not started, oldest first; they will not run here."""
        ...

    def running(self) -> list[Job]:
        """Return the jobs that have started and not ended."""
        ...

    def close(self) -> None:
        """Take no more jobs; does not wait for those that run."""
        ...


class InlinePool:
    """Runs one job after the other on the thread that calls `work`; async ones on its own loop."""

    def __init__(
        self, _slots: int, done: Done, before: Before = None, watch: Watching | None = None
    ) -> None:
        self._done, self._before, self._watch = done, before, watch
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._runner: asyncio.Runner | None = None

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run, in order."""
        self._waiting.extend(jobs)

    def work(self, budget_s: float) -> None:
        """Run jobs until none is left or the time is used up; at least one."""
        started_s = now_s = perf_counter()
        while now_s - started_s < budget_s:
            try:
                job = self._waiting.popleft()
            except IndexError:
                return
            job.started_s = now_s
            self._current = job
            if job.task.is_async:
                outcome = self._loop().run(job.run_async(self._before, self._watch))
            else:
                outcome = job.run(self._before, self._watch)
            self._current = None
            self._done(job, outcome)
            now_s = perf_counter()

    def _loop(self) -> asyncio.Runner:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner

    def take_back(self) -> list[Job]:
        """Return the jobs that have not started, oldest first."""
        jobs: deque[Job] = deque()
        while self._waiting:
            try:
                jobs.appendleft(self._waiting.pop())
            except IndexError:  # the main thread took the last one meanwhile
                break
        return list(jobs)

    def running(self) -> list[Job]:
        """Return the job that runs now, if one does."""
        job = self._current
        return [job] if job is not None else []

    def close(self) -> None:
        """Close the event loop."""
        if self._runner is not None:
            self._runner.close()


class ThreadPool:
    """
    Runs synchronous jobs in threads of its own, fed by one queue.

    Threads start as jobs come, up to ``slots``, and are daemons: a task that
    never returns must not keep a worker from leaving.
    """

    def __init__(
        self, slots: int, done: Done, before: Before = None, watch: Watching | None = None
    ) -> None:
        self._slots = slots
        self._done, self._before, self._watch = done, before, watch
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._running: dict[int, Job] = {}
        self._threads = 0

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run, in order."""
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
            outcome = job.run(self._before, self._watch)
            del self._running[me]
            self._done(job, outcome)

    def work(self, budget_s: float) -> None:
        """Do nothing: the threads work."""

    def take_back(self) -> list[Job]:
        """Return the jobs that have not started, oldest first."""
        jobs = []
        while not self._queue.empty():
            job = self._queue.get()
            if job is not None:
                jobs.append(job)
        return jobs

    def running(self) -> list[Job]:
        """Return the jobs that have started and not ended."""
        return list(self._running.values())

    def close(self) -> None:
        """Let the threads end after what they run."""
        for _ in range(self._threads):
            self._queue.put(None)


class LoopPool:
    """Runs ``async def`` jobs side by side on one event loop, in a thread of its own."""

    def __init__(self, done: Done, before: Before = None, watch: Watching | None = None) -> None:
        self._done, self._before, self._watch = done, before, watch
        self._running: set[Job] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._serve, name="task-loop", daemon=True)
        self._thread.start()

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run; all start at once."""
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
        outcome = await job.run_async(self._before, self._watch)
        self._running.discard(job)
        self._done(job, outcome)

    def work(self, budget_s: float) -> None:
        """Do nothing: the loop works."""

    def take_back(self) -> list[Job]:
        """Return nothing: all jobs have started."""
        return []

    def running(self) -> list[Job]:
        """Return the jobs that have not ended."""
        return list(self._running)

    def close(self) -> None:
        """Stop the loop; what still runs is given up."""
        self._loop.call_soon_threadsafe(self._loop.stop)


class MixedPool:
    """Synchronous jobs in threads, ``async def`` jobs on a loop; both made when first needed."""

    def __init__(
        self, slots: int, done: Done, before: Before = None, watch: Watching | None = None
    ) -> None:
        self._slots = slots
        self._done, self._before, self._watch = done, before, watch
        self._threads = ThreadPool(slots, done, before, watch)
        self._loop: LoopPool | None = None

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs to run, each kind in order."""
        batch = list(jobs)
        self._threads.submit(job for job in batch if not job.task.is_async)
        waiting = [job for job in batch if job.task.is_async]
        if waiting:
            if self._loop is None:
                self._loop = LoopPool(self._done, self._before, self._watch)
            self._loop.submit(waiting)

    def work(self, budget_s: float) -> None:
        """Do nothing: threads and loop work."""

    def take_back(self) -> list[Job]:
        """Return the jobs that have not started, oldest first."""
        return self._threads.take_back()

    def running(self) -> list[Job]:
        """Return the jobs that have started and not ended."""
        return self._threads.running() + (self._loop.running() if self._loop else [])

    def close(self) -> None:
        """Take no more jobs."""
        self._threads.close()
        if self._loop:
            self._loop.close()
