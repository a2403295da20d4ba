"""Canceling tasks wherever they are: in a queue, delayed, running, retrying, in a workflow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from machine import RetryLater, Signature, chain, chord, current_task, group
from machine.embedded import EmbeddedServer
from machine.ports.moves import Canceled
from machine.redis import keys

if TYPE_CHECKING:
    from machine.runtime.child.child import Child
    from tests.integration.conftest import Yard

PATIENCE_S = 10.0
WaitUntil = Callable[..., object]

each_pool = pytest.mark.parametrize("slots", [1, 3], ids=["inline", "mixed"])


def cancel(yard: Yard, uuid: str) -> None:
    assert yard.broker.cancel([uuid]) == [Canceled.DONE]


def ended_as_canceled(yard: Yard, uuid: str) -> bool:
    """Say whether a task has ended as canceled, and nothing of its cancellation is left."""
    document = yard.document(uuid)
    assert (document["State"], document["Error"]) == ("FAILURE", "canceled")
    assert document["Results"] is None
    assert yard.raw.ttl(uuid) > 0
    return yard.raw.exists(keys.canceled(yard.queue)) == 0


@contextmanager
def working(yard: Yard, slots: int) -> Iterator[Child]:
    """Let a child work on a thread of its own until the queue is empty."""
    child = yard.child(slots=slots)
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()
    yield child
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture
def calls(yard: Yard) -> list[tuple[Any, ...]]:
    """Register a task that notes its calls; return them."""
    made: list[tuple[Any, ...]] = []

    def tell(*args: Any) -> int:
        made.append(args)
        return len(made)

    yard.task(tell, name="tell")
    return made


# -- before it runs ----------------------------------------------------------------------------
@each_pool
def test_a_queued_task_that_is_canceled_never_runs(
    yard: Yard, calls: list[tuple[Any, ...]], slots: int
) -> None:
    sent = [yard.server.send_task(Signature(name="tell")) for _ in range(3)]
    created_at = yard.document(sent[1].uuid)["CreatedAt"]

    cancel(yard, sent[1].uuid)
    assert yard.document(sent[1].uuid)["State"] == "FAILURE"
    yard.drain(yard.child(slots=slots))

    assert calls == [(), ()]
    assert ended_as_canceled(yard, sent[1].uuid)
    assert yard.document(sent[1].uuid)["CreatedAt"] == created_at
    assert [result.get(timeout=5) for result in (sent[0], sent[2])] == [1, 2]


def test_a_delayed_task_that_is_canceled_ends_when_it_is_due(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    eta_ns = yard.clock.now_ns() + 3600 * 1_000_000_000
    result = yard.server.send_task(Signature(name="tell", eta_ns=eta_ns))

    cancel(yard, result.uuid)
    yard.run()
    waiting = len(yard.delayed())
    yard.make_due()
    yard.run()

    assert waiting == 1
    assert calls == []
    assert ended_as_canceled(yard, result.uuid)


def test_a_task_that_is_canceled_between_two_tries_is_not_tried_again(yard: Yard) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(current_task().attempt)
        raise RetryLater(3600, "not yet")

    result = yard.task(work).send()
    yard.run()

    cancel(yard, result.uuid)
    yard.make_due()
    yard.run()

    assert ran == [1]
    assert ended_as_canceled(yard, result.uuid)
    (attempt,) = yard.document(result.uuid)["Attempts"]
    assert (attempt["Attempt"], attempt["Error"]) == (1, "not yet")


def test_error_callbacks_of_a_canceled_task_are_sent_and_the_others_are_not(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    well = Signature(name="tell", args=[])
    task = yard.task(lambda: None, name="work")
    result = task.s().link(well).link_error(Signature(name="tell")).send()

    cancel(yard, result.uuid)
    yard.run()

    assert calls == [("canceled",)]


def test_a_task_that_has_ended_cannot_be_canceled(yard: Yard) -> None:
    result = yard.task(lambda: 1, name="work").send()
    yard.run()

    assert yard.broker.cancel([result.uuid]) == [Canceled.ENDED]
    assert result.get(timeout=5) == 1


def test_a_canceled_task_that_nobody_here_knows_ends_once_somebody_does(yard: Yard) -> None:
    result = yard.server.send_task(Signature(name="later"))
    cancel(yard, result.uuid)
    yard.run()
    parked = len(yard.delayed())
    ran: list[int] = []

    yard.task(lambda: ran.append(1), name="later")
    yard.make_due()
    yard.run()

    assert (parked, ran) == (1, [])
    assert ended_as_canceled(yard, result.uuid)


# -- while it runs -----------------------------------------------------------------------------
@each_pool
def test_a_running_task_is_told_and_may_end_itself(
    yard: Yard, wait_until: WaitUntil, slots: int
) -> None:
    told: list[bool] = []
    give_up = threading.Event()

    def work() -> str:
        task = current_task()
        while not give_up.wait(0.005):
            told.append(task.canceled)
            task.raise_if_canceled()
        return "given up"

    result = yard.task(work).send()
    with working(yard, slots):
        wait_until(lambda: yard.document(result.uuid)["State"] == "STARTED", 5, "it runs")
        cancel(yard, result.uuid)
        wait_until(lambda: True in told, 5, "the task is told")
    give_up.set()

    assert told[-1] is True
    assert ended_as_canceled(yard, result.uuid)


@each_pool
@pytest.mark.parametrize("ending", ["returns", "fails", "tries again", "waits"])
def test_what_a_canceled_task_comes_to_is_dropped(
    yard: Yard, wait_until: WaitUntil, calls: list[tuple[Any, ...]], slots: int, ending: str
) -> None:
    go_on = threading.Event()

    def work() -> str:
        assert go_on.wait(PATIENCE_S)
        if ending == "waits":
            raise RetryLater(3600)
        if ending != "returns":
            raise RuntimeError("boom")
        return "done"

    work_task = yard.task(work, retry_count=2 if ending == "tries again" else 0)
    result = work_task.s().link(Signature(name="tell", immutable=True)).send()
    with working(yard, slots):
        wait_until(lambda: yard.document(result.uuid)["State"] == "STARTED", 5, "it runs")
        cancel(yard, result.uuid)
        go_on.set()
    yard.make_due()
    yard.run()

    assert calls == []
    assert ended_as_canceled(yard, result.uuid)
    assert yard.left()["delayed"] == 0


@each_pool
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_running_async_task_is_interrupted_and_cleans_up(
    yard: Yard, wait_until: WaitUntil, slots: int, stubborn: bool
) -> None:
    seen: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            seen.append("interrupted")
            if not stubborn:
                raise
        finally:
            seen.append(f"canceled: {current_task().canceled}")
        return "done"

    result = yard.task(work).send()
    with working(yard, slots):
        wait_until(lambda: yard.document(result.uuid)["State"] == "STARTED", 5, "it runs")
        cancel(yard, result.uuid)
        wait_until(lambda: len(seen) == 2, 5, "the task is interrupted")

    assert seen == ["interrupted", "canceled: True"]
    assert ended_as_canceled(yard, result.uuid)


def test_the_others_on_the_loop_are_not_interrupted(yard: Yard, wait_until: WaitUntil) -> None:
    ended: list[str] = []
    go_on = threading.Event()

    async def work(name: str) -> str:
        try:
            await asyncio.to_thread(go_on.wait, PATIENCE_S)
        finally:
            ended.append(name)
        return name

    task = yard.task(work)
    first, second = task.send("a"), task.send("b")
    with working(yard, 3):
        for result in (first, second):
            uuid = result.uuid
            wait_until(lambda u=uuid: yard.document(u)["State"] == "STARTED", 5, "both run")
        cancel(yard, first.uuid)
        wait_until(lambda: ended == ["a"], 5, "one is interrupted")
        go_on.set()

    assert second.get(timeout=5) == "b"
    assert ended_as_canceled(yard, first.uuid)


def test_a_dead_workers_canceled_task_does_not_run_again(yard: Yard) -> None:
    ran: list[int] = []
    result = yard.task(lambda: ran.append(1), name="work").send()
    dying = yard.child()
    yard.broker.exchange(dying.worker_id, [yard.queue], [], 1)
    cancel(yard, result.uuid)

    yard.bury(dying, yard.reaper())
    yard.run()

    assert ran == []
    assert ended_as_canceled(yard, result.uuid)


def test_a_dead_workers_canceled_task_that_must_not_run_twice_ends_as_canceled(yard: Yard) -> None:
    result = yard.task(lambda: None, name="work", on_crash="fail").send()
    dying = yard.child()
    yard.broker.exchange(dying.worker_id, [yard.queue], [], 1)
    cancel(yard, result.uuid)

    yard.bury(dying, yard.reaper())

    assert ended_as_canceled(yard, result.uuid)
    assert yard.left()["ready"] == 0


# -- in a workflow -----------------------------------------------------------------------------
@pytest.mark.parametrize("which", [0, 1])
def test_a_canceled_member_fails_its_chords_callback(
    yard: Yard, calls: list[tuple[Any, ...]], which: int
) -> None:
    members = group(Signature(name="tell"), Signature(name="tell"))
    callback = Signature(name="tell", on_error=[Signature(name="tell")])
    result = yard.server.send_chord(chord(members, callback))
    uuid = result.group.members[which].uuid

    cancel(yard, uuid)
    yard.run()

    error = f"chord member {uuid} failed: canceled"
    document = yard.document(result.uuid)
    assert (document["State"], document["Error"]) == ("FAILURE", error)
    assert calls == [(), (error,)]
    assert ended_as_canceled(yard, uuid)


def test_what_follows_a_canceled_link_of_a_chain_is_not_run(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    result = yard.server.send_chain(chain(*[Signature(name="tell") for _ in range(3)]))
    first, *later = [member.uuid for member in result.members]

    cancel(yard, first)
    yard.run()

    assert calls == []
    assert ended_as_canceled(yard, first)
    for uuid in later:
        assert yard.document(uuid)["Error"] == f"not run: tell {first} failed: canceled"
        assert yard.document(uuid)["State"] == "FAILURE"


def test_a_link_that_is_canceled_ahead_never_runs_and_those_before_it_do(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    result = yard.server.send_chain(chain(*[Signature(name="tell") for _ in range(3)]))
    first, *later = [member.uuid for member in result.members]

    assert yard.broker.cancel([], ahead=later) == [Canceled.DONE, Canceled.DONE]
    yard.run()

    assert calls == [()]
    assert yard.document(first)["State"] == "SUCCESS"
    for uuid in later:
        assert ended_as_canceled(yard, uuid)


# -- where results are elsewhere ---------------------------------------------------------------
@pytest.mark.leaves("canceled")
def test_a_queued_task_whose_result_is_kept_elsewhere_never_runs(
    make_yard: Callable[..., Yard], own_server: EmbeddedServer
) -> None:
    yard = make_yard(result_backend=own_server.url)
    ran: list[int] = []
    result = yard.task(lambda: ran.append(1), name="work").send()

    assert yard.server.cancel(result.uuid) is True
    yard.run()

    assert ran == []
    (state,) = yard.backend.read([result.uuid])
    assert state is not None
    assert (state.state, state.error) == ("FAILURE", "canceled")


@pytest.mark.leaves("canceled")
@each_pool
def test_a_running_task_whose_result_is_kept_elsewhere_is_told(
    make_yard: Callable[..., Yard], own_server: EmbeddedServer, wait_until: WaitUntil, slots: int
) -> None:
    yard = make_yard(result_backend=own_server.url)
    runs, told = threading.Event(), threading.Event()

    def work() -> None:
        runs.set()
        for _ in range(2_000):
            if current_task().canceled:
                told.set()
            current_task().raise_if_canceled()
            threading.Event().wait(0.005)

    result = yard.task(work).send()
    with working(yard, slots):
        wait_until(runs.is_set, 5, "it runs")
        assert yard.server.cancel(result.uuid) is True
        wait_until(told.is_set, 5, "the task is told")

    (state,) = yard.backend.read([result.uuid])
    assert state is not None
    assert (state.state, state.error) == ("FAILURE", "canceled")


# -- through restarts --------------------------------------------------------------------------
def test_a_cancellation_survives_a_restart_of_the_server_and_of_every_worker(
    own: Yard, own_server: EmbeddedServer
) -> None:
    ran: list[str] = []

    def work(name: str) -> None:
        ran.append(name)

    task = own.task(work)
    first, second = task.send("first"), task.send("second")
    old = own.child()
    cancel(own, first.uuid)
    own.leave(old)

    own_server.kill()
    own_server.restart()
    own.run()

    assert sorted(ran) == ["second"]
    assert ended_as_canceled(own, first.uuid)
    assert second.get(timeout=5) is None
