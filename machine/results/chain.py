"""
The handles of chains and chords: the last result, or the failure of a task before it.

Only the first tasks have a state from the start; workers send the others. So a missing
state means "not sent yet" as long as any state of the workflow is kept, and "lost" once
none is. That is looked at before waiting, which could otherwise last for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from machine.errors import ResultNotFound
from machine.ports.backend import Backend
from machine.results.group import GroupResult, TaskGraph, Workflow
from machine.results.task import (
    AsyncResult,
    Canceler,
    closing,
    extract_values,
    refuse_inside_a_task,
)
from machine.wire.signature import TaskState

R_co = TypeVar("R_co", covariant=True)


class _LastResult(Workflow, AsyncResult[R_co]):
    """The result of the last of several tasks; the failure of any of them is its failure."""

    __slots__ = ("_graph",)

    def __init__(
        self,
        uuid: str,
        backend: Backend,
        graph: TaskGraph,
        task_name: str = "",
        *,
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, task_name, canceler=canceler)
        self._graph = graph

    @property
    def members(self) -> list[AsyncResult[Any]]:
        """Return a handle for each task, each behind those it follows."""
        return [self._member(uuid) for uuid in self._graph.uuids]

    def touch(self) -> list[Any] | None:
        """Look once at all tasks; as `AsyncResult.touch`, and any failure is raised."""
        return extract_values(self._deciding_state(self._backend.read(self._graph.uuids)))

    async def atouch(self) -> list[Any] | None:
        return extract_values(self._deciding_state(await self._backend.aread(self._graph.uuids)))

    def as_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> Iterator[AsyncResult[Any]]:
        """Yield each task's result as it ends, well or badly; its ``get()`` is then immediate."""
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._as_completed(timeout)

    def aas_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> AsyncIterator[AsyncResult[Any]]:
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._aas_completed(timeout)

    def _member(self, uuid: str, state: TaskState | None = None) -> AsyncResult[Any]:
        later = uuid in self._graph.causes
        handle: AsyncResult[Any] = AsyncResult(
            uuid, self._backend, may_come=later, canceler=self._canceler
        )
        if state is not None:
            handle.take(state)
        return handle

    def _as_completed(self, timeout: float | None) -> Iterator[AsyncResult[Any]]:
        uuids = self._graph.uuids
        self._look_before_waiting(self._backend.read(uuids))
        left = dict.fromkeys(uuids)
        for state in self._backend.completed(uuids, timeout, missing_ok=True):
            del left[state.task_uuid]
            yield self._member(state.task_uuid, state)
            if state.task_uuid == self.uuid:
                break
        # The last task has ended, so the others have too. They are read and not waited for:
        # a state that has expired since would never come.
        for rest in self._backend.read(list(left)):
            if rest is not None and rest.is_completed:
                yield self._member(rest.task_uuid, rest)

    async def _aas_completed(self, timeout: float | None) -> AsyncIterator[AsyncResult[Any]]:
        uuids = self._graph.uuids
        self._look_before_waiting(await self._backend.aread(uuids))
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

    def _deciding_state(self, states: Sequence[TaskState | None]) -> TaskState | None:
        """
        Return the state that decides the whole, or ``None`` when it is still open.

        The last task's success decides alone: states of others may have expired. Else
        the first failure does: each task stands behind those it follows, and a task
        that never ran because another failed has a FAILURE state too.
        """
        last = states[-1]
        if last is not None and last.is_success:
            return last
        return next((state for state in states if state and state.is_failure), None)

    def _is_news(self, state: TaskState) -> bool:
        return state.is_failure or state.task_uuid == self.uuid

    def _final(self, timeout: float | None) -> TaskState:
        uuids = self._graph.uuids
        found = self._look_before_waiting(self._backend.read(uuids))
        if found is None:
            for state in self._backend.completed(uuids, timeout, missing_ok=True):
                if self._is_news(state):
                    found = state
                    break
            if found is None or found.is_failure:
                found = self._deciding_state(self._backend.read(uuids))
        return self._keep_last(found)

    async def _afinal(self, timeout: float | None) -> TaskState:
        uuids = self._graph.uuids
        found = self._look_before_waiting(await self._backend.aread(uuids))
        if found is None:
            async with closing(self._backend.acompleted(uuids, timeout, missing_ok=True)) as states:
                async for state in states:
                    if self._is_news(state):
                        found = state
                        break
            if found is None or found.is_failure:
                found = self._deciding_state(await self._backend.aread(uuids))
        return self._keep_last(found)

    def _look_before_waiting(self, states: Sequence[TaskState | None]) -> TaskState | None:
        if all(state is None for state in states):
            raise self._nothing_kept(self.uuid)
        return self._deciding_state(states)

    def _keep_last(self, state: TaskState | None) -> TaskState:
        if state is None:
            raise ResultNotFound(f"The states of {self.uuid!r} expired while they were read.")
        if state.task_uuid == self.uuid:
            self._state = state
        return state


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
        graph: TaskGraph,
        task_name: str = "",
        *,
        steps: Sequence[AsyncResult[Any] | GroupResult[Any]] = (),
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, graph, task_name, canceler=canceler)
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
        graph: TaskGraph,
        task_name: str = "",
        *,
        canceler: Canceler | None = None,
    ) -> None:
        super().__init__(uuid, backend, graph, task_name, canceler=canceler)
        self.group = group

    @property
    def steps(self) -> list[AsyncResult[Any] | GroupResult[Any]]:
        """Return the handle of the group, and that of the callback alone."""
        return [self.group, self._member(self.uuid)]
