"""
The Redis adapter of the backend port.

Reads are plain; the states of a worker's own tasks are written by the
broker's scripts. Waiting is in `watcher`: the server tells, nobody polls.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence

from machine.ports.backend import MOST_ATTEMPTS
from machine.redis.connections import Connections
from machine.redis.watcher import Watcher
from machine.wire.signature import GroupMeta, TaskState
from machine.wire.states import (
    decode_group,
    decode_state,
    encode_ahead,
    encode_group,
    encode_state,
)
from machine.wire.text import format_time

#: What is not finished outlives a long queue, whatever the results' own time, seconds.
_UNFINISHED_S = 86_400
#: Keys in one MGET: a bound on how long the server is busy with it.
_MOST_KEYS = 500


class RedisBackend:
    """
    States and groups on one Redis or Valkey server. See `Backend`.

    Args:
        connections: Where the server is.
        results_expire_s: Seconds a state or group lives after its last change, ≥ 1.
    """

    def __init__(self, connections: Connections, *, results_expire_s: int) -> None:
        self._connections = connections
        self._kept_s = results_expire_s
        self._watcher = Watcher(connections)

    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        commands = _reads(uuids)
        return _states(self._connections.execute(commands)) if commands else []

    async def aread(self, uuids: Sequence[str]) -> list[TaskState | None]:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        commands = _reads(uuids)
        return _states(await links_of(self._connections).execute(commands)) if commands else []

    def record(self, state: TaskState) -> None:
        """
        Write a state with its TTL, keeping the stored creation time, name and attempts.

        For states whose broker is elsewhere: last writer wins, except that a
        stored final state is kept.
        """
        stored = self.read([state.task_uuid])[0]
        if stored and stored.is_completed:
            return
        if stored:
            state.created_at = stored.created_at or state.created_at
            state.task_name = state.task_name or stored.task_name
            state.attempts = [*stored.attempts, *state.attempts][-MOST_ATTEMPTS:]
        state.created_at = state.created_at or format_time(time.time_ns())
        self._set(state.task_uuid, encode_state(state))

    def record_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        self._connections.execute(self._group_commands(meta, due_ns, ahead))

    async def arecord_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        await links_of(self._connections).execute(self._group_commands(meta, due_ns, ahead))

    def _group_commands(
        self, meta: GroupMeta, due_ns: int, ahead: Sequence[TaskState]
    ) -> list[tuple[str | bytes | int, ...]]:
        wait_s = max(0, due_ns - time.time_ns()) // 1_000_000_000
        kept_s = max(self._kept_s, _UNFINISHED_S) + wait_s
        entries = [(meta.group_uuid, encode_group(meta))]
        entries += [(state.task_uuid, encode_ahead(state)) for state in ahead]
        return [("SET", key, document, "NX", "EX", kept_s) for key, document in entries]

    def read_group(self, group_uuid: str) -> GroupMeta | None:
        value = self._connections.execute([("GET", group_uuid)])[0]
        return None if value is None else decode_group(value)

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> Iterator[TaskState]:
        return self._watcher.completed(uuids, timeout_s, missing_ok=missing_ok)

    def acompleted(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> AsyncIterator[TaskState]:
        from machine.redis.awatcher import watcher_of  # noqa: PLC0415 - asyncio where used

        return watcher_of(self._connections).completed(uuids, timeout_s, missing_ok=missing_ok)

    def purge_state(self, uuid: str) -> None:
        self._connections.execute([("DEL", uuid)])

    def purge_group(self, group_uuid: str) -> None:
        self._connections.execute([("DEL", group_uuid)])

    def close(self) -> None:
        self._watcher.close()
        self._connections.close()

    async def aclose(self) -> None:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used
        from machine.redis.awatcher import watcher_of  # noqa: PLC0415 - asyncio where used

        await watcher_of(self._connections).close()
        await links_of(self._connections).close()
        self.close()

    def _set(self, key: str, value: bytes) -> None:
        self._connections.execute([("SET", key, value, "EX", self._kept_s)])


def _reads(uuids: Sequence[str]) -> list[tuple[str, ...]]:
    starts = range(0, len(uuids), _MOST_KEYS)
    return [("MGET", *uuids[start : start + _MOST_KEYS]) for start in starts]


def _states(answers: Sequence[Sequence[bytes | None]]) -> list[TaskState | None]:
    return [
        None if value is None else decode_state(value) for answer in answers for value in answer
    ]
