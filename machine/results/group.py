"""The handle of a group, and what the handles of groups, chains and chords share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

from machine.errors import ResultNotFound
from machine.ports.backend import Backend
from machine.ports.moves import Canceled
from machine.results.task import (
    AsyncResult,
    Canceler,
    closing,
    one_value,
    raise_if_failed,
    refuse_inside_a_task,
    require_canceler,
)
from machine.wire.signature import State, TaskState
from machine.wire.states import decode_results


class TaskGraph(NamedTuple):
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
        """Return the graph of tasks one after another."""
        return cls(uuids, uuids[:1], {after: [before] for before, after in pairwise(uuids)})

    @classmethod
    def of_group(cls, uuids: Sequence[str], callback: str = "") -> Self:
        """Return the graph of tasks side by side, and perhaps one after all of them."""
        if not callback:
            return cls(uuids, uuids, {})
        return cls([*uuids, callback], uuids, {callback: uuids})


class Workflow:
    """What handles of several tasks have in common."""

    __slots__ = ()
    _backend: Backend
    _canceler: Canceler | None
    _graph: TaskGraph

    def failures(self) -> list[TaskState]:
        """
        Look once, in one round trip; return the states of the tasks that failed.

        Tasks that never ran because one before them failed are not among them.
        """
        return self._first_failures(self._backend.read(self._graph.uuids))

    async def afailures(self) -> list[TaskState]:
        return self._first_failures(await self._backend.aread(self._graph.uuids))

    def cancel(self) -> bool:
        """
        Cancel every task of the workflow that has not ended, in one round trip.

        Those that were not sent yet never will be; see `Server.cancel`.

        Returns:
            True when a task is canceled, now or before; false when all had ended.
        """
        first = self._graph.first
        codes = require_canceler(self._canceler).cancel_all(first, ahead=self._list_later())
        return Canceled.DONE in codes

    async def acancel(self) -> bool:
        first = self._graph.first
        codes = await require_canceler(self._canceler).acancel_all(first, ahead=self._list_later())
        return Canceled.DONE in codes

    def _list_later(self) -> list[str]:
        first = set(self._graph.first)
        return [uuid for uuid in self._graph.uuids if uuid not in first]

    def _first_failures(self, states: Iterable[TaskState | None]) -> list[TaskState]:
        """Return the failures that no other failure caused."""
        failed = {state.task_uuid: state for state in states if state and state.is_failure}
        causes = self._graph.causes
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


R_co = TypeVar("R_co", covariant=True)


class GroupProgress(NamedTuple):
    """How many members a group has, how many have ended, failed among these, and run right now."""

    total: int
    ended: int
    failed: int
    running: int


class GroupResult(Workflow, Generic[R_co]):
    """
    The results of a group, in the order its members were given.

    Of a member that is itself a workflow, the task that ends it is the member; where
    it ends in a group, each task of that group is one.

    Args:
        group_uuid: The group's id.
        backend: Where the states are.
        uuids: The members' ids.
        graph: All tasks of the workflow that this group ends; any failure among
            them is the group's. The members alone by default.
        may_come: Whether members may be sent later, so that a missing state is not
            taken for a lost one.
        steps: Handles of the workflow's steps, the last one this group's.
        canceler: Cancels the tasks.

    Attributes:
        group_uuid: The group's id.
        members: A handle for each member.
    """

    __slots__ = (
        "_backend",
        "_by_uuid",
        "_canceler",
        "_graph",
        "_may_come",
        "_steps",
        "group_uuid",
        "members",
    )

    def __init__(
        self,
        group_uuid: str,
        backend: Backend,
        uuids: Iterable[str],
        *,
        graph: TaskGraph | None = None,
        may_come: bool = False,
        steps: Sequence[AsyncResult[Any] | GroupResult[Any]] = (),
        canceler: Canceler | None = None,
    ) -> None:
        self.group_uuid = group_uuid
        self.members: list[AsyncResult[R_co]] = [
            AsyncResult(uuid, backend, may_come=may_come, canceler=canceler) for uuid in uuids
        ]
        self._by_uuid = {member.uuid: member for member in self.members}
        self._backend = backend
        self._canceler = canceler
        self._graph = graph or TaskGraph.of_group(list(self._by_uuid))
        self._may_come = may_come
        self._steps = list(steps)

    @classmethod
    def of_sent(
        cls, group_uuid: str, backend: Backend, *, canceler: Canceler | None = None
    ) -> Self:
        """
        Return the results of a group that anybody sent: its members are read from the backend.

        Raises:
            ResultNotFound: No members are kept under this id.
        """
        meta = backend.read_group(group_uuid)
        if meta is None:
            raise ResultNotFound(
                f"No group is kept under {group_uuid!r}: it was never sent, or it expired."
            )
        return cls(group_uuid, backend, meta.task_uuids, may_come=meta.nested, canceler=canceler)

    @property
    def id(self) -> str:
        """Return the group's uuid."""
        return self.group_uuid

    @property
    def steps(self) -> list[AsyncResult[Any] | GroupResult[Any]]:
        """Return a handle for each step of the workflow; the group itself when that is all."""
        return [*self._steps] or [self]

    # -- looking ---------------------------------------------------------------------------
    def states(self) -> list[TaskState | None]:
        """Look once at all members, in one round trip; ``None`` where no state is kept."""
        return self._backend.read(self._uuids())

    async def astates(self) -> list[TaskState | None]:
        return await self._backend.aread(self._uuids())

    def progress(self) -> GroupProgress:
        """Look once at all members, in one round trip, and count them."""
        return _count_members(self.states())

    async def aprogress(self) -> GroupProgress:
        return _count_members(await self.astates())

    def touch(self) -> list[R_co] | None:
        """
        Look once at all tasks.

        Returns:
            The values in group order, or ``None`` while a member has not ended.

        Raises:
            TaskFailed: A task of the workflow failed.
        """
        return self._extract_all(self._backend.read(self._graph.uuids))

    async def atouch(self) -> list[R_co] | None:
        return self._extract_all(await self._backend.aread(self._graph.uuids))

    # -- waiting ---------------------------------------------------------------------------
    def get(self, timeout: float | None = None, *, allow_in_task: bool = False) -> list[R_co]:
        """
        Wait for all members and return their values in group order.

        Args:
            timeout: Seconds for all of them together; ``None`` waits for ever.
            allow_in_task: As for `AsyncResult.get`.

        Raises:
            TaskFailed: A member failed, or a task before them; raised as soon as the
                first failure is seen, without waiting for the rest.
            ResultTimeout: Not all have ended within ``timeout``.
            ResultNotFound: A member's state is not kept any more.
        """
        refuse_inside_a_task(allow_in_task=allow_in_task)
        if self._is_wider():
            self._require_any_state(self._backend.read(self._graph.uuids))
        left = set(self._by_uuid)
        watched = self._backend.completed(self._graph.uuids, timeout, missing_ok=self._may_come)
        for state in watched if left else ():
            if state.is_failure and self._is_wider():
                # Perhaps it never ran because another failed: raise the first one in order.
                self._raise_first_failure(self._backend.read(self._graph.uuids))
            if self._take_final(state, left):
                break
        return self._values()

    async def aget(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> list[R_co]:
        refuse_inside_a_task(allow_in_task=allow_in_task)
        if self._is_wider():
            self._require_any_state(await self._backend.aread(self._graph.uuids))
        left = set(self._by_uuid)
        async with closing(
            self._backend.acompleted(self._graph.uuids, timeout, missing_ok=self._may_come)
        ) as watched:
            async for state in watched:
                if state.is_failure and self._is_wider():
                    self._raise_first_failure(await self._backend.aread(self._graph.uuids))
                if self._take_final(state, left):
                    break
        return self._values()

    def as_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> Iterator[AsyncResult[R_co]]:
        """Yield each member's result as it ends, well or badly; its ``get()`` is then immediate."""
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._as_completed(timeout)

    def aas_completed(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> AsyncIterator[AsyncResult[R_co]]:
        """Yield as `as_completed` does, without blocking the event loop."""
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return self._aas_completed(timeout)

    def _as_completed(self, timeout: float | None) -> Iterator[AsyncResult[R_co]]:
        if self._is_wider():
            self._require_any_state(self._backend.read(self._graph.uuids))
        uuids = self._uuids()
        for state in self._backend.completed(uuids, timeout, missing_ok=self._may_come):
            yield self._take_ended(state)

    async def _aas_completed(self, timeout: float | None) -> AsyncIterator[AsyncResult[R_co]]:
        if self._is_wider():
            self._require_any_state(await self._backend.aread(self._graph.uuids))
        async with closing(
            self._backend.acompleted(self._uuids(), timeout, missing_ok=self._may_come)
        ) as states:
            async for state in states:
                yield self._take_ended(state)

    # -- the parts ---------------------------------------------------------------------------
    def _uuids(self) -> list[str]:
        return list(self._by_uuid)

    def _is_wider(self) -> bool:
        """Say whether the graph has more tasks than the members: those that come before them."""
        return len(self._graph.uuids) > len(self._by_uuid)

    def _require_any_state(self, states: Sequence[TaskState | None]) -> None:
        if all(state is None for state in states):
            raise self._nothing_kept(self.group_uuid)

    def _raise_first_failure(self, states: Sequence[TaskState | None]) -> None:
        for state in states:
            if state is not None:
                raise_if_failed(state)

    def _take_ended(self, state: TaskState) -> AsyncResult[R_co]:
        member = self._by_uuid[state.task_uuid]
        member.take(state)
        return member

    def _take_final(self, state: TaskState, left: set[str]) -> bool:
        """Keep a final state, or raise its failure; say whether all members have ended."""
        raise_if_failed(state)
        if state.task_uuid in left:
            self._take_ended(state)
            left.remove(state.task_uuid)
        return not left

    def _values(self) -> list[R_co]:
        return [cast(R_co, one_value(member.touch() or ())) for member in self.members]

    def _extract_all(self, states: Sequence[TaskState | None]) -> list[R_co] | None:
        self._raise_first_failure(states)
        of_members = {state.task_uuid: state for state in states if state and state.is_success}
        if any(uuid not in of_members for uuid in self._by_uuid):
            return None
        found = [of_members[uuid] for uuid in self._by_uuid]
        return [cast(R_co, one_value(decode_results(state))) for state in found]

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


def _count_members(states: Sequence[TaskState | None]) -> GroupProgress:
    kept = [state for state in states if state is not None]
    return GroupProgress(
        total=len(states),
        ended=sum(state.is_completed for state in kept),
        failed=sum(state.is_failure for state in kept),
        running=sum(state.state == State.STARTED for state in kept),
    )
