"""Messages nobody should have sent, and tasks that misbehave: the worker works on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import Signature, TaskFailed, chord, group
from machine.redis import keys

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


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
    yard: Yard, works_on: Callable[[], None]
) -> None:
    for payload in MALFORMED:
        yard.push(payload)

    works_on()

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
    """Return the bytes of every key there is, and when it passes."""
    names = [key for key in raw.scan_iter(count=1000) if key not in but]
    return {key: (raw.dump(key), raw.pexpiretime(key)) for key in names}


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
    yard: Yard, works_on: Callable[[], None], field: str, name: str
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

    works_on()

    fresh = {f"task_{queue}".encode(), f"task_{queue}_c".encode()}
    after = everything(raw, mine | fresh)
    assert {key: after.get(key) for key in before} == before


@pytest.mark.parametrize("field", ["UUID", "RoutingKey"])
def test_a_callbacks_name_touches_no_foreign_key(
    yard: Yard, works_on: Callable[[], None], field: str
) -> None:
    foreign = f"{yard.queue}.text"
    yard.raw.set(foreign, "precious", ex=60)
    callback = {"UUID": f"task_{yard.queue}_c", "Name": "good", "RoutingKey": yard.queue}
    yard.push(
        {"UUID": f"task_{yard.queue}", "Name": "unsafe", "OnSuccess": [callback | {field: foreign}]}
    )
    yard.task(lambda: 1, name="unsafe")

    works_on()

    assert yard.raw.get(foreign) == b"precious"


def test_a_callback_for_a_key_that_is_no_list_stops_nobody(
    yard: Yard, works_on: Callable[[], None]
) -> None:
    foreign = f"{yard.queue}.foreign"
    yard.raw.set(foreign, "precious", ex=60)
    callback = Signature(name="good", routing_key=foreign)
    yard.server.send_task(Signature(name="good", on_success=[callback]))

    yard.run()

    works_on()
    assert yard.raw.get(foreign) == b"precious"


def test_a_chords_callback_for_a_key_that_is_no_list_ends_as_failed(
    yard: Yard, works_on: Callable[[], None]
) -> None:
    foreign = f"{yard.queue}.foreign"
    yard.raw.set(foreign, "precious", ex=60)
    members = group(Signature(name="good"), Signature(name="good"))
    result = yard.server.send_chord(chord(members, Signature(name="good", routing_key=foreign)))

    yard.run()

    works_on()
    assert yard.raw.get(foreign) == b"precious"
    with pytest.raises(TaskFailed, match=foreign):
        yard.server.result(result.uuid).get(timeout=5)


@pytest.mark.parametrize("place", ["UUID", "GroupUUID", "OnSuccess", "OnError", "ChordCallback"])
def test_no_id_takes_the_place_of_an_empty_queue(yard: Yard, ran: list[str], place: str) -> None:
    callback = {"UUID": yard.queue, "Name": "good", "RoutingKey": yard.queue}
    harmless = callback | {"UUID": f"task_{yard.queue}_c"}
    message: dict[str, Any] = {
        "UUID": f"task_{yard.queue}",
        "Name": "fail" if place == "OnError" else "good",
        "GroupUUID": f"group_{yard.queue}",
        "GroupTaskCount": 1,
        "ChordCallback": harmless,
    }
    message |= {
        "UUID": {"UUID": yard.queue},
        "GroupUUID": {"GroupUUID": yard.queue},
        "OnSuccess": {"OnSuccess": [callback]},
        "OnError": {"OnError": [callback]},
        "ChordCallback": {"ChordCallback": callback},
    }[place]
    yard.task(lambda: 1 / 0, name="fail")
    yard.push(message)
    yard.run()
    yard.sweep().run_once(0.0)
    ran.clear()

    result = yard.server.send_task(Signature(name="good"))
    yard.run()

    assert result.get(timeout=5) is None
    assert "ran" in ran


def test_a_group_with_a_queues_name_does_not_let_the_queue_expire(
    yard: Yard, ran: list[str]
) -> None:
    member = {"Name": "good", "GroupUUID": yard.queue, "GroupTaskCount": 2}
    yard.push(member | {"UUID": f"task_{yard.queue}", "ChordCallback": {"Name": "good"}})
    yard.push({"UUID": "", "Name": "good"})
    child = yard.child()
    while not ran:
        child.run_once(0)
    yard.push({"UUID": "", "Name": "good"})
    left_s = yard.raw.ttl(yard.queue)

    yard.drain(child)

    assert left_s == -1


@pytest.mark.parametrize("kind", ["list", "text"])
def test_a_group_with_a_foreign_keys_name_does_not_let_it_expire(
    yard: Yard, ran: list[str], kind: str
) -> None:
    foreign = f"{yard.queue}.{kind}"
    if kind == "list":
        yard.raw.rpush(foreign, "precious")
    else:
        yard.raw.set(foreign, "precious")
    member = {"Name": "good", "GroupUUID": foreign, "GroupTaskCount": 2}
    yard.push(member | {"UUID": f"task_{yard.queue}", "ChordCallback": {"Name": "good"}})

    yard.run()
    left_s = yard.raw.ttl(foreign)
    yard.raw.delete(foreign)

    assert ran == ["ran"]
    assert left_s == -1


def test_a_group_with_a_tasks_name_leaves_that_tasks_state_alone(
    yard: Yard, ran: list[str]
) -> None:
    other = yard.server.send_task(Signature(name="good"))
    yard.run()
    state = yard.raw.get(other.uuid)
    member = {"Name": "good", "GroupUUID": other.uuid, "GroupTaskCount": 1}
    callback = {"UUID": f"chord_{yard.queue}", "Name": "good"}
    yard.push(member | {"UUID": f"task_{yard.queue}", "ChordCallback": callback})

    yard.run()

    assert ran
    assert yard.raw.get(other.uuid) == state
