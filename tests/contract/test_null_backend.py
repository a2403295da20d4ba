"""Results switched off: nothing is written, nothing is found, and waiting says so."""

from __future__ import annotations

import asyncio

import pytest

from machine.errors import ResultNotFound
from machine.ports.backend import NullBackend
from machine.wire.signature import GroupMeta, TaskState


def state(word: str) -> TaskState:
    return TaskState(task_uuid="task_a", state=word, task_name="add")


SWITCHED_OFF = "No result for 'task_a': results are switched off. Set result_backend to keep them."


def test_with_results_off_writing_does_nothing_and_reading_finds_nothing() -> None:
    backend = NullBackend()

    backend.record(state("SUCCESS"))
    backend.record_group(GroupMeta(group_uuid="group_a", task_uuids=["task_a"]))
    asyncio.run(backend.arecord_group(GroupMeta(group_uuid="group_a", task_uuids=["task_a"])))

    assert backend.read(["task_a", "task_b"]) == [None, None]
    assert asyncio.run(backend.aread(["task_a"])) == [None]
    assert backend.read_group("group_a") is None
    backend.purge_state("task_a")
    backend.purge_group("group_a")


@pytest.mark.parametrize("missing_ok", [False, True])
def test_with_results_off_waiting_says_so(missing_ok: bool) -> None:
    async def wait() -> list[TaskState]:
        backend = NullBackend()
        return [s async for s in backend.acompleted(["task_a"], None, missing_ok=missing_ok)]

    with pytest.raises(ResultNotFound) as sync_error:
        list(NullBackend().completed(["task_a"], None, missing_ok=missing_ok))
    with pytest.raises(ResultNotFound) as async_error:
        asyncio.run(wait())

    assert str(sync_error.value) == str(async_error.value) == SWITCHED_OFF


def test_with_results_off_waiting_for_nothing_ends_at_once() -> None:
    assert list(NullBackend().completed([], None)) == []
