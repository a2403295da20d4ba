"""Callers that wait: without asking again and again, in threads and on event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import ResultNotFound, ResultTimeout, Signature, TaskFailed, chord, group

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def reads(raw: redis.Redis) -> int:
    """Return how many times anybody read states."""
    stats = raw.info("commandstats")
    return sum(
        stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "mget", "exists")
    )


def wait_in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread that waits; return it, and where it puts what it gets."""
    got: list[Any] = []

    def wait() -> None:
        try:
            got.append(call())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


@pytest.fixture
def add(yard: Yard) -> Any:
    """Return a registered task."""
    return yard.task(lambda a, b: a + b, name="add")


def test_waiting_reads_once_and_then_only_what_has_changed(
    yard: Yard, add: Any, wait_until: Callable[..., object]
) -> None:
    yard.child()
    results = [add.send(number, 1) for number in range(10)]
    before = reads(yard.raw)
    waiting = [wait_in_thread(result.get) for result in results]
    wait_until(lambda: reads(yard.raw) >= before + 1, 5, "the callers have read")
    looked_at = yard.raw.client_list()
    settled = reads(yard.raw)
    # Other commands pass meanwhile; a poller would have read again.
    for _ in range(200):
        yard.raw.ping()
    idle = reads(yard.raw)

    yard.run()
    for thread, _ in waiting:
        thread.join(10)

    assert [got for _, got in waiting] == [[number + 1] for number in range(10)]
    assert idle - settled <= 10
    assert reads(yard.raw) - before <= 60
    assert sum("t" in client["flags"] for client in looked_at) == 1


def test_a_timeout_says_what_machinery_says(yard: Yard, add: Any) -> None:
    result = add.send(1, 1)

    with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
        result.get(timeout=0.05)

    yard.run()
    assert result.get(timeout=5) == 2


def test_a_timeout_of_one_waiter_disturbs_no_other(yard: Yard, add: Any) -> None:
    slow, quick = add.send(1, 1), add.send(2, 2)
    patient, got = wait_in_thread(lambda: slow.get(timeout=10))

    with pytest.raises(ResultTimeout):
        quick.get(timeout=0.05)
    yard.run()
    patient.join(10)

    assert got == [2]
    assert quick.get(timeout=5) == 4


def test_a_short_wait_ends_before_a_longer_one(yard: Yard, add: Any) -> None:
    ended: list[str] = []

    def wait(name: str, timeout_s: float) -> None:
        with pytest.raises(ResultTimeout):
            add.send(1, 1).get(timeout=timeout_s)
        ended.append(name)

    threads = [
        threading.Thread(target=wait, args=("long", 2.0)),
        threading.Thread(target=wait, args=("short", 0.05)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    yard.run()

    assert ended == ["short", "long"]


def test_touch_looks_once(yard: Yard, add: Any) -> None:
    result = add.send(1, 1)
    early = result.touch()

    yard.run()

    assert early is None
    assert result.touch() == [2]


def test_many_waits_of_many_threads_share_one_connection(
    yard: Yard, add: Any, raw: redis.Redis
) -> None:
    results = [add.send(number, 1) for number in range(60)]
    waiting = [wait_in_thread(lambda r=result: r.get(timeout=10)) for result in results]

    yard.run()
    for thread, _ in waiting:
        thread.join(10)

    assert [got for _, got in waiting] == [[number + 1] for number in range(60)]
    tracking = [client for client in raw.client_list() if "t" in client["flags"]]
    assert len(tracking) == 1


def test_a_state_that_vanishes_ends_the_wait(
    yard: Yard, add: Any, wait_until: Callable[..., object]
) -> None:
    result = add.send(1, 1)
    before = reads(yard.raw)
    thread, got = wait_in_thread(lambda: result.get(timeout=10))
    wait_until(lambda: reads(yard.raw) > before, 5, "the caller has read")

    yard.server.purge_state(result.uuid)
    thread.join(10)

    assert isinstance(got[0], ResultNotFound)
    yard.run()


def test_group_members_are_yielded_as_they_end(yard: Yard, add: Any) -> None:
    result = group(add.s(number, 0) for number in range(5)).send()
    yard.run()

    values = {done.get() for done in result.as_completed(timeout=5)}

    assert values == {0, 1, 2, 3, 4}


def test_a_chain_that_fails_early_ends_the_wait_at_once(yard: Yard, add: Any) -> None:
    def fail() -> None:
        raise RuntimeError("early")

    result = (yard.task(fail).s() | add.partial(1)).send()
    thread, got = wait_in_thread(lambda: result.get(timeout=10))

    yard.run()
    thread.join(10)

    assert isinstance(got[0], TaskFailed)
    assert str(got[0]) == "early"


# -- asyncio -----------------------------------------------------------------------------------


def on_loop(yard: Yard, work: Callable[[], Any]) -> Any:
    """Run a coroutine while a child works in a thread."""
    child = yard.child()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            child.run_once(0.01)

    working = threading.Thread(target=run)
    working.start()

    async def whole() -> Any:
        try:
            return await work()
        finally:
            await yard.server.backend.aclose()  # type: ignore[union-attr]

    try:
        return asyncio.run(whole())
    finally:
        stop.set()
        working.join(10)


def test_sending_and_waiting_on_an_event_loop(yard: Yard, add: Any) -> None:
    async def work() -> Any:
        result = await add.asend(1, 1)
        return await result

    assert on_loop(yard, work) == 2


def test_a_hundred_waits_on_one_event_loop_share_one_connection(yard: Yard, add: Any) -> None:
    counted: list[int] = []

    async def work() -> Any:
        results = [await add.asend(number, 1) for number in range(100)]
        waits = [asyncio.create_task(result.aget(timeout=10)) for result in results]
        await asyncio.sleep(0)
        values = await asyncio.gather(*waits)
        clients = await asyncio.to_thread(yard.raw.client_list)
        counted.append(sum("t" in client["flags"] for client in clients))
        return values

    assert on_loop(yard, work) == [number + 1 for number in range(100)]
    assert counted == [1]


def test_workflows_on_an_event_loop(yard: Yard, add: Any) -> None:
    total = yard.task(lambda *numbers: sum(numbers), name="total")

    async def work() -> Any:
        chained = await (add.s(1, 1) | add.partial(5)).asend()
        grouped = await group(add.s(1, 2), add.s(3, 4)).asend()
        joined = await chord(group(add.s(1, 1), add.s(5, 5)), total.partial()).asend()
        members = [r.get() async for r in grouped.aas_completed(timeout=10)]
        return await chained, await grouped, await joined, sorted(members)

    assert on_loop(yard, work) == (7, [3, 7], 12, [3, 7])


def test_timeouts_and_failures_on_an_event_loop(yard: Yard) -> None:
    async def fail() -> None:
        raise RuntimeError("boom")

    yard.task(fail, name="fail")
    later = Signature(name="fail", eta_ns=yard.clock.now_ns() + 3_600_000_000_000)

    async def work() -> None:
        with pytest.raises(TaskFailed, match=r"^boom$"):
            await (await yard.server.asend_task(Signature(name="fail"))).aget(timeout=10)
        with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
            await (await yard.server.asend_task(later)).aget(timeout=0.05)
        with pytest.raises(ResultNotFound):
            await yard.server.result("task_unknown").aget(timeout=5)

    on_loop(yard, work)
    yard.raw.delete(yard.delayed_key)


def test_a_short_wait_ends_before_a_longer_one_on_an_event_loop(yard: Yard, add: Any) -> None:
    later = add.s(1, 1).options(countdown=3600)
    ended: list[str] = []

    async def wait(name: str, timeout_s: float) -> None:
        with pytest.raises(ResultTimeout):
            await (await later.asend()).aget(timeout=timeout_s)
        ended.append(name)

    async def work() -> None:
        await asyncio.gather(wait("long", 2.0), wait("short", 0.05))

    on_loop(yard, work)
    yard.raw.delete(yard.delayed_key)

    assert ended == ["short", "long"]


def test_a_cancelled_wait_disturbs_no_other(yard: Yard, add: Any) -> None:
    async def work() -> Any:
        later = add.s(1, 1).options(countdown=3600)
        cancelled = asyncio.create_task((await later.asend()).aget(timeout=10))
        await asyncio.sleep(0)
        result = await add.asend(2, 2)
        kept = asyncio.create_task(result.aget(timeout=10))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return await kept

    assert on_loop(yard, work) == 4
    yard.raw.delete(yard.delayed_key)
