"""
What handles of workflows have in common: all tasks, which follow which, failures, canceling.

Nothing here waits; that is the handles' own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

from machine.errors import ResultNotFound
from machine.ports.backend import Backend
from machine.ports.moves import Canceled
from machine.result_task import Canceler, required
from machine.wire.signature import TaskState


class Course(NamedTuple):
    """
    The tasks of a workflow, and which follow which.

    Attributes:
        uuids: The ids of all, each behind those it follows.
        first: Those that follow none: they are sent at once, the others by workers.
        causes: For each later task, the ids of those it directly follows.
    """

    uuids: Sequence[str]
    first: Sequence[str]
    causes: Mapping[str, Sequence[str]]

    @classmethod
    def of_chain(cls, uuids: Sequence[str]) -> Self:
        """Return the course of tasks one after another."""
        return cls(uuids, uuids[:1], {after: [before] for before, after in pairwise(uuids)})

    @classmethod
    def of_group(cls, uuids: Sequence[str], callback: str = "") -> Self:
        """Return the course of tasks side by side, and perhaps one after all of them."""
        if not callback:
            return cls(uuids, uuids, {})
        return cls([*uuids, callback], uuids, {callback: uuids})


class Workflow:
    """What handles of several tasks have in common."""

    __slots__ = ()
    _backend: Backend
    _canceler: Canceler | None
    _course: Course

    def failures(self) -> list[TaskState]:
        """
        Look once, in one round trip; return the states of the tasks that failed.

        Tasks that never ran because one before them failed are not among them.
        """
        return self._failed(self._backend.read(self._course.uuids))

    async def afailures(self) -> list[TaskState]:
        """Do what `failures` does, without blocking the event loop."""
        return self._failed(await self._backend.aread(self._course.uuids))

    def cancel(self) -> bool:
        """
        Cancel every task of the workflow that has not ended, in one round trip.

        Those that were not sent yet never will be; see `Server.cancel`.

        Returns:
            True when a task is canceled, now or before; false when all had ended.
        """
        first = self._course.first
        return Canceled.DONE in required(self._canceler).cancel_all(first, ahead=self._later())

    async def acancel(self) -> bool:
        """Do what `cancel` does, without blocking the event loop."""
        first = self._course.first
        codes = await required(self._canceler).acancel_all(first, ahead=self._later())
        return Canceled.DONE in codes

    def _later(self) -> list[str]:
        first = set(self._course.first)
        return [uuid for uuid in self._course.uuids if uuid not in first]

    def _failed(self, states: Iterable[TaskState | None]) -> list[TaskState]:
        failed = {state.task_uuid: state for state in states if state and state.is_failure}
        causes = self._course.causes
        return [
            state
            for uuid, state in failed.items()
            if not any(cause in failed for cause in causes.get(uuid, ()))
        ]

    def _nothing_kept(self, what: str) -> ResultNotFound:
        return ResultNotFound(
            f"No state is kept for {what!r} or any task before it: "
            "nothing was sent under these ids, or their results expired."
        )
