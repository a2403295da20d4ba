"""
What sending returns: a handle that knows an id and can wait for its value.

Handles read through the backend port and never poll; how a backend learns of
a change is its own business. Nothing here sends, and nothing here knows Redis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from machine.backend.base import Backend
from machine.context import running_task
from machine.errors import ResultNotFound, SignatureError, TaskFailed
from machine.signature import TaskState
from machine.wire import state_results

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


def _refuse_inside_a_task(*, allow_in_task: bool) -> None:
    context = running_task.get()
    if context is not None and not allow_in_task:
        raise SignatureError(
            f"Task {context.signature.name!r} waits for the result of another task: it would hold "
            "its worker's slot meanwhile, and all slots waiting is a standstill. Use a chain or a "
            "chord, or say get(allow_in_task=True)."
        )


def _raise_if_failed(state: TaskState) -> TaskState:
    if state.is_failure:
        raise TaskFailed(state.error, uuid=state.task_uuid, task_name=state.task_name)
    return state


def _one_value(values: Sequence[Any]) -> Any:
    """Return nothing, the one value, or all of them as a tuple: what the task itself returned."""
    if len(values) == 1:
        return values[0]
    return tuple(values) if values else None


@asynccontextmanager
async def _closing(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator that may be left early; else only the garbage collector would."""
    try:
        yield source
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


class AsyncResult(Generic[R_co]):
    """
    The result of one task, now or later; made from nothing but an id and a backend.

    Reading does not consume: any number of handles, in any process, may read
    one id until its state expires.
    """

    __slots__ = ("_backend", "_state", "task_name", "uuid")

    def __init__(self, uuid: str, backend: Backend, task_name: str = "") -> None:
        self.uuid = uuid
        self.task_name = task_name
        self._backend = backend
        self._state: TaskState | None = None

    @property
    def id(self) -> str:
        """Return the task's uuid."""
        return self.uuid

    @property
    def state(self) -> TaskState | None:
        """Look once at the state; ``None`` when none is kept. A final state is not read again."""
        if self._state is None or not self._state.is_completed:
            [self._state] = self._backend.read([self.uuid])
        return self._state

    @property
    def values(self) -> list[Any] | None:
        """Look once; all returned values of a task that succeeded, else ``None``."""
        state = self.state
        return state_results(state) if state is not None and state.is_success else None

    def touch(self) -> list[Any] | None:
        """
        Look once, as Machinery's Touch does.

        Returns:
            All values the task returned (an empty list for none), or ``None``
            while it has not ended or no state is kept.

        Raises:
            TaskFailed: It failed; the text is its error.
        """
        state = self.state
        if state is None or not state.is_completed:
            return None
        return state_results(_raise_if_failed(state))

    def results(self, timeout: float | None = None, *, allow_in_task: bool = False) -> list[Any]:
        """
        Wait as `get` does, and return all values as a list, as Machinery's Get does.

        A task that returned nothing gives ``[]``.
        """
        _refuse_inside_a_task(allow_in_task=allow_in_task)
        return state_results(_raise_if_failed(self._final(timeout)))

    def get(self, timeout: float | None = None, *, allow_in_task: bool = False) -> R_co:
        """
        Wait for the end of the task and return what it returned.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.
            allow_in_task: Wait even inside a running task, where every worker's
                slot could end up waiting for a slot.

        Returns:
            The value; ``None`` when the task returned nothing, a tuple when it
            returned several.

        Raises:
            TaskFailed: The task failed; the text is its error, unchanged.
            ResultTimeout: It has not ended within ``timeout``.
            ResultNotFound: No state is kept under this id.
        """
        return cast(R_co, _one_value(self.results(timeout, allow_in_task=allow_in_task)))

    async def aget(self, timeout: float | None = None, *, allow_in_task: bool = False) -> R_co:
        """Do what `get` does, without blocking the event loop."""
        _refuse_inside_a_task(allow_in_task=allow_in_task)
        state = _raise_if_failed(await self._afinal(timeout))
        return cast(R_co, _one_value(state_results(state)))

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aget().__await__()

    def __repr__(self) -> str:
        # The last state seen: printing a handle must not do I/O, nor fail.
        seen = self._state.state if self._state is not None else "not looked at yet"
        return f"<{type(self).__name__} {self.uuid}: {seen}>"

    def _final(self, timeout: float | None) -> TaskState:
        if self._state is None or not self._state.is_completed:
            [self._state] = self._backend.completed([self.uuid], timeout)
        return self._state

    async def _afinal(self, timeout: float | None) -> TaskState:
        if self._state is None or not self._state.is_completed:
            states = self._backend.acompleted([self.uuid], timeout)
            [self._state] = [state async for state in states]
        return self._state


class _WorkflowResult(AsyncResult[R_co]):
    """A result that is the last one of several: any other's failure is its own failure."""

    __slots__ = ("_before",)

    def __init__(
        self, uuid: str, backend: Backend, before: Iterable[str], task_name: str = ""
    ) -> None:
        super().__init__(uuid, backend, task_name)
        self._before = list(before)

    def touch(self) -> list[Any] | None:
        """Look once at all members; as `AsyncResult.touch`, and any failure is raised."""
        state = self._verdict(self._backend.read(self._watched()))
        return None if state is None else state_results(_raise_if_failed(state))

    def _watched(self) -> list[str]:
        return [*self._before, self.uuid]

    def _verdict(self, states: Sequence[TaskState | None]) -> TaskState | None:
        """
        Return the state that decides the whole, or ``None`` when it is still open.

        A last one that succeeded decides alone. Otherwise the first member that
        failed does, before the last one: a callback that could not run repeats
        its member's error in words of its own.
        """
        last = states[-1] if states[-1] is not None and states[-1].is_completed else None
        if last is not None and last.is_success:
            return last
        return next((state for state in states[:-1] if state and state.is_failure), last)

    def _is_news(self, state: TaskState) -> bool:
        return state.is_failure or state.task_uuid == self.uuid

    def _final(self, timeout: float | None) -> TaskState:
        uuids = self._watched()
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
        uuids = self._watched()
        found = self._first_look(await self._backend.aread(uuids))
        if found is None:
            async with _closing(
                self._backend.acompleted(uuids, timeout, missing_ok=True)
            ) as states:
                async for state in states:
                    if self._is_news(state):
                        found = state
                        break
            if found is None or found.is_failure:
                found = self._verdict(await self._backend.aread(uuids))
        return self._found(found)

    def _first_look(self, states: Sequence[TaskState | None]) -> TaskState | None:
        if all(state is None for state in states):
            raise ResultNotFound(
                f"No state is kept for {self.uuid!r} or any task before it: "
                "nothing was sent under these ids, or their results expired."
            )
        return self._verdict(states)

    def _found(self, state: TaskState | None) -> TaskState:
        if state is None:
            raise ResultNotFound(f"The states of {self.uuid!r} expired while they were read.")
        if state.task_uuid == self.uuid:
            self._state = state
        return state


class ChainResult(_WorkflowResult[R_co]):
    """
    The last member's result; any member's failure is raised as that member's error.

    Members after the first have no state before they are sent, so waiting
    does not take a missing state for a lost one.
    """

    __slots__ = ()

    @property
    def members(self) -> list[AsyncResult[Any]]:
        """Return a handle for each member, in order."""
        return [AsyncResult(uuid, self._backend) for uuid in [*self._before, self.uuid]]


class ChordResult(_WorkflowResult[R_co]):
    """
    The callback's result; a member's failure is raised as that member's error.

    A callback that has ended decides alone, so members' results may have
    expired by then.
    """

    __slots__ = ("group",)

    def __init__(
        self, uuid: str, backend: Backend, group: GroupResult[Any], task_name: str = ""
    ) -> None:
        super().__init__(uuid, backend, [member.uuid for member in group], task_name)
        self.group = group


class GroupResult(Generic[R_co]):
    """
    The results of a group, in the order its members were given.

    Attributes:
        group_uuid: The group's id.
        members: A handle for each member.
    """

    __slots__ = ("_backend", "_by_uuid", "group_uuid", "members")

    def __init__(self, group_uuid: str, backend: Backend, uuids: Iterable[str]) -> None:
        self.group_uuid = group_uuid
        self.members: list[AsyncResult[R_co]] = [AsyncResult(uuid, backend) for uuid in uuids]
        self._by_uuid = {member.uuid: member for member in self.members}
        self._backend = backend

    @property
    def id(self) -> str:
        """Return the group's uuid."""
        return self.group_uuid

    def states(self) -> list[TaskState | None]:
        """Look once at all members, in one round trip; ``None`` where no state is kept."""
        return self._backend.read([member.uuid for member in self.members])

    def get(self, timeout: float | None = None, *, allow_in_task: bool = False) -> list[R_co]:
        """
        Wait for all members and return their values in group order.

        Args:
            timeout: Seconds for all of them together; ``None`` waits for ever.
            allow_in_task: As for `AsyncResult.get`.

        Raises:
            TaskFailed: A member failed; raised as soon as the first failure is
                seen, without waiting for the rest.
            ResultTimeout: Not all have ended within ``timeout``.
            ResultNotFound: A member's state is not kept any more.
        """
        for result in self.as_completed(timeout, allow_in_task=allow_in_task):
            result.touch()
        return [cast(R_co, _one_value(member.touch() or ())) for member in self.members]

    async def aget(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> list[R_co]:
        """Do what `get` does, without blocking the event loop."""
        async with _closing(self.aas_completed(timeout, allow_in_task=allow_in_task)) as done:
            async for result in done:
                result.touch()
        return [cast(R_co, _one_value(member.touch() or ())) for member in self.members]

    def as_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> Iterator[AsyncResult[R_co]]:
        """Yield each member's result as it ends, well or badly; its ``get()`` is then immediate."""
        _refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._as_completed(timeout)

    def aas_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> AsyncIterator[AsyncResult[R_co]]:
        """Do what `as_completed` does, without blocking the event loop."""
        _refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._aas_completed(timeout)

    def _ended(self, state: TaskState) -> AsyncResult[R_co]:
        member = self._by_uuid[state.task_uuid]
        member._state = state  # noqa: SLF001 - the same room
        return member

    def _as_completed(self, timeout: float | None) -> Iterator[AsyncResult[R_co]]:
        for state in self._backend.completed(list(self._by_uuid), timeout):
            yield self._ended(state)

    async def _aas_completed(self, timeout: float | None) -> AsyncIterator[AsyncResult[R_co]]:
        async with _closing(self._backend.acompleted(list(self._by_uuid), timeout)) as states:
            async for state in states:
                yield self._ended(state)

    def __await__(self) -> Generator[Any, None, list[R_co]]:
        return self.aget().__await__()

    def __iter__(self) -> Iterator[AsyncResult[R_co]]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        seen = ", ".join(repr(member) for member in self.members[:3])
        more = ", …" if len(self.members) > 3 else ""
        return f"<GroupResult {self.group_uuid}: {len(self.members)} members: {seen}{more}>"
