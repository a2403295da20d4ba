"""The backend contract: states, groups, and waiting without polling."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from machine.errors import ResultNotFound, ResultTimeout
from machine.wire.signature import GroupMeta, TaskResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from machine.wire.signature import TaskState
    from tests.contract.conftest import Bench

CREATED = "2026-11-20T15:15:27.451306799Z"


def record(bench: Bench, name: str, word: str) -> TaskState:
    """Record a state of ours and return it."""
    state = bench.state(bench.uuid(name), word)
    bench.backend.record(state)
    return state


async def gathered(bench: Bench, uuids: list[str], timeout_s: float | None, **how: bool) -> list:
    """Return what `acompleted` yields."""
    return [state async for state in bench.backend.acompleted(uuids, timeout_s, **how)]


def waited(bench: Bench, uuids: list[str], timeout_s: float | None, **how: bool) -> list:
    """Return what `completed` yields."""
    return list(bench.backend.completed(uuids, timeout_s, **how))


def awaited(bench: Bench, uuids: list[str], timeout_s: float | None, **how: bool) -> list:
    """Return what `acompleted` yields, on a loop of its own."""
    return asyncio.run(gathered(bench, uuids, timeout_s, **how))


both_ways = pytest.mark.parametrize("wait", [waited, awaited], ids=["sync", "async"])


# -- states ------------------------------------------------------------------------------------
def test_a_state_is_read_as_it_was_recorded(bench: Bench) -> None:
    states = [record(bench, name, word) for name, word in (("a", "STARTED"), ("b", "SUCCESS"))]

    assert bench.backend.read([bench.uuid("a"), bench.uuid("b")]) == states


def test_a_state_nobody_wrote_is_none(bench: Bench) -> None:
    state = record(bench, "a", "PENDING")

    assert bench.backend.read([bench.uuid("x"), bench.uuid("a"), bench.uuid("x")]) == [
        None,
        state,
        None,
    ]


def test_reading_nothing_returns_nothing(bench: Bench) -> None:
    assert bench.backend.read([]) == []
    assert asyncio.run(bench.backend.aread([])) == []


def test_reading_without_blocking_reads_the_same(bench: Bench) -> None:
    state = record(bench, "a", "FAILURE")

    assert asyncio.run(bench.backend.aread([bench.uuid("a"), bench.uuid("x")])) == [state, None]


def test_a_thousand_states_are_read_in_order(bench: Bench) -> None:
    names = [f"n{i}" for i in range(1000)]
    bench.send(*names)

    states = bench.backend.read([bench.uuid(name) for name in names])

    assert [state and state.task_uuid for state in states] == [bench.uuid(name) for name in names]


def test_results_keep_their_types_and_digits(bench: Bench) -> None:
    state = bench.state(bench.uuid("a"), "SUCCESS")
    state.results = [TaskResult("uint64", 2**63), TaskResult("[]string", ["<ü>", ""])]

    bench.backend.record(state)

    (read,) = bench.backend.read([bench.uuid("a")])
    assert read is not None
    assert read.results == state.results


def test_a_later_state_keeps_the_creation_time_and_the_name(bench: Bench) -> None:
    first = record(bench, "a", "PENDING")
    later = bench.state(bench.uuid("a"), "SUCCESS")
    later.created_at, later.task_name = "2030-01-01T00:00:00Z", ""

    bench.backend.record(later)

    (read,) = bench.backend.read([bench.uuid("a")])
    assert read is not None
    assert (read.state, read.created_at, read.task_name) == (
        "SUCCESS",
        first.created_at,
        first.task_name,
    )


@pytest.mark.parametrize("word", ["SUCCESS", "FAILURE"])
@pytest.mark.parametrize("later", ["STARTED", "SUCCESS", "FAILURE"])
def test_the_first_final_state_wins(bench: Bench, word: str, later: str) -> None:
    first = record(bench, "a", word)

    record(bench, "a", later)

    assert bench.backend.read([bench.uuid("a")]) == [first]


def test_a_purged_state_is_gone_and_may_be_purged_again(bench: Bench) -> None:
    record(bench, "a", "SUCCESS")

    bench.backend.purge_state(bench.uuid("a"))
    bench.backend.purge_state(bench.uuid("a"))

    assert bench.backend.read([bench.uuid("a")]) == [None]


# -- groups ------------------------------------------------------------------------------------
def test_a_group_is_read_as_it_was_recorded(bench: Bench) -> None:
    uuids = [bench.uuid(name) for name in "ab"]
    meta = GroupMeta(group_uuid=bench.group(), task_uuids=uuids, created_at=CREATED)

    bench.backend.record_group(meta)

    assert bench.backend.read_group(bench.group()) == meta


def test_a_group_that_is_there_stays_as_it_is(bench: Bench) -> None:
    first = GroupMeta(group_uuid=bench.group(), task_uuids=["x"], created_at=CREATED)
    second = GroupMeta(group_uuid=bench.group(), task_uuids=["y"], created_at=CREATED)

    bench.backend.record_group(first)
    asyncio.run(bench.backend.arecord_group(second))

    assert bench.backend.read_group(bench.group()) == first


def test_a_group_recorded_without_blocking_is_the_same(bench: Bench) -> None:
    meta = GroupMeta(group_uuid=bench.group(), task_uuids=["x"], created_at=CREATED)

    asyncio.run(bench.backend.arecord_group(meta))

    assert bench.backend.read_group(bench.group()) == meta


def test_a_group_nobody_recorded_is_none(bench: Bench) -> None:
    assert bench.backend.read_group(bench.group()) is None


def test_purging_a_group_keeps_its_members(bench: Bench) -> None:
    state = record(bench, "a", "SUCCESS")
    bench.backend.record_group(GroupMeta(group_uuid=bench.group(), task_uuids=[state.task_uuid]))

    bench.backend.purge_group(bench.group())

    assert bench.backend.read_group(bench.group()) is None
    assert bench.backend.read([state.task_uuid]) == [state]


# -- waiting -----------------------------------------------------------------------------------
@both_ways
def test_what_has_ended_is_yielded_at_once(bench: Bench, wait: Callable[..., list]) -> None:
    states = [record(bench, "a", "SUCCESS"), record(bench, "b", "FAILURE")]

    found = wait(bench, [bench.uuid("a"), bench.uuid("b")], 0)

    assert sorted(found, key=lambda state: state.task_uuid) == states


@both_ways
def test_waiting_for_nothing_ends_at_once(bench: Bench, wait: Callable[..., list]) -> None:
    assert wait(bench, [], None) == []


@both_ways
def test_an_id_asked_for_twice_is_yielded_once(bench: Bench, wait: Callable[..., list]) -> None:
    state = record(bench, "a", "SUCCESS")

    assert wait(bench, [bench.uuid("a")] * 2, 5) == [state]


@both_ways
def test_waiting_too_long_is_a_timeout(bench: Bench, wait: Callable[..., list]) -> None:
    record(bench, "a", "STARTED")

    with pytest.raises(ResultTimeout, match="Timeout reached"):
        wait(bench, [bench.uuid("a")], 0.01)


@both_ways
def test_waiting_no_time_at_all_looks_once(bench: Bench, wait: Callable[..., list]) -> None:
    record(bench, "a", "STARTED")

    with pytest.raises(ResultTimeout, match="Timeout reached"):
        wait(bench, [bench.uuid("a")], 0)


def test_what_ended_is_yielded_before_the_timeout(bench: Bench) -> None:
    done = record(bench, "a", "SUCCESS")
    record(bench, "b", "PENDING")

    results = bench.backend.completed([bench.uuid("b"), bench.uuid("a")], 0.01)

    assert next(results) == done
    with pytest.raises(ResultTimeout, match="Timeout reached"):
        next(results)


def test_what_ended_is_yielded_before_the_timeout_on_a_loop_too(bench: Bench) -> None:
    done = record(bench, "a", "SUCCESS")
    record(bench, "b", "PENDING")

    async def run() -> None:
        results = bench.backend.acompleted([bench.uuid("b"), bench.uuid("a")], 0.01)
        assert await anext(results) == done
        with pytest.raises(ResultTimeout, match="Timeout reached"):
            await anext(results)

    asyncio.run(run())


@both_ways
def test_an_id_without_a_state_is_not_found(bench: Bench, wait: Callable[..., list]) -> None:
    record(bench, "a", "PENDING")
    missing = bench.uuid("missing")

    with pytest.raises(ResultNotFound, match=missing):
        wait(bench, [bench.uuid("a"), missing], 5)


@both_ways
def test_an_id_that_is_still_to_come_is_waited_for(bench: Bench, wait: Callable[..., list]) -> None:
    with pytest.raises(ResultTimeout, match="Timeout reached"):
        wait(bench, [bench.uuid("a")], 0.01, missing_ok=True)


@both_ways
def test_a_waiter_is_told_when_a_worker_finishes(bench: Bench, wait: Callable[..., list]) -> None:
    claim = bench.take_one("a")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, bench, [bench.uuid("a")], 10)
        bench.make(bench.finish(claim))
        found = waiting.result()

    assert found == [bench.state(bench.uuid("a"), "SUCCESS")]


@both_ways
def test_a_waiter_is_told_of_a_state_that_was_missing(
    bench: Bench, wait: Callable[..., list]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, bench, [bench.uuid("a")], 10, missing_ok=True)
        record(bench, "a", "PENDING")
        state = record(bench, "a", "SUCCESS")
        found = waiting.result()

    assert found == [state]


def test_results_are_yielded_as_they_end_not_as_they_were_asked_for(bench: Bench) -> None:
    bench.send("a", "b", "c")
    uuids = [bench.uuid(name) for name in "abc"]
    found = []

    record(bench, "c", "SUCCESS")
    for state in bench.backend.completed(uuids, 10):
        found.append(state.task_uuid)
        following = {"c": "a", "a": "b"}.get(found[-1].rpartition("_")[2])
        if following:
            record(bench, following, "SUCCESS")

    assert found == [bench.uuid(name) for name in "cab"]


def test_results_are_yielded_as_they_end_on_a_loop_too(bench: Bench) -> None:
    bench.send("a", "b")
    uuids = [bench.uuid(name) for name in "ab"]

    async def run() -> list[str]:
        found = []
        record(bench, "b", "SUCCESS")
        async for state in bench.backend.acompleted(uuids, 10):
            found.append(state.task_uuid)
            if len(found) == 1:
                record(bench, "a", "FAILURE")
        return found

    assert asyncio.run(run()) == [bench.uuid("b"), bench.uuid("a")]


def test_waiting_does_not_block_the_loop(bench: Bench) -> None:
    bench.send("a")

    async def run() -> list[TaskState]:
        waiting = asyncio.ensure_future(gathered(bench, [bench.uuid("a")], 10))
        await asyncio.sleep(0)  # let it begin
        record(bench, "a", "SUCCESS")
        return await waiting

    assert asyncio.run(run()) == [bench.state(bench.uuid("a"), "SUCCESS")]


def test_many_threads_wait_at_the_same_time(bench: Bench) -> None:
    names = [f"n{i}" for i in range(8)]
    bench.send(*names)
    ready = threading.Barrier(len(names) + 1)

    def wait(name: str) -> list[TaskState]:
        ready.wait(10)
        return waited(bench, [bench.uuid(name), bench.uuid("n0")], 10)

    with ThreadPoolExecutor(len(names)) as pool:
        waiting = [pool.submit(wait, name) for name in names]
        ready.wait(10)
        for name in reversed(names):
            record(bench, name, "SUCCESS")
        found = [{state.task_uuid for state in one.result()} for one in waiting]

    assert found == [{bench.uuid(name), bench.uuid("n0")} for name in names]


def test_giving_up_early_leaves_the_backend_usable(bench: Bench) -> None:
    done = record(bench, "a", "SUCCESS")
    bench.send("b")
    uuids = [bench.uuid("a"), bench.uuid("b")]

    results = bench.backend.completed(uuids, 10)
    first = next(iter(results))
    results.close()  # type: ignore[attr-defined]
    record(bench, "b", "FAILURE")

    assert first == done
    assert len(waited(bench, uuids, 10)) == 2
