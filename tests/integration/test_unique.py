"""Unique tasks on a real server, with a real child."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from machine import BrokerRefused, DuplicateTask, SignatureError, group
from machine.errors import TaskCanceled
from machine.redis import keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from machine.registry.task import Task
    from tests.integration.conftest import Yard

KEY = "report:7"


@pytest.fixture
def ran() -> list[int]:
    """Return where the task notes what it was called with."""
    return []


@pytest.fixture
def note(yard: Yard, ran: list[int]) -> Task[Any, Any]:
    """Register a task that notes its argument and returns it."""

    def run(x: int) -> int:
        ran.append(x)
        return x

    return yard.task(run, name="note")


def on_a_loop(yard: Yard, run: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function, and close the connections of its loop."""

    async def whole() -> Any:
        try:
            return await run()
        finally:
            await yard.server.broker.aclose()

    return asyncio.run(whole())


def test_joining_gives_the_result_of_the_one_that_is_there(
    yard: Yard, note: Task[Any, Any], ran: list[int]
) -> None:
    first = note.s(1).options(unique=KEY).send()
    second = note.s(2).options(unique=KEY, on_duplicate="join").send()
    yard.run()

    assert second.uuid == first.uuid
    assert second.get(5) == 1
    assert ran == [1]


def test_refusing_names_the_one_that_is_there(yard: Yard, note: Task[Any, Any]) -> None:
    first = note.s(1).options(unique=KEY).send()

    with pytest.raises(DuplicateTask) as caught:
        note.s(2).options(unique=KEY, on_duplicate="refuse").send()

    assert caught.value.uuid == first.uuid
    assert str(caught.value) == (
        f"Task 'note' was not sent: task {first.uuid} with the same unique key 'report:7' has not "
        "ended."
    )
    assert len(yard.ready()) == 1
    yard.run()


def test_replacing_cancels_the_one_that_is_there(
    yard: Yard, note: Task[Any, Any], ran: list[int]
) -> None:
    first = note.s(1).options(unique=KEY).send()
    second = note.s(2).options(unique=KEY, on_duplicate="replace").send()
    yard.run()

    assert second.get(5) == 2
    with pytest.raises(TaskCanceled) as caught:
        first.get(5)
    assert str(caught.value) == f"canceled: replaced by {second.uuid}"
    assert ran == [2]
    assert yard.raw.exists(keys.canceled(yard.queue)) == 0


def test_the_three_ways_are_the_same_on_an_event_loop(yard: Yard, note: Task[Any, Any]) -> None:
    async def run() -> list[Any]:
        found: list[Any] = [
            (await note.s(1).options(unique=KEY).asend()).uuid,
            (await note.s(2).options(unique=KEY).asend()).uuid,
        ]
        with pytest.raises(DuplicateTask) as caught:
            await note.s(3).options(unique=KEY, on_duplicate="refuse").asend()
        found.append(caught.value.uuid)
        replaced = await note.s(4).options(unique=KEY, on_duplicate="replace").asend()
        return [*found, replaced.uuid]

    first, joined, refused_for, replaced = on_a_loop(yard, run)
    yard.run()

    assert first == joined == refused_for != replaced
    assert yard.server.result(replaced).get(5) == 4
    with pytest.raises(TaskCanceled):
        yard.server.result(first).get(5)


def test_a_key_is_free_again_when_its_task_has_ended(
    yard: Yard, note: Task[Any, Any], ran: list[int]
) -> None:
    for number in (1, 2):
        note.s(number).options(unique=KEY, on_duplicate="refuse").send()
        yard.run()

    assert ran == [1, 2]


def test_a_key_is_held_while_its_task_runs(yard: Yard) -> None:
    found: list[Any] = []

    def run() -> None:
        again = made.s().options(on_duplicate="refuse")
        with pytest.raises(DuplicateTask) as caught:
            again.send()
        found.append(caught.value.uuid)

    made = yard.task(run, name="once", unique=True)
    result = made.send()
    yard.run()

    assert result.get(5) is None
    assert found == [result.uuid]


def test_a_task_may_be_unique_by_its_arguments(
    yard: Yard, note: Task[Any, Any], ran: list[int]
) -> None:
    by_user = yard.task(note.fn, name="by_user", unique=lambda x: f"user:{x}")
    by_all = yard.task(note.fn, name="by_all", unique=True)
    for task in (by_user, by_all):
        for number in (1, 1, 2):
            task.send(number)
    yard.run()

    assert ran == [1, 2, 1, 2]


def test_sending_one_id_again_queues_it_once(yard: Yard, note: Task[Any, Any]) -> None:
    found = [note.s(1).options(uuid="task_mine").send().uuid for _ in range(2)]
    unique = note.s(1).options(uuid="task_other", unique=KEY, on_duplicate="refuse")
    found += [unique.send().uuid for _ in range(2)]

    assert found == ["task_mine", "task_mine", "task_other", "task_other"]
    assert [message["UUID"] for message in yard.ready()] == ["task_mine", "task_other"]
    yard.run()


def test_the_key_travels_as_a_header_and_lives_as_long_as_the_state(
    yard: Yard, note: Task[Any, Any]
) -> None:
    result = note.s(1).options(unique=KEY).send()
    [message] = yard.ready()
    name = keys.unique(yard.queue, KEY)

    assert message["Headers"] == {"x-unique": KEY}
    assert yard.raw.get(name) == result.uuid.encode()
    assert abs(yard.raw.ttl(name) - yard.raw.ttl(result.uuid)) <= 1
    yard.run()


@pytest.mark.parametrize("how", ["chain", "group", "callback", "periodic"])
def test_a_unique_task_that_is_not_sent_by_itself_is_refused(
    yard: Yard, note: Task[Any, Any], how: str
) -> None:
    unique = note.s(1).options(unique=KEY)
    ways: dict[str, Callable[[], Any]] = {
        "chain": (unique | note.partial()).send,
        "group": group(unique).send,
        "callback": note.s(2).link_error(unique).send,
        "periodic": partial(yard.server.register_periodic_task, "@every 1h", "each", unique),
    }

    with pytest.raises(SignatureError, match="is unique, and only a task that is sent by itself"):
        ways[how]()

    assert yard.ready() == []


def test_a_unique_task_needs_its_state_beside_the_queue(
    make_yard: Callable[..., Yard], redis_url: str
) -> None:
    yard = make_yard(result_backend=redis_url.rpartition("/")[0] + "/1")
    made = yard.task(lambda: None, name="note")

    with pytest.raises(SignatureError, match="needs its state beside the queue"):
        made.s().options(unique=KEY).send()

    assert yard.ready() == []


@pytest.mark.parametrize("value", [b"", b"\xff", b"not an id", b"{q}:hop"])
def test_a_key_that_holds_no_id_is_refused_and_left_alone(
    yard: Yard, note: Task[Any, Any], value: bytes
) -> None:
    name = keys.unique(yard.queue, KEY)
    yard.raw.set(name, value)

    with pytest.raises(BrokerRefused, match="names a key that holds something else"):
        note.s(1).options(unique=KEY).send()

    assert (yard.raw.get(name), yard.ready()) == (value, [])
    yard.raw.delete(name)


def test_a_key_of_another_kind_is_refused_and_left_alone(yard: Yard, note: Task[Any, Any]) -> None:
    name = keys.unique(yard.queue, KEY)
    yard.raw.rpush(name, "x")

    with pytest.raises(BrokerRefused):
        note.s(1).options(unique=KEY).send()

    assert yard.raw.lrange(name, 0, -1) == [b"x"]
    yard.raw.delete(name)


def test_a_holder_that_is_no_state_is_left_alone(yard: Yard, note: Task[Any, Any]) -> None:
    other, foreign = f"{yard.queue}.other", b'{"State":"PENDING"}'
    yard.raw.set(keys.unique(yard.queue, KEY), other)
    yard.raw.set(other, foreign)

    sent = note.s(1).options(unique=KEY, on_duplicate="replace").send()

    assert yard.raw.getdel(other) == foreign
    assert yard.raw.get(keys.unique(yard.queue, KEY)) == sent.uuid.encode()
    yard.run()
