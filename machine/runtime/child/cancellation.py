"""
Canceled tasks, as a worker meets them: before they run, and while they do.

A mark in Redis says that somebody canceled a task. What has not started ends
here; what runs is told, and interrupted where that can be done. Whatever it
returns all the same is refused by the scripts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

from machine.errors import MachineError
from machine.execution import Failed
from machine.runtime.child.pool import Job
from machine.runtime.child.session import Courier
from machine.wire.states import CANCELED

#: How often the marks of running tasks are looked at, seconds.
LOOK_S = 1.0
_log = logging.getLogger("machine.worker")


class Marks:
    """Looks at the marks of one worker's tasks."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._looked_s = 0.0

    def sift(self, jobs: Sequence[Job]) -> list[Job]:
        """End the jobs whose tasks are canceled, and return the others; never raises."""
        try:
            marked = self._courier.canceled([job.signature.uuid for job in jobs])
        except MachineError as error:
            _log.warning("cannot look for canceled tasks; they run in vain: %s", error)
            return list(jobs)
        for job in jobs:
            if job.signature.uuid in marked:
                _log.info("task %s %s was canceled", job.signature.name, job.signature.uuid)
                self._courier.owe_unrun(job.claim, job.signature, Failed(CANCELED))
        return [job for job in jobs if job.signature.uuid not in marked]

    def look(self, running: Sequence[Job]) -> None:
        """Tell those of these that are canceled, once a second; short ones end unasked."""
        now_s = perf_counter()
        if now_s - self._looked_s < LOOK_S:
            return
        jobs = [job for job in running if job.shown and not job.context.canceled]
        if not jobs:
            return
        self._looked_s = now_s
        marked = self._courier.canceled([job.signature.uuid for job in jobs])
        for job in jobs:
            if job.signature.uuid in marked:
                name, uuid = job.signature.name, job.signature.uuid
                _log.info("task %s %s was canceled while it ran", name, uuid)
                job.cancel()
