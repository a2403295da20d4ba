"""
Counts and traces a child's tasks.

A worker without metrics and traces makes no `Instruments`; the price is one
comparison for each task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from machine.execution import Again, Failed, Outcome, Succeeded
from machine.ports.moves import Claim, Finish, Move
from machine.runtime.child.executor import PreTask, aexecute, execute
from machine.runtime.child.pool import Job
from machine.telemetry.metrics import UNKNOWN, TaskMetrics
from machine.telemetry.tracing import TracedRun, Tracing
from machine.wire.signature import Signature
from machine.wire.states import CANCELED

_log = logging.getLogger("machine.worker")


class Instruments:
    """
    Counts and traces tasks around their runs.

    Nothing here raises: a full disk or an error of an SDK is logged, and the task
    runs all the same.

    Args:
        metrics: Counts; ``None`` = nothing is counted.
        tracing: Makes spans; ``None`` = nothing is traced.
    """

    def __init__(self, metrics: TaskMetrics | None, tracing: Tracing | None) -> None:
        self._metrics, self._tracing = metrics, tracing

    def run(self, job: Job, pre_task: PreTask) -> Outcome:
        """Run a synchronous job as `executor.execute` does, counted and traced."""
        traced = self._begin(job)
        outcome = execute(job.task, job.context, pre_task)
        self._end(job, traced, outcome)
        return outcome

    async def arun(self, job: Job, pre_task: PreTask) -> Outcome:
        """Run an ``async def`` job as `executor.aexecute` does, counted and traced."""
        traced = self._begin(job)
        outcome = await aexecute(job.task, job.context, pre_task)
        self._end(job, traced, outcome)
        return outcome

    def _begin(self, job: Job) -> TracedRun | None:
        try:
            if self._metrics is not None:
                self._metrics.count_start(job.claim.queue, job.signature, time.time_ns())
            if self._tracing is not None:
                return self._tracing.begin(job.context, job.claim.queue)
        except Exception:  # noqa: BLE001 - see the class
            _log.exception("task %s cannot be watched", job.signature.uuid)
        return None

    def _end(self, job: Job, traced: TracedRun | None, outcome: Outcome) -> None:
        if self._tracing is None or traced is None:
            return
        try:
            job.signature = self._tracing.end(traced, job.context, outcome)
        except Exception:  # noqa: BLE001 - see the class
            _log.exception("the trace of task %s is not complete", job.signature.uuid)

    def count_end(self, job: Job, outcome: Outcome, took_s: float, *, failed: bool) -> None:
        """
        Count a run that is settled.

        Args:
            job: What ran.
            outcome: Its outcome.
            took_s: Seconds it took.
            failed: Whether its state is FAILURE, also after a success whose result
                could not be stored.
        """
        if self._metrics is None:
            return
        state = "failure" if failed and isinstance(outcome, Succeeded) else _state(outcome)
        try:
            self._metrics.count_end(job.claim.queue, job.signature.name, state, took_s)
        except Exception:  # noqa: BLE001 - see the class
            _log.exception("task %s is not counted", job.signature.uuid)

    def count_unstarted(self, claim: Claim, signature: Signature, failed: Failed) -> None:
        """Count a task that is registered here and did not run: it was canceled, or expired."""
        if self._metrics is not None:
            self._metrics.count_unstarted(claim.queue, signature.name, _state(failed))

    def count_buried(self, moves: Sequence[Move]) -> None:
        """Count the messages that these moves bury because they cannot be read."""
        if self._metrics is not None:
            for move in moves:
                if isinstance(move, Finish) and move.letter is not None:
                    self._metrics.count_unstarted(move.claim.queue, UNKNOWN, "failure")

    def count_redis_error(self, operation: str) -> None:
        """Count an operation that Redis did not answer."""
        if self._metrics is not None:
            self._metrics.count_redis_error(operation)

    def close(self) -> None:
        """Export the last spans: the process ends without the SDK's exit hooks."""
        try:
            if self._tracing is not None:
                self._tracing.flush()
        except Exception:  # noqa: BLE001 - see the class
            _log.exception("the last spans may not be exported")


def _state(outcome: Outcome) -> str:
    if isinstance(outcome, Again):
        return "retry"
    if isinstance(outcome, Failed):
        return "canceled" if outcome.error == CANCELED else "failure"
    return "success"
