"""The broker contract: the end of a claim, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machine.ports.moves import Finish, Release, Verdict
from machine.wire.signature import GroupMeta

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench

HOUR_NS = 3600 * 1_000_000_000


# -- finish ------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", ["SUCCESS", "FAILURE"])
def test_finish_writes_the_state_and_ends_the_claim(bench: Bench, word: str) -> None:
    claim = bench.take_one("a")

    bench.make(bench.finish(claim, word))

    assert bench.state_of("a") == word
    assert bench.broker.held(bench.queue, "w1") == []
    assert bench.pending() == []


def test_finish_keeps_the_creation_time_that_is_stored(bench: Bench) -> None:
    claim = bench.take_one("a")
    (pending,) = bench.backend.read([bench.uuid("a")])
    assert pending is not None

    bench.make(bench.start(claim), bench.finish(claim))

    (state,) = bench.backend.read([bench.uuid("a")])
    assert state is not None
    expected = bench.state(bench.uuid("a"), "SUCCESS")
    assert state.created_at == pending.created_at == expected.created_at
    assert state == expected


def test_finish_of_a_forgotten_state_writes_a_creation_time_of_now(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.backend.purge_state(bench.uuid("a"))

    bench.make(bench.finish(claim))

    (state,) = bench.backend.read([bench.uuid("a")])
    assert state is not None
    assert state.state == "SUCCESS"
    assert state.created_at.endswith("Z")
    assert len(state.created_at) >= len("2026-11-20T15:15:26Z")


def test_finish_without_a_state_key_writes_no_state(bench: Bench) -> None:
    claim = bench.take_one("a")

    assert bench.make(Finish(claim=claim)) == [Verdict.DONE]

    assert bench.state_of("a") == "PENDING"
    assert bench.broker.held(bench.queue, "w1") == []


def test_a_hundred_finishes_in_one_exchange_all_count(bench: Bench) -> None:
    worker = bench.worker()
    names = [f"n{i}" for i in range(100)]
    bench.send(*names)

    verdicts = bench.make(*[bench.finish(claim) for claim in bench.take(worker, 100)])

    assert verdicts == [Verdict.DONE] * 100
    assert {bench.state_of(name) for name in names} == {"SUCCESS"}
    assert bench.broker.held(bench.queue, worker) == []


def test_the_same_finish_twice_in_one_exchange_counts_once(bench: Bench) -> None:
    claim = bench.take_one("a")
    follow_up = bench.message("next")._replace(pending=b"")
    move = bench.finish(claim, follow_ups=[follow_up])

    verdicts = bench.make(move, move)

    assert verdicts == [Verdict.DONE, Verdict.FENCED]
    assert bench.pending() == ["next"]


def test_finish_on_a_key_that_is_a_queue_keeps_the_claim_and_the_queue(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.send("b")
    before = bench.dump()
    move = Finish(claim=claim, state_key=bench.queue, state=bench.head(bench.queue, "SUCCESS"))

    assert bench.make(move) == [Verdict.BAD_KEY]
    assert bench.dump() == before
    assert bench.make(bench.finish(claim)) == [Verdict.DONE]


def test_finish_on_a_key_that_is_a_group_keeps_the_claim_and_the_group(bench: Bench) -> None:
    claim = bench.take_one("a")
    group = bench.group()
    bench.backend.record_group(GroupMeta(group_uuid=group, task_uuids=[bench.uuid("a")]))
    before = bench.dump()
    move = Finish(claim=claim, state_key=group, state=bench.head(group, "SUCCESS"))

    assert bench.make(move) == [Verdict.BAD_KEY]
    assert bench.dump() == before


def test_a_late_finish_on_a_bad_key_is_fenced(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))
    before = bench.dump()
    move = Finish(claim=claim, state_key=bench.queue, state=bench.head(bench.queue, "SUCCESS"))

    assert bench.make(move) == [Verdict.FENCED]
    assert bench.dump() == before


@pytest.mark.parametrize("kind", ["start", "retry"])
def test_start_and_retry_on_a_key_that_is_a_queue_change_nothing(bench: Bench, kind: str) -> None:
    claim = bench.take_one("a")
    bench.send("b")
    before = bench.dump()
    move = bench.start(claim) if kind == "start" else bench.retry(claim)
    move.state_key = bench.queue

    assert bench.make(move) == [Verdict.BAD_KEY]
    assert bench.dump() == before


def test_a_late_result_is_kept_when_the_server_lost_everything(bench: Bench) -> None:
    claim = bench.take_one("a", "zombie")
    bench.worker("heir")
    bench.reap("zombie")
    bench.backend.purge_state(bench.uuid("a"))

    verdicts = bench.make(bench.finish(claim, follow_ups=[bench.message("next")]))

    assert verdicts == [Verdict.FENCED]
    assert bench.state_of("a") == "SUCCESS"
    assert bench.state_of("next") is None
    assert bench.pending() == ["a"]


def test_only_the_first_of_two_orphaned_results_is_kept(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))
    bench.backend.purge_state(bench.uuid("a"))
    bench.make(bench.finish(claim, "SUCCESS"))
    before = bench.dump()

    assert bench.make(bench.finish(claim, "FAILURE")) == [Verdict.FENCED]
    assert bench.dump() == before


def test_the_owner_overwrites_an_orphaned_result(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))
    bench.backend.purge_state(bench.uuid("a"))
    bench.make(bench.finish(claim, "FAILURE"))

    (owned,) = bench.take("w1")

    assert bench.make(bench.finish(owned, "SUCCESS")) == [Verdict.DONE]
    assert bench.state_of("a") == "SUCCESS"


def test_a_finish_after_a_release_writes_nothing(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))

    assert bench.make(bench.finish(claim)) == [Verdict.FENCED]
    assert bench.state_of("a") == "PENDING"


# -- follow-ups --------------------------------------------------------------------------------
def test_follow_ups_are_queued_in_order_with_their_states(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.send("b")

    bench.make(bench.finish(claim, follow_ups=[bench.message("x"), bench.message("y")]))

    assert bench.pending() == ["b", "x", "y"]
    assert (bench.state_of("x"), bench.state_of("y")) == ("PENDING", "PENDING")


def test_a_follow_up_may_go_to_another_queue(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    claim = bench.take_one("a")

    bench.make(bench.finish(claim, follow_ups=[bench.message("x", queue=other)]))

    assert bench.pending(other) == ["x"]
    assert bench.pending() == []


def test_a_follow_up_that_was_sent_before_is_not_sent_again(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.send("x")

    verdicts = bench.make(bench.finish(claim, follow_ups=[bench.message("x"), bench.message("y")]))

    assert verdicts == [Verdict.DONE]
    assert bench.pending() == ["x", "y"]


def test_a_follow_up_due_later_is_delayed(bench: Bench) -> None:
    claim = bench.take_one("a")
    later = bench.message("x", due_ns=bench.now_ns() + HOUR_NS)

    bench.make(bench.finish(claim, follow_ups=[later]))

    assert bench.pending() == []
    assert bench.broker.delayed() == [later.payload]
    assert bench.state_of("x") == "PENDING"


def test_a_follow_up_goes_into_a_full_queue(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_queue_length=1)
    claim = bench.take_one("a")
    bench.send("b")

    assert bench.make(bench.finish(claim, follow_ups=[bench.message("x")])) == [Verdict.DONE]
    assert bench.pending() == ["b", "x"]
