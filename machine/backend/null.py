"""
The backend that keeps nothing: results are switched off.

Writing succeeds and does nothing, reading finds nothing. It knows no store,
so whoever waits for a result here is told at once that none will come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from machine.errors import ResultNotFound
from machine.wire.signature import GroupMeta, TaskState


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
