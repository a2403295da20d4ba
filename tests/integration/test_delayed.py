"""Tasks that are due later: the set Go shares, and moving what is due."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, Signature, SignatureError

if TYPE_CHECKING:
    from tests.integration.conftest import Yard

SECOND_NS = 1_000_000_000


def note(yard: Yard) -> list[int]:
    """Register a task that notes its argument; return where."""
    ran: list[int] = []
    yard.task(ran.append, name="note")
    return ran


def send(yard: Yard, number: int, due_in_s: float, **fields: Any) -> Any:
    """Send a note that is due in so many seconds."""
    eta_ns = yard.clock.now_ns() + round(due_in_s * SECOND_NS)
    args = [Arg("int64", number)]
    return yard.server.send_task(Signature(name="note", args=args, eta_ns=eta_ns, **fields))


def test_a_future_task_waits_in_the_delayed_set_scored_by_its_time(yard: Yard) -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    yard.task(lambda: None, name="note").s().options(eta=eta).send()

    [(message, score)] = yard.delayed()

    assert yard.ready() == []
    assert datetime.fromisoformat(message["ETA"]) == eta
    assert abs(score - eta.timestamp() * 1e9) < 2000
    yard.raw.delete(yard.delayed_key)


def test_a_past_time_goes_straight_to_the_queue_and_stays_in_the_message(yard: Yard) -> None:
    ran = note(yard)
    send(yard, 1, -5)

    [message] = yard.ready()
    yard.run()

    assert message["ETA"] is not None
    assert yard.delayed() == []
    assert ran == [1]


def test_nothing_that_is_not_due_is_moved(yard: Yard) -> None:
    note(yard)
    send(yard, 1, 60)

    yard.promoter().run_once(0.0)

    assert (len(yard.ready()), len(yard.delayed())) == (0, 1)
    yard.raw.delete(yard.delayed_key)


def test_what_is_due_runs_earliest_first(yard: Yard) -> None:
    ran = note(yard)
    for number in (3, 1, 2):
        send(yard, number, 60 * number)
    for member, score in yard.raw.zrange(yard.delayed_key, 0, -1, withscores=True):
        yard.raw.zadd(yard.delayed_key, {member: score - 3600 * SECOND_NS})

    yard.promoter().run_once(0.0)
    yard.run()

    assert ran == [1, 2, 3]
    assert yard.delayed() == []


def test_a_due_task_goes_to_the_queue_it_names_whoever_moves_it(yard: Yard) -> None:
    ran = note(yard)
    other = f"{yard.queue}.other"
    send(yard, 1, 60, routing_key=other)

    yard.make_due()
    child = yard.child(queues=[other])
    yard.drain(child)
    yard.leave(child)

    assert ran == [1]


def test_a_moved_message_keeps_its_bytes(yard: Yard) -> None:
    note(yard)
    send(yard, 1, 60)
    [payload] = yard.raw.zrange(yard.delayed_key, 0, -1)

    yard.make_due()

    assert yard.waiting() == [payload]
    yard.run()


def test_two_movers_deliver_each_task_once(yard: Yard) -> None:
    ran = note(yard)
    for number in range(300):
        send(yard, number, 60)
    for member in yard.raw.zrange(yard.delayed_key, 0, -1):
        yard.raw.zadd(yard.delayed_key, {member: 1})
    movers = [threading.Thread(target=yard.promoter().run_once, args=(0.0,)) for _ in range(2)]

    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join(10)
    yard.run()

    assert sorted(ran) == list(range(300))


def test_a_thousand_due_tasks_are_moved_in_one_look(yard: Yard) -> None:
    note(yard)
    payloads = [b'{"UUID":"","Name":"note","RoutingKey":"%s"}' % yard.queue.encode() + b" " * n
                for n in range(1000)]  # fmt: skip
    yard.raw.zadd(yard.delayed_key, dict.fromkeys(payloads, 1))

    yard.promoter().run_once(0.0)

    assert yard.raw.zcard(yard.delayed_key) == 0
    assert yard.raw.llen(yard.queue) == 1000
    yard.raw.delete(yard.queue)


def test_a_malformed_delayed_message_is_buried_and_blocks_nothing(yard: Yard) -> None:
    ran = note(yard)
    yard.raw.zadd(yard.delayed_key, {b"not json": 1})
    send(yard, 7, 60)

    yard.make_due()
    yard.run()

    assert ran == [7]
    [(payload, reason)] = yard.letters()
    assert payload == b"not json"
    assert reason == "signature: not JSON at character 0: Expecting value"


def test_a_delayed_message_for_a_key_that_is_no_list_is_buried(yard: Yard) -> None:
    note(yard)
    foreign = f"{yard.queue}.foreign"
    yard.raw.set(foreign, "precious", ex=60)
    payload = f'{{"UUID":"","Name":"note","RoutingKey":"{foreign}"}}'.encode()
    yard.raw.zadd(yard.delayed_key, {payload: 1})

    yard.promoter().run_once(0.0)

    assert yard.letters() == [(payload, "the queue it names is not a list")]
    assert yard.raw.get(foreign) == b"precious"


def test_delayed_tasks_are_listed_by_time_and_pending_ones_by_turn(yard: Yard) -> None:
    note(yard)
    for number in (2, 1):
        send(yard, number, 60 * number)
    for number in (4, 3):
        send(yard, number, -1)

    pending = [signature.args[0].value for signature in yard.server.pending_tasks()]
    delayed = [signature.args[0].value for signature in yard.server.delayed_tasks()]

    assert pending == [4, 3]
    assert delayed == [1, 2]
    assert yard.server.pending_tasks(f"{yard.queue}.empty") == []
    yard.raw.delete(yard.delayed_key)
    yard.run()


def test_the_state_of_a_task_due_in_a_week_outlives_its_wait(yard: Yard) -> None:
    note(yard)
    result = send(yard, 1, 7 * 86_400)

    left_s = yard.raw.ttl(result.uuid)

    assert left_s > 8 * 86_400 - 10
    yard.raw.delete(yard.delayed_key)


def test_a_time_without_a_zone_is_refused(yard: Yard) -> None:
    signature = yard.task(lambda: None, name="note").s()

    with pytest.raises(SignatureError, match=r"has no time zone; say which, as in"):
        signature.options(eta=datetime(2030, 1, 1))  # noqa: DTZ001 - the subject
