"""Messages nobody should have sent, and tasks that misbehave: the worker works on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import Signature, TaskFailed, keys

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


@pytest.fixture
def ran(yard: Yard) -> list[str]:
    """Register a good task; return where it notes its runs."""
    notes: list[str] = []
    yard.task(lambda: notes.append("ran"), name="good")
    return notes


def works_on(yard: Yard, ran: list[str]) -> None:
    """Check that a good task behind the bad ones runs, and that no bad one is left."""
    yard.push({"UUID": "", "Name": "good"})
    yard.run()
    assert ran == ["ran"]
    assert yard.left() == {"ready": 0, "delayed": 0, str(keys.hop(yard.queue)): 0}


# -- bytes -------------------------------------------------------------------------------------

MALFORMED = [
    b"",
    b"\x00",
    b"not json",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"[]",
    b"1",
    b'"text"',
    b"null",
    b"{",
    b'{"Name":"good"',
    b'{"Name":""}',
    b'{"Name":5}',
    b'{"UUID":"","Name":"good","Args":{}}',
    b'{"UUID":"","Name":"good","Args":[1]}',
    b'{"UUID":"","Name":"good","RetryCount":1.0}',
    b'{"UUID":"","Name":"good","RetryCount":2147483648}',
    b'{"UUID":"","Name":"good","Priority":256}',
    b'{"UUID":"","Name":"good","Immutable":1}',
    b'{"UUID":"","Name":"good","ETA":"2026-11-20 15:15:26"}',
    b'{"UUID":"","Name":"good","GroupTaskCount":-1}',
    b'{"UUID":"","Name":"good\\nevil"}',
    b'{"UUID":"a b","Name":"good"}',
    b'{"UUID":"","Name":"good","RoutingKey":"a b"}',
    b'{"UUID":"","Name":"good","Args":[{"Type":"float64","Value":NaN}]}',
    b'{"UUID":"","Name":"good","Args":[{"Type":"float64","Value":1e999}]}',
    b'{"UUID":"","Name":"good","Args":[{"Type":"int64","Value":' + b"9" * 5000 + b"}]}",
    b'{"UUID":"","Name":"good","Args":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"UUID":"","Name":"good","OnSuccess":[' * 500 + b"]}" * 500,
    b'{"UUID":"","Name":"good","Headers":{"x":"' + b"y" * 1_100_000 + b'"}}',
]


def test_malformed_messages_are_buried_with_a_reason_and_stop_nobody(
    yard: Yard, ran: list[str]
) -> None:
    for payload in MALFORMED:
        yard.push(payload)

    works_on(yard, ran)

    letters = yard.letters()
    assert [payload for payload, _ in letters] == MALFORMED
    assert all(reason for _, reason in letters)


def test_noise_among_good_messages_costs_nothing_but_a_letter_each(
    yard: Yard, ran: list[str]
) -> None:
    dice = random.Random(20_261_120)  # noqa: S311 - not a secret
    good = json.dumps({"UUID": "", "Name": "good", "RoutingKey": yard.queue}).encode()
    bad = 0
    for _ in range(300):
        noise = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            noise[dice.randrange(len(noise))] = dice.randrange(256)
        noise = noise[: dice.randrange(len(noise))] if dice.random() < 0.3 else noise
        yard.push(bytes(noise))
        yard.push(good)

    yard.run()

    bad = yard.raw.hlen(keys.dead(yard.queue)) + yard.raw.zcard(yard.delayed_key)
    assert ran.count("ran") + bad == 600
    assert ran.count("ran") >= 300
    yard.raw.delete(yard.delayed_key)


# -- keys --------------------------------------------------------------------------------------


def everything(raw: redis.Redis, but: set[bytes]) -> dict[bytes, Any]:
    """Return the bytes of every key there is."""
    return {key: raw.dump(key) for key in raw.scan_iter(count=1000) if key not in but}


@pytest.mark.parametrize("field", ["UUID", "GroupUUID", "RoutingKey"])
@pytest.mark.parametrize(
    "name",
    [
        "{queue}",
        "{{{queue}}}:hop",
        "{{{queue}}}:workers",
        "{{{queue}}}:dlq",
        "{queue}.delayed",
        "TriggerChordMutex",
        "machinery_lock_x",
        "{queue}.list",
        "{queue}.text",
        "line\nbreak",
        "é",
        "x" * 10_000,
    ],
)
def test_no_name_in_a_message_touches_a_key_that_is_not_its_own(
    yard: Yard, ran: list[str], field: str, name: str
) -> None:
    raw, queue = yard.raw, yard.queue
    raw.rpush(f"{queue}.list", "precious")
    raw.set(f"{queue}.text", "precious", ex=60)
    raw.expire(f"{queue}.list", 60)
    mine = {key.encode() for key in (queue, keys.sequence(queue), keys.dead(queue))}
    mine |= {keys.dead_index(queue).encode(), keys.workers(queue).encode()}
    before = everything(raw, mine)
    callback = {"UUID": f"task_{queue}_c", "Name": "good"}
    message = {
        "UUID": f"task_{queue}",
        "Name": "unsafe",
        "GroupTaskCount": 1,
        "OnSuccess": [],
        field: name.format(queue=queue),
    }
    yard.task(lambda: 1, name="unsafe")
    yard.push(message | ({"ChordCallback": callback} if field == "GroupUUID" else {}))

    works_on(yard, ran)

    fresh = {f"task_{queue}".encode(), f"task_{queue}_c".encode()}
    after = everything(raw, mine | fresh)
    assert {key: after.get(key) for key in before} == before


@pytest.mark.parametrize("field", ["UUID", "RoutingKey"])
def test_a_callbacks_name_touches_no_foreign_key(yard: Yard, ran: list[str], field: str) -> None:
    foreign = f"{yard.queue}.text"
    yard.raw.set(foreign, "precious", ex=60)
    callback = {"UUID": f"task_{yard.queue}_c", "Name": "good", "RoutingKey": yard.queue}
    yard.push(
        {"UUID": f"task_{yard.queue}", "Name": "unsafe", "OnSuccess": [callback | {field: foreign}]}
    )
    yard.task(lambda: 1, name="unsafe")

    works_on(yard, ran)

    assert yard.raw.get(foreign) == b"precious"


def test_the_queue_survives_a_message_with_its_name_as_id(yard: Yard, ran: list[str]) -> None:
    yard.push({"UUID": yard.queue, "Name": "good"})
    yard.push({"UUID": "", "Name": "good"})

    yard.run()

    assert yard.letters()[0][0] == json.dumps({"UUID": yard.queue, "Name": "good"}).encode()


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
    there = yard.raw.lrange(yard.queue, 0, -1)
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
    yard.raw.delete(yard.queue)


def test_an_unknown_task_that_says_so_is_dropped_and_stays_pending(
    yard: Yard, ran: list[str]
) -> None:
    signature = Signature(name="unknown", ignore_when_task_not_registered=True)
    result = yard.server.send_task(signature)

    works_on(yard, ran)

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


def test_a_long_error_is_cut(yard: Yard, ran: list[str]) -> None:
    def shout() -> None:
        raise RuntimeError("x" * 10_000_000)

    result = yard.task(shout).send()
    works_on(yard, ran)

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
    yard: Yard, ran: list[str], value: Any
) -> None:
    result = yard.task(lambda: value, name="give").send()

    works_on(yard, ran)

    with pytest.raises(TaskFailed, match=r"result|SignatureError|cannot"):
        result.get(timeout=5)


def test_a_result_of_a_hundred_megabytes_fails_the_task(yard: Yard, ran: list[str]) -> None:
    result = yard.task(lambda: "x" * 100_000_000, name="give").send()

    works_on(yard, ran)

    with pytest.raises(TaskFailed, match=r"^The result of task 'give' is too large: 1000001\d\d"):
        result.get(timeout=5)
