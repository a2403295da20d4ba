"""Tasks nobody knows, and tasks that misbehave: they fail alone, and the worker works on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from machine import Signature, TaskFailed
from machine.redis import keys

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


# -- tasks nobody knows ------------------------------------------------------------------------


def test_an_unknown_task_is_put_aside_unchanged_and_others_run(yard: Yard, ran: list[str]) -> None:
    payload = yard.push({"UUID": f"task_{yard.queue}", "Name": "unknown", "x-new": [1]})
    yard.push({"UUID": "", "Name": "good"})

    yard.run()

    assert ran == ["ran"]
    assert yard.raw.zrange(yard.delayed_key, 0, -1) == [payload]
    yard.raw.delete(yard.delayed_key)


def test_an_unknown_task_runs_where_it_is_known(yard: Yard, make_yard: Callable[..., Yard]) -> None:
    payload = yard.push({"UUID": f"task_{yard.queue}", "Name": "add", "RoutingKey": yard.queue})
    yard.run()
    other = make_yard()
    other.task(lambda: 5, name="add")

    yard.make_due()
    there = yard.waiting()
    other.run()

    assert there == [payload]
    assert other.server.result(f"task_{yard.queue}").get(timeout=5) == 5


def test_an_unknown_task_waits_longer_each_time(yard: Yard) -> None:
    yard.push({"UUID": f"task_{yard.queue}", "Name": "unknown", "RoutingKey": yard.queue})
    waits = []

    for _ in range(8):
        yard.run()
        [(_, score)] = yard.delayed()
        waits.append(round(score / 1e9 - yard.clock.now_ns() / 1e9))
        yard.make_due()

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    yard.raw.delete(yard.queue, keys.hop(yard.queue))


def test_an_unknown_task_that_says_so_is_dropped_and_stays_pending(
    yard: Yard, works_on: Callable[[], None]
) -> None:
    signature = Signature(name="unknown", ignore_when_task_not_registered=True)
    result = yard.server.send_task(signature)

    works_on()

    assert yard.document(result.uuid)["State"] == "PENDING"
    assert yard.letters() == []


# -- tasks that misbehave ----------------------------------------------------------------------


class Rude(Exception):
    """An exception that does not want to be printed."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Mute(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BaseException("base"), "base"),
        (SystemExit(4), "4"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "deep"),
        (Mute(), "Mute"),
        (Rude(), "Rude"),
        (Exception("a\ud800b"), "a"),
        (Exception("nul \x00 and \x1b[31m"), "nul \x00 and \x1b[31m"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_whatever_a_task_raises_fails_that_task_alone(
    yard: Yard, ran: list[str], error: BaseException, text: str, slots: int, is_async: bool
) -> None:
    def misbehave() -> None:
        raise error

    async def amisbehave() -> None:
        raise error

    result = yard.task(amisbehave if is_async else misbehave, name="misbehave").send()
    yard.server.send_task(Signature(name="good"))

    yard.drain(yard.child(slots=slots))

    with pytest.raises(TaskFailed) as caught:
        result.get(timeout=5)
    assert str(caught.value).startswith(text)
    assert ran == ["ran"]


def test_a_long_error_is_cut(yard: Yard, works_on: Callable[[], None]) -> None:
    def shout() -> None:
        raise RuntimeError("x" * 10_000_000)

    result = yard.task(shout).send()
    works_on()

    with pytest.raises(TaskFailed, match=r"^x{100}") as caught:
        result.get(timeout=5)
    assert len(str(caught.value)) <= 8300


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        math.nan,
        math.inf,
        LOOP,
        {"loop": LOOP},
        {1: "key"},
        "a\ud800b",
        10**5000,
        2**64,
        lambda: None,
        ({"ok": 1}, object()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_that_cannot_be_kept_fails_the_task_with_a_reason(
    yard: Yard, works_on: Callable[[], None], value: Any
) -> None:
    result = yard.task(lambda: value, name="give").send()

    works_on()

    with pytest.raises(TaskFailed, match=r"result|SignatureError|cannot"):
        result.get(timeout=5)


def test_a_result_of_a_hundred_megabytes_fails_the_task(
    yard: Yard, works_on: Callable[[], None]
) -> None:
    result = yard.task(lambda: "x" * 100_000_000, name="give").send()

    works_on()

    with pytest.raises(TaskFailed, match=r"^The result of task 'give' is too large: 1000001\d\d"):
        result.get(timeout=5)
