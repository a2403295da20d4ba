"""The port of the result store, and the store for those who keep no results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from machine.errors import ResultNotFound
from machine.wire.signature import GroupMeta, TaskState

#: Earlier attempts that a state tells of: as many as these bytes hold, or as these many.
MOST_HISTORY_BYTES = 16_384
MOST_ATTEMPTS = 20


class Backend(Protocol):
    """States, values, groups. Errors as for the broker."""

    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Return each task's state, ``None`` where none is kept; one round trip."""
        ...

    async def aread(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Do what `read` does, without blocking the event loop."""
        ...

    def record(self, state: TaskState) -> None:
        """
        Write a state with its TTL, keeping the stored creation time, name and attempts.

        A stored final state is kept: the first one wins.
        """
        ...

    def record_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """
        Write a group's meta unless it is there already; one round trip.

        ``ahead`` are states of members that other tasks send later
        (`wire.encode_ahead`), each written where none is. The meta outlives
        ``due_ns``, Unix nanoseconds before which its last member will not start, by a
        day at least; the members' ends then keep it alive.
        """
        ...

    async def arecord_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """Do what `record_group` does, without blocking the event loop."""
        ...

    def read_group(self, group_uuid: str) -> GroupMeta | None:
        """Return a group's meta, or ``None``."""
        ...

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> Iterator[TaskState]:
        """
        Yield each task's final state once, as it becomes final; nothing is polled.

        Args:
            uuids: Any number; read in one round trip, then only when they change.
            timeout_s: Seconds for all of them together; ``None`` waits for ever.
            missing_ok: Whether an id without a state is one that is still to come
                (a chain's later members) rather than one that is gone.

        Raises:
            ResultTimeout: The time is up.
            ResultNotFound: An id has no state, and ``missing_ok`` is false.

        Safe from any number of threads: they share one connection.
        """
        ...

    def acompleted(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> AsyncIterator[TaskState]:
        """Do what `completed` does, without blocking the event loop."""
        ...

    def purge_state(self, uuid: str) -> None:
        """Forget a task's state."""
        ...

    def purge_group(self, group_uuid: str) -> None:
        """Forget a group's meta; the members' states stay."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...

    async def aclose(self) -> None:
        """Close every connection, those of the running event loop included."""
        ...


class NullBackend:
    """A `Backend` without a memory; safe from any number of threads."""

    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Return ``None`` for each id."""
        return [None] * len(uuids)

    async def aread(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Return ``None`` for each id."""
        return self.read(uuids)

    def record(self, state: TaskState) -> None:
        """Do nothing."""

    def record_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """Do nothing."""

    async def arecord_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """Do nothing."""

    def read_group(self, group_uuid: str) -> GroupMeta | None:  # noqa: ARG002 - the port's shape
        """Return ``None``."""
        return None

    def completed(
        self,
        uuids: Sequence[str],
        timeout_s: float | None,  # noqa: ARG002 - the port's shape
        *,
        missing_ok: bool = False,  # noqa: ARG002 - nothing is ever to come
    ) -> Iterator[TaskState]:
        """Raise `ResultNotFound` for the first id; yield nothing for no ids."""
        for uuid in uuids:
            raise _switched_off(uuid)
        yield from ()

    async def acompleted(
        self,
        uuids: Sequence[str],
        timeout_s: float | None,
        *,
        missing_ok: bool = False,
    ) -> AsyncIterator[TaskState]:
        """Raise `ResultNotFound` for the first id; yield nothing for no ids."""
        for state in self.completed(uuids, timeout_s, missing_ok=missing_ok):
            yield state  # pragma: no cover - there is never one

    def purge_state(self, uuid: str) -> None:
        """Do nothing."""

    def purge_group(self, group_uuid: str) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Close nothing: there is no connection."""

    def close(self) -> None:
        """Do nothing."""


def _switched_off(uuid: str) -> ResultNotFound:
    return ResultNotFound(
        f"No result for '{uuid}': results are switched off. Set result_backend to keep them."
    )
