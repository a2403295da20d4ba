"""The handles of chains and chords: the last result, or the failure of a task before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from machine.errors import ResultNotFound
from machine.ports.backend import Backend
from machine.results.group import Course, GroupResult, Workflow
from machine.results.task import (
    AsyncResult,
    Canceler,
    closing,
    raise_if_failed,
    refuse_inside_a_task,
)
from machine.wire.signature import TaskState
from machine.wire.states import state_results

R_co = TypeVar("R_co", covariant=True)


class _LastResult(Workflow, AsyncResult[R_co]):
    """A result that is the last one of several: any other's failure is its own failure."""

    __slots__ = ("_course",)

    def __init__(
        self,
        uuid: str,
        backend: Backend,
        course: Course,
        task_name: str = "",
        *,
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, task_name, canceler=canceler)
        self._course = course

    @property
    def members(self) -> list[AsyncResult[Any]]:
        """Return a handle for each task, each behind those it follows."""
        return [self._member(uuid) for uuid in self._course.uuids]

    def touch(self) -> list[Any] | None:
        """Look once at all tasks; as `AsyncResult.touch`, and any failure is raised."""
        return _touched(self._verdict(self._backend.read(self._course.uuids)))

    async def atouch(self) -> list[Any] | None:
        """Do what `touch` does, without blocking the event loop."""
        return _touched(self._verdict(await self._backend.aread(self._course.uuids)))

    def as_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> Iterator[AsyncResult[Any]]:
        """Yield each task's result as it ends, well or badly; its ``get()`` is then immediate."""
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._as_completed(timeout)

    def aas_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> AsyncIterator[AsyncResult[Any]]:
        """Do what `as_completed` does, without blocking the event loop."""
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._aas_completed(timeout)

    def _member(self, uuid: str, state: TaskState | None = None) -> AsyncResult[Any]:
        later = uuid in self._course.causes
        handle: AsyncResult[Any] = AsyncResult(
            uuid, self._backend, may_come=later, canceler=self._canceler
        )
        if state is not None:
            handle.take(state)
        return handle

    def _as_completed(self, timeout: float | None) -> Iterator[AsyncResult[Any]]:
        uuids = self._course.uuids
        self._first_look(self._backend.read(uuids))
        left = dict.fromkeys(uuids)
        for state in self._backend.completed(uuids, timeout, missing_ok=True):
            del left[state.task_uuid]
            yield self._member(state.task_uuid, state)
            if state.task_uuid == self.uuid:
                break
        # The others ended before it. What has expired since would be waited for in vain.
        for rest in self._backend.read(list(left)):
            if rest is not None and rest.is_completed:
                yield self._member(rest.task_uuid, rest)

    async def _aas_completed(self, timeout: float | None) -> AsyncIterator[AsyncResult[Any]]:
        uuids = self._course.uuids
        self._first_look(await self._backend.aread(uuids))
        left = dict.fromkeys(uuids)
        async with closing(self._backend.acompleted(uuids, timeout, missing_ok=True)) as states:
            async for state in states:
                del left[state.task_uuid]
                yield self._member(state.task_uuid, state)
                if state.task_uuid == self.uuid:
                    break
        for rest in await self._backend.aread(list(left)):
            if rest is not None and rest.is_completed:
                yield self._member(rest.task_uuid, rest)

    def _verdict(self, states: Sequence[TaskState | None]) -> TaskState | None:
        """
        Return the state that decides the whole, or ``None`` when it is still open.

        A last one that succeeded decides alone. Otherwise the first task that
        failed does, so one that could not run does not hide the one to blame.
        """
        last = states[-1]
        if last is not None and last.is_success:
            return last
        return next((state for state in states if state and state.is_failure), None)

    def _is_news(self, state: TaskState) -> bool:
        return state.is_failure or state.task_uuid == self.uuid

    def _final(self, timeout: float | None) -> TaskState:
        uuids = self._course.uuids
        found = self._first_look(self._backend.read(uuids))
        if found is None:
            for state in self._backend.completed(uuids, timeout, missing_ok=True):
                if self._is_news(state):
                    found = state
                    break
            if found is None or found.is_failure:
                found = self._verdict(self._backend.read(uuids))
        return self._found(found)

    async def _afinal(self, timeout: float | None) -> TaskState:
        uuids = self._course.uuids
        found = self._first_look(await self._backend.aread(uuids))
        if found is None:
            async with closing(self._backend.acompleted(uuids, timeout, missing_ok=True)) as states:
                async for state in states:
                    if self._is_news(state):
                        found = state
                        break
            if found is None or found.is_failure:
                found = self._verdict(await self._backend.aread(uuids))
        return self._found(found)

    def _first_look(self, states: Sequence[TaskState | None]) -> TaskState | None:
        if all(state is None for state in states):
            raise self._nothing_kept(self.uuid)
        return self._verdict(states)

    def _found(self, state: TaskState | None) -> TaskState:
        if state is None:
            raise ResultNotFound(f"The states of {self.uuid!r} expired while they were read.")
        if state.task_uuid == self.uuid:
            self._state = state
        return state


def _touched(state: TaskState | None) -> list[Any] | None:
    return None if state is None else state_results(raise_if_failed(state))


class ChainResult(_LastResult[R_co]):
    """
    The last task's result; any task's failure is raised as that task's error.

    Tasks after the first have no state before they are sent, so waiting
    does not take a missing state for a lost one.

    Attributes:
        steps: A handle for each step: of a task, or of a group.
    """

    __slots__ = ("steps",)

    def __init__(
        self,
        uuid: str,
        backend: Backend,
        course: Course,
        task_name: str = "",
        *,
        steps: Sequence[AsyncResult[Any] | GroupResult[Any]] = (),
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, course, task_name, canceler=canceler)
        self.steps: list[AsyncResult[Any] | GroupResult[Any]] = list(steps)


class ChordResult(_LastResult[R_co]):
    """
    The callback's result; a member's failure is raised as that member's error.

    A callback that has ended decides alone, so members' results may have
    expired by then.

    Attributes:
        group: The members' results.
    """

    __slots__ = ("group",)

    def __init__(
        self,
        uuid: str,
        backend: Backend,
        group: GroupResult[Any],
        course: Course,
        task_name: str = "",
        *,
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, course, task_name, canceler=canceler)
        self.group = group

    @property
    def steps(self) -> list[AsyncResult[Any] | GroupResult[Any]]:
        """Return the handle of the group, and that of the callback alone."""
        return [self.group, self._member(self.uuid)]
