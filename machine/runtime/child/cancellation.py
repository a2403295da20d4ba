"""
Canceled tasks in a worker: dropped before they run, or interrupted while they do.

Whoever cancels a task sets a mark in Redis, which workers look for. A task that
has not started ends at once. One that runs is told, and interrupted where that
is possible; the scripts refuse whatever it returns all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

from machine.errors import MachineError
from machine.execution import Failed
from machine.runtime.child.pool import Job
from machine.runtime.child.session import Session
from machine.wire.states import CANCELED

#: How often running tasks are checked for marks, seconds.
CHECK_S = 1.0
_log = logging.getLogger("machine.worker")


class CancellationWatcher:
    """Looks for the marks of one worker's tasks."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._checked_s = 0.0

    def drop_canceled(self, jobs: Sequence[Job]) -> list[Job]:
        """Settle the jobs whose tasks are canceled, and return the others; never raises."""
        try:
            marked = self._session.find_canceled([job.signature.uuid for job in jobs])
        except MachineError as error:
            _log.warning("cannot look for canceled tasks; they run in vain: %s", error)
            return list(jobs)
        for job in jobs:
            if job.signature.uuid in marked:
                _log.info("task %s %s was canceled", job.signature.name, job.signature.uuid)
                self._session.settle_unrun(job.claim, job.signature, Failed(CANCELED))
        return [job for job in jobs if job.signature.uuid not in marked]

    def cancel_running(self, running: Sequence[Job]) -> None:
        """
        Cancel those of the running jobs that are marked; looks once a second at most.

        Only jobs that are shown as STARTED are looked up: shorter ones end by themselves.
        """
        now_s = perf_counter()
        if now_s - self._checked_s < CHECK_S:
            return
        jobs = [job for job in running if job.shown and not job.context.canceled]
        if not jobs:
            return
        self._checked_s = now_s
        marked = self._session.find_canceled([job.signature.uuid for job in jobs])
        for job in jobs:
            if job.signature.uuid in marked:
                name, uuid = job.signature.name, job.signature.uuid
                _log.info("task %s %s was canceled while it ran", name, uuid)
                job.cancel()
