"""The broker contract: what is due, what is not, and what is put aside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machine.ports.moves import Park, Verdict

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

S_NS = 1_000_000_000
HOUR_NS = 3600 * S_NS


def plant(bench: Bench, name: str, due_s: float, *, queue: str | None = None) -> bytes:
    """Put a message into the delayed set, due so many seconds from now."""
    payload = bench.message(name, queue=queue).payload
    bench.put_delayed(payload, bench.now_ns() + int(due_s * S_NS))
    return payload


def test_due_messages_move_to_the_tail_of_the_queues_they_name(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    bench.send("first")
    plant(bench, "a", -2)
    plant(bench, "b", -1, queue=other)

    assert bench.broker.promote(10) == 2
    assert bench.pending() == ["first", "a"]
    assert bench.pending(other) == ["b"]
    assert bench.broker.delayed() == []


def test_the_earliest_due_moves_first(bench: Bench) -> None:
    for name, due_s in (("late", -1), ("early", -3), ("middle", -2)):
        plant(bench, name, due_s)

    bench.broker.promote(10)

    assert bench.pending() == ["early", "middle", "late"]


def test_no_more_than_asked_move_in_one_call(bench: Bench) -> None:
    for name, due_s in (("a", -3), ("b", -2), ("c", -1)):
        plant(bench, name, due_s)

    assert bench.broker.promote(2) == 2
    assert bench.pending() == ["a", "b"]
    assert bench.broker.promote(2) == 1
    assert bench.broker.promote(2) == 0
    assert bench.pending() == ["a", "b", "c"]


def test_what_is_not_due_stays(bench: Bench) -> None:
    payload = plant(bench, "a", 3600)
    before = bench.dump()

    assert bench.broker.promote(10) == 0
    assert bench.dump() == before
    assert bench.broker.delayed() == [payload]


def test_a_message_that_names_no_queue_goes_to_the_default_queue(bench: Bench) -> None:
    payload = bench.message("a").payload.replace(
        f'"RoutingKey":"{bench.queue}"'.encode(), b'"RoutingKey":""'
    )
    bench.put_delayed(payload, bench.now_ns() - S_NS)

    assert bench.broker.promote(10) == 1
    assert bench.broker.pending(bench.queue) == [payload]


@pytest.mark.parametrize("junk", [b"\x00\xff", b"{", b"[]", b'{"UUID": 1}'])
def test_what_is_not_a_message_is_buried_with_the_reason(bench: Bench, junk: bytes) -> None:
    bench.put_delayed(junk, bench.now_ns() - 2 * S_NS)
    plant(bench, "good", -1)

    assert bench.broker.promote(10) == 2
    assert bench.broker.delayed() == []
    assert bench.pending() == ["good"]
    (letter,) = bench.broker.dead(bench.queue)
    assert letter.payload == junk
    assert letter.reason != ""
    assert (letter.crash_count, letter.worker_id) == (0, "")


def test_a_message_to_a_key_that_is_a_state_is_buried(bench: Bench) -> None:
    own = f"{bench.queue}.own"  # an id that could be a queue's name
    bench.broker.enqueue([bench.message("a")._replace(uuid=own)])
    payload = plant(bench, "b", -1, queue=own)

    assert bench.broker.promote(10) == 1
    assert [letter.payload for letter in bench.broker.dead(bench.queue)] == [payload]
    assert bench.backend.read([own]) == [bench.state(bench.uuid("a"), "PENDING")]
    assert bench.broker.delayed() == []


@pytest.mark.parametrize("name", ["task_x", "TriggerChordMutex", "{q}:dlq", "a b", "*"])
def test_a_message_to_a_name_that_no_queue_may_have_is_buried(bench: Bench, name: str) -> None:
    payload = bench.message("a", queue=name).payload
    bench.put_delayed(payload, bench.now_ns() - S_NS)

    assert bench.broker.promote(10) == 1
    assert [letter.payload for letter in bench.broker.dead(bench.queue)] == [payload]
    assert bench.broker.delayed() == []


def test_a_promoted_message_keeps_its_bytes(bench: Bench) -> None:
    payload = bench.message("a").payload.replace(b"{", b'{ "Unknown": 1.50, ', 1)
    bench.put_delayed(payload, bench.now_ns() - S_NS)

    bench.broker.promote(1)

    assert bench.broker.pending(bench.queue) == [payload]


# -- park --------------------------------------------------------------------------------------
def test_a_parked_message_is_delayed_unchanged(bench: Bench) -> None:
    claim = bench.take_one("a")

    assert bench.make(Park(claim=claim)) == [Verdict.DONE]

    assert bench.broker.delayed() == [claim.payload]
    assert bench.broker.held(bench.queue, "w1") == []
    assert bench.pending() == []
    assert bench.state_of("a") == "PENDING"


def test_each_time_a_message_is_parked_it_waits_longer_up_to_a_minute(bench: Bench) -> None:
    waits = []
    claim = bench.take_one("a")
    for _ in range(9):
        from_ns = bench.now_ns()
        bench.make(Park(claim=claim))
        until_ns = bench.now_ns()
        due_ns = bench.delayed_scores()[claim.payload]
        # Rounded to the second that fits between the two looks at the clock.
        waits.append(round((due_ns - (from_ns + until_ns) // 2) / S_NS))
        bench.put_delayed(claim.payload, from_ns - S_NS)
        bench.broker.promote(1)
        (claim,) = bench.take("w1")

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_parking_one_message_does_not_make_another_wait_longer(bench: Bench) -> None:
    a = bench.take_one("a")
    bench.make(Park(claim=a))
    b = bench.take_one("b")

    bench.make(Park(claim=b))

    waits = [round((ns - bench.now_ns()) / S_NS) for ns in bench.delayed_scores().values()]
    assert waits == [1, 1]


def test_parking_does_not_count_as_a_crash(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Park(claim=claim))
    bench.put_delayed(claim.payload, bench.now_ns() - S_NS)
    bench.broker.promote(1)

    assert [again.crash_count for again in bench.take("w1")] == [0]


# -- unpark ------------------------------------------------------------------------------------
def test_what_was_put_aside_is_due_at_once_for_whoever_knows_it(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Park(claim=claim))

    assert bench.broker.unpark(bench.queue, lambda name: name == "add") == 1

    assert bench.broker.promote(10) == 1
    assert bench.broker.pending(bench.queue) == [claim.payload]


def test_what_is_not_known_stays_aside(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Park(claim=claim))
    before = bench.delayed_scores()

    assert bench.broker.unpark(bench.queue, lambda name: name != "add") == 0

    assert bench.delayed_scores() == before
    assert bench.broker.promote(10) == 0


def test_what_is_delayed_on_purpose_keeps_its_time(bench: Bench) -> None:
    bench.make(Park(claim=bench.take_one("a")))
    due_ns = bench.now_ns() + 30 * S_NS
    later = bench.message("b", due_ns=due_ns)
    bench.broker.enqueue([later])

    assert bench.broker.unpark(bench.queue, lambda _name: True) == 1

    assert abs(bench.delayed_scores()[later.payload] - due_ns) < 1000


def test_calling_back_twice_changes_nothing_more(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Park(claim=claim))
    bench.broker.unpark(bench.queue, lambda _name: True)
    before = bench.dump()

    assert bench.broker.unpark(bench.queue, lambda _name: True) == 0

    assert bench.dump() == before


def test_what_was_called_back_waits_a_second_again_if_nobody_knows_it(bench: Bench) -> None:
    claim = bench.take_one("a")
    for _ in range(3):
        bench.make(Park(claim=claim))
        bench.put_delayed(claim.payload, bench.now_ns() - S_NS)
        bench.broker.promote(1)
        (claim,) = bench.take("w1")
    bench.make(Park(claim=claim))
    bench.broker.unpark(bench.queue, lambda _name: True)
    bench.broker.promote(1)
    (claim,) = bench.take("w1")

    bench.make(Park(claim=claim))

    [due_ns] = bench.delayed_scores().values()
    assert round((due_ns - bench.now_ns()) / S_NS) == 1


def test_a_worker_of_another_queue_leaves_what_was_put_aside(bench: Bench) -> None:
    bench.make(Park(claim=bench.take_one("a")))

    assert bench.broker.unpark(f"{bench.queue}.other", lambda _name: True) == 0
    assert bench.broker.promote(10) == 0


def test_bytes_that_are_no_message_do_not_hinder_calling_back(bench: Bench) -> None:
    bench.put_delayed(b"\xff not json", bench.now_ns() + S_NS)
    bench.make(Park(claim=bench.take_one("a")))

    assert bench.broker.unpark(bench.queue, lambda _name: True) == 1
