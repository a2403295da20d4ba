"""The broker contract: one task at a time for each key."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from machine.ports.broker import Admitted
from machine.ports.moves import Canceled, Enqueued

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench

KEY = "report:7"


def send(bench: Bench, name: str, key: str = KEY, *, replace: bool = False) -> Admitted:
    return bench.broker.enqueue_unique(bench.message(name), key, replace=replace)


def queued(bench: Bench, name: str) -> Admitted:
    return Admitted(Enqueued.QUEUED, bench.uuid(name))


def held_by(bench: Bench, name: str) -> Admitted:
    return Admitted(Enqueued.DUPLICATE, bench.uuid(name))


def error_of(bench: Bench, name: str) -> str:
    (state,) = bench.backend.read([bench.uuid(name)])
    return "" if state is None else state.error


# -- joining -----------------------------------------------------------------------------------
def test_the_first_task_with_a_key_is_queued_with_its_state(bench: Bench) -> None:
    assert send(bench, "a") == queued(bench, "a")
    assert (bench.pending(), bench.state_of("a")) == (["a"], "PENDING")


def test_a_task_is_not_queued_while_another_with_its_key_waits(bench: Bench) -> None:
    send(bench, "a")

    assert send(bench, "b") == held_by(bench, "a")
    assert (bench.pending(), bench.state_of("b")) == (["a"], None)


def test_the_key_is_held_while_its_task_is_claimed_runs_and_retries(bench: Bench) -> None:
    send(bench, "a")
    worker = bench.worker()
    (claim,) = bench.take(worker)
    found = [send(bench, "b")]
    bench.make(bench.start(claim))
    found.append(send(bench, "b"))
    bench.make(bench.retry(claim, attempt=b"{}"))
    found.append(send(bench, "b"))

    assert found == [held_by(bench, "a")] * 3


def test_the_key_is_held_while_its_task_is_delayed(bench: Bench) -> None:
    due_ns = bench.now_ns() + 3600 * 1_000_000_000
    first = bench.broker.enqueue_unique(bench.message("a", due_ns=due_ns), KEY)

    assert first == queued(bench, "a")
    assert list(bench.delayed_scores()) == [bench.message("a").payload]
    assert send(bench, "b") == held_by(bench, "a")
    assert bench.pending() == []


def test_a_task_that_ended_well_or_badly_has_let_go(bench: Bench) -> None:
    worker = bench.worker()
    send(bench, "a")
    bench.make(bench.finish(bench.take(worker)[0]))
    second = send(bench, "b")
    bench.make(bench.finish(bench.take(worker)[0], "FAILURE"))

    assert second == queued(bench, "b")
    assert send(bench, "c") == queued(bench, "c")


def test_a_task_that_was_canceled_has_let_go(bench: Bench) -> None:
    send(bench, "a")
    assert bench.broker.cancel([bench.uuid("a")]) == [Canceled.DONE]

    assert send(bench, "b") == queued(bench, "b")


def test_a_task_whose_state_is_gone_has_let_go(bench: Bench) -> None:
    send(bench, "a")
    bench.backend.purge_state(bench.uuid("a"))

    assert send(bench, "b") == queued(bench, "b")
    assert send(bench, "c") == held_by(bench, "b")


def test_other_keys_are_not_in_the_way(bench: Bench) -> None:
    keys = ["a", "A", "a ", "é", "x" * 256, "{q}:hop", "#"]

    found = [send(bench, str(number), key) for number, key in enumerate(keys)]

    assert found == [queued(bench, str(number)) for number in range(len(keys))]
    assert [send(bench, "other", key) for key in keys] == [
        held_by(bench, str(number)) for number in range(len(keys))
    ]


def test_a_task_that_is_not_unique_is_not_in_the_way(bench: Bench) -> None:
    bench.send("plain")

    assert send(bench, "a") == queued(bench, "a")


# -- sending twice -----------------------------------------------------------------------------
def test_sending_the_same_id_again_queues_it_once(bench: Bench) -> None:
    send(bench, "a")
    before = bench.dump()

    assert send(bench, "a") == held_by(bench, "a")
    assert send(bench, "a", replace=True) == held_by(bench, "a")
    assert bench.dump() == before


def test_an_id_that_is_known_is_not_sent_under_a_key_either(bench: Bench) -> None:
    bench.send("a")

    assert send(bench, "a") == held_by(bench, "a")
    assert send(bench, "b") == queued(bench, "b")
    assert bench.pending() == ["a", "b"]


# -- replacing ---------------------------------------------------------------------------------
def test_replacing_cancels_the_one_that_is_there_and_queues_the_new_one(bench: Bench) -> None:
    send(bench, "a")

    assert send(bench, "b", replace=True) == queued(bench, "b")
    assert bench.state_of("a") == "FAILURE"
    assert error_of(bench, "a") == f"canceled: replaced by {bench.uuid('b')}"
    assert bench.broker.canceled([bench.uuid("a"), bench.uuid("b")]) == {bench.uuid("a")}
    assert bench.state_of("b") == "PENDING"
    assert send(bench, "c") == held_by(bench, "b")


def test_replacing_keeps_when_the_one_before_was_sent(bench: Bench) -> None:
    send(bench, "a")
    (before,) = bench.backend.read([bench.uuid("a")])
    send(bench, "b", replace=True)
    (after,) = bench.backend.read([bench.uuid("a")])

    assert before is not None
    assert after is not None
    assert (after.created_at, after.task_name) == (before.created_at, before.task_name)


def test_replacing_a_task_that_runs_marks_it(bench: Bench) -> None:
    send(bench, "a")
    (claim,) = bench.take(bench.worker())
    bench.make(bench.start(claim))

    send(bench, "b", replace=True)

    assert bench.broker.canceled([bench.uuid("a")]) == {bench.uuid("a")}
    assert bench.state_of("a") == "FAILURE"


def test_replacing_a_task_that_has_ended_leaves_its_result(bench: Bench) -> None:
    send(bench, "a")
    bench.make(bench.finish(bench.take(bench.worker())[0]))

    assert send(bench, "b", replace=True) == queued(bench, "b")
    assert bench.state_of("a") == "SUCCESS"
    assert bench.broker.canceled([bench.uuid("a")]) == set()


def test_replacing_nothing_queues(bench: Bench) -> None:
    assert send(bench, "a", replace=True) == queued(bench, "a")


# -- refusals ----------------------------------------------------------------------------------
def test_a_full_queue_takes_nothing_and_what_was_to_be_replaced_stays(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(max_queue_length=1)
    send(bench, "a")
    before = bench.dump()

    assert send(bench, "b", replace=True).outcome is Enqueued.FULL
    assert send(bench, "b", "other").outcome is Enqueued.FULL
    assert send(bench, "b") == held_by(bench, "a")
    assert bench.dump() == before


def test_a_queue_that_is_no_list_is_refused_and_nothing_is_canceled(bench: Bench) -> None:
    send(bench, "a")
    elsewhere = bench.message("b", queue=bench.uuid("a"))

    admitted = bench.broker.enqueue_unique(elsewhere, KEY, replace=True)

    assert admitted.outcome is Enqueued.BAD_KEY
    assert (bench.state_of("a"), bench.state_of("b")) == ("PENDING", None)


# -- many at once ------------------------------------------------------------------------------
def test_of_many_that_send_at_once_one_is_queued_and_all_get_it(bench: Bench) -> None:
    names = [f"t{number}" for number in range(16)]
    found: list[Admitted] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(send(bench, name)))  # type: ignore[misc]
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    [winner] = bench.pending()
    assert {admitted.uuid for admitted in found} == {bench.uuid(winner)}
    assert sorted(admitted.outcome for admitted in found) == [0] * 15 + [1]


def test_of_many_that_replace_at_once_one_is_left(bench: Bench) -> None:
    names = [f"t{number}" for number in range(8)]
    threads = [
        threading.Thread(target=send, args=(bench, name), kwargs={"replace": True})
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(bench.state_of(name) or "" for name in names) == ["FAILURE"] * 7 + ["PENDING"]
    [left] = [name for name in names if bench.state_of(name) == "PENDING"]
    assert send(bench, "late") == held_by(bench, left)


# -- asyncio -----------------------------------------------------------------------------------
def test_the_same_on_an_event_loop(bench: Bench) -> None:
    async def run() -> list[Admitted]:
        enqueue = bench.broker.aenqueue_unique
        return [
            await enqueue(bench.message("a"), KEY),
            await enqueue(bench.message("b"), KEY),
            await enqueue(bench.message("c"), KEY, replace=True),
        ]

    found = asyncio.run(run())

    assert found == [queued(bench, "a"), held_by(bench, "a"), queued(bench, "c")]
    assert error_of(bench, "a") == f"canceled: replaced by {bench.uuid('c')}"
