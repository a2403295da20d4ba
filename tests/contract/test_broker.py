"""The broker contract: sending, order, and looking at what waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from machine.ports.moves import Enqueued

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench

HOUR_NS = 3600 * 1_000_000_000


# -- sending -----------------------------------------------------------------------------------
def test_a_message_is_queued_with_its_pending_state(bench: Bench) -> None:
    message = bench.message("a")

    codes = bench.broker.enqueue([message])

    assert codes == [Enqueued.QUEUED]
    assert bench.broker.pending(bench.queue) == [message.payload]
    assert bench.state_of("a") == "PENDING"


def test_sending_nothing_answers_nothing(bench: Bench) -> None:
    assert bench.broker.enqueue([]) == []


def test_messages_are_claimed_in_the_order_sent(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b")
    bench.send("c")

    claims = bench.take(worker, 10)

    assert [bench.name_of(claim.payload) for claim in claims] == ["a", "b", "c"]


def test_the_payload_comes_back_byte_for_byte(bench: Bench) -> None:
    worker = bench.worker()
    payload = b'\x00\xff not json \r\n {"a": 12345678901234567890123}'
    bench.broker.enqueue([bench.message("a")._replace(payload=payload)])

    (claim,) = bench.take(worker)

    assert claim.payload == payload


def test_sending_the_same_id_again_queues_it_once(bench: Bench) -> None:
    bench.send("a")
    before = bench.dump()

    codes = bench.broker.enqueue([bench.message("a"), bench.message("a")])

    assert codes == [Enqueued.DUPLICATE, Enqueued.DUPLICATE]
    assert bench.dump() == before


def test_the_same_id_twice_in_one_call_is_queued_once(bench: Bench) -> None:
    codes = bench.broker.enqueue([bench.message("a"), bench.message("a")])

    assert codes == [Enqueued.QUEUED, Enqueued.DUPLICATE]
    assert bench.pending() == ["a"]


def test_an_id_stays_known_after_its_task_has_ended(bench: Bench) -> None:
    bench.make(bench.finish(bench.take_one("a")))

    assert bench.broker.enqueue([bench.message("a")]) == [Enqueued.DUPLICATE]
    assert bench.pending() == []
    assert bench.state_of("a") == "SUCCESS"


def test_an_id_whose_state_was_purged_may_be_sent_again(bench: Bench) -> None:
    bench.make(bench.finish(bench.take_one("a")))
    bench.backend.purge_state(bench.uuid("a"))

    assert bench.broker.enqueue([bench.message("a")]) == [Enqueued.QUEUED]


def test_without_a_pending_state_nothing_is_written_but_the_message(bench: Bench) -> None:
    message = bench.message("a")._replace(pending=b"")

    codes = bench.broker.enqueue([message, message])

    assert codes == [Enqueued.QUEUED, Enqueued.QUEUED]
    assert bench.pending() == ["a", "a"]
    assert bench.state_of("a") is None


def test_a_full_queue_takes_nothing_and_writes_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_queue_length=2)
    bench.send("a", "b")
    before = bench.dump()

    codes = bench.broker.enqueue([bench.message("c"), bench.message("a")])

    assert codes == [Enqueued.FULL, Enqueued.DUPLICATE]
    assert bench.dump() == before


def test_a_full_queue_takes_again_after_a_claim(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_queue_length=1)
    bench.take_one("a")

    assert bench.broker.enqueue([bench.message("b")]) == [Enqueued.QUEUED]


def test_an_id_that_names_a_queue_is_refused_and_the_queue_stays(bench: Bench) -> None:
    bench.send("a")
    before = bench.dump()

    codes = bench.broker.enqueue([bench.message("b")._replace(uuid=bench.queue)])

    assert codes == [Enqueued.BAD_KEY]
    assert bench.dump() == before


def test_an_id_that_names_the_delayed_set_is_refused(bench: Bench) -> None:
    bench.put_delayed(b"x", bench.now_ns() + HOUR_NS)

    codes = bench.broker.enqueue([bench.message("b")._replace(uuid=bench.delayed_key)])

    assert codes == [Enqueued.BAD_KEY]
    assert bench.broker.delayed() == [b"x"]


def test_an_id_that_names_a_group_is_refused(bench: Bench) -> None:
    from machine.wire.signature import GroupMeta

    group = bench.group()
    bench.backend.record_group(GroupMeta(group_uuid=group, task_uuids=[bench.uuid("a")]))
    before = bench.dump()

    codes = bench.broker.enqueue([bench.message("b")._replace(uuid=group)])

    assert codes == [Enqueued.BAD_KEY]
    assert bench.dump() == before


def test_a_queue_named_like_a_state_is_refused(bench: Bench) -> None:
    bench.send("a")
    before = bench.dump()

    codes = bench.broker.enqueue([bench.message("b", queue=bench.uuid("a"))])

    assert codes == [Enqueued.BAD_KEY]
    assert bench.dump() == before


def test_one_refused_message_does_not_stop_the_others(bench: Bench) -> None:
    messages = [
        bench.message("a"),
        bench.message("b")._replace(uuid=bench.queue),
        bench.message("c"),
    ]

    codes = bench.broker.enqueue(messages)

    assert codes == [Enqueued.QUEUED, Enqueued.BAD_KEY, Enqueued.QUEUED]
    assert bench.pending() == ["a", "c"]


def test_a_message_due_later_is_delayed_and_not_ready(bench: Bench) -> None:
    due_ns = bench.now_ns() + HOUR_NS
    message = bench.message("a", due_ns=due_ns)

    codes = bench.broker.enqueue([message])

    assert codes == [Enqueued.QUEUED]
    assert bench.pending() == []
    assert bench.broker.delayed() == [message.payload]
    assert bench.state_of("a") == "PENDING"
    # Redis keeps scores as doubles: exact to 256 ns.
    assert abs(bench.delayed_scores()[message.payload] - due_ns) <= 256


def test_a_message_due_in_the_past_is_ready(bench: Bench) -> None:
    bench.broker.enqueue([bench.message("a", due_ns=bench.now_ns() - HOUR_NS)])

    assert bench.pending() == ["a"]
    assert bench.broker.delayed() == []


def test_sending_without_blocking_does_the_same(bench: Bench) -> None:
    message = bench.message("a")

    codes = asyncio.run(bench.broker.aenqueue([message, message]))

    assert codes == [Enqueued.QUEUED, Enqueued.DUPLICATE]
    assert bench.pending() == ["a"]


def test_a_large_batch_keeps_its_order(bench: Bench) -> None:
    worker = bench.worker()
    names = [f"n{i}" for i in range(1200)]
    bench.send(*names)

    claims = bench.take(worker, 1200)

    assert [bench.name_of(claim.payload) for claim in claims] == names


def test_looking_at_a_queue_shows_as_many_as_asked(bench: Bench) -> None:
    messages = bench.send("a", "b", "c")
    payloads = [message.payload for message in messages]

    assert bench.broker.pending(bench.queue, 2) == payloads[:2]
    assert bench.broker.pending(bench.queue, 0) == []
    assert bench.broker.pending(bench.queue, -1) == payloads
    assert bench.broker.pending(f"{bench.queue}.other") == []


def test_looking_at_the_delayed_shows_the_earliest_first(bench: Bench) -> None:
    now_ns = bench.now_ns()
    due = {"late": 3, "early": 1, "middle": 2}
    messages = [bench.message(name, due_ns=now_ns + h * HOUR_NS) for name, h in due.items()]
    bench.broker.enqueue(messages)

    assert [bench.name_of(raw) for raw in bench.broker.delayed()] == ["early", "middle", "late"]
    assert [bench.name_of(raw) for raw in bench.broker.delayed(2)] == ["early", "middle"]
    assert bench.broker.delayed(0) == []
