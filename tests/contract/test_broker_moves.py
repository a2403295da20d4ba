"""The broker contract: each move of a claim, made once, made twice, made too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machine.ports.moves import Claim, Finish, Move, Park, Release, Start, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench

HOUR_NS = 3600 * 1_000_000_000


def rich_finish(bench: Bench, claim: Claim) -> Finish:
    """Return a finish with a follow-up, a chord member and a dead letter."""
    return bench.finish(
        claim,
        follow_ups=[bench.message("next")],
        members=[bench.member("a", 2)],
        letter=("letter", b"envelope"),
    )


MOVES = {
    "start": lambda bench, claim: bench.start(claim),
    "finish": rich_finish,
    "retry": lambda bench, claim: bench.retry(claim),
    "retry later": lambda bench, claim: bench.retry(claim, due_ns=bench.now_ns() + HOUR_NS),
    "release": lambda _bench, claim: Release(claim=claim),
    "park": lambda _bench, claim: Park(claim=claim),
}
each_move = pytest.mark.parametrize("build", MOVES.values(), ids=MOVES.keys())


# -- any move ----------------------------------------------------------------------------------
@each_move
def test_a_move_of_a_held_claim_is_done(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a")

    assert bench.make(build(bench, claim)) == [Verdict.DONE]


@each_move
def test_a_move_made_again_changes_nothing_more(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a")
    move = build(bench, claim)
    bench.make(move)
    before = bench.dump()

    verdicts = bench.make(move)

    assert verdicts == [Verdict.DONE if isinstance(move, Start) else Verdict.FENCED]
    assert bench.dump() == before


@each_move
def test_a_move_after_the_claim_was_reaped_is_fenced_and_changes_nothing(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a", "zombie")
    bench.worker("heir")
    bench.reap("zombie")
    before = bench.dump()

    verdicts = bench.make(build(bench, claim))

    assert verdicts == [Verdict.FENCED]
    assert bench.dump() == before


@each_move
def test_a_move_after_somebody_else_took_over_is_fenced_and_changes_nothing(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a", "zombie")
    bench.worker("heir")
    bench.reap("zombie")
    bench.take("heir")
    before = bench.dump()

    verdicts = bench.make(build(bench, claim))

    assert verdicts == [Verdict.FENCED]
    assert bench.dump() == before


@each_move
def test_a_move_after_somebody_else_ended_it_is_fenced_and_changes_nothing(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a", "zombie")
    bench.worker("heir")
    bench.reap("zombie")
    bench.make(bench.finish(bench.take("heir")[0], "FAILURE"))
    before = bench.dump()

    verdicts = bench.make(build(bench, claim))

    assert verdicts == [Verdict.FENCED]
    assert bench.dump() == before
    assert bench.state_of("a") == "FAILURE"


@each_move
def test_a_move_with_another_workers_id_is_fenced(
    bench: Bench, build: Callable[[Bench, Claim], Move]
) -> None:
    claim = bench.take_one("a")
    bench.worker("w2")
    before = bench.dump()

    verdicts = bench.make(build(bench, claim._replace(worker_id="w2")))

    assert verdicts == [Verdict.FENCED]
    assert bench.dump() == before


def test_moves_of_all_kinds_in_one_exchange_are_answered_in_order(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b", "c", "d", "e", "f")
    a, b, c, d, e, f = bench.take(worker, 6)
    bench.make(Release(claim=f))

    verdicts = bench.make(
        bench.finish(a),
        Park(claim=b),
        bench.finish(f),
        Release(claim=c),
        bench.start(d),
        bench.retry(e),
        bench.finish(a),
    )

    assert verdicts[:6] == [
        Verdict.DONE,
        Verdict.DONE,
        Verdict.FENCED,
        Verdict.DONE,
        Verdict.DONE,
        Verdict.DONE,
    ]
    assert [bench.state_of(name) for name in "abcdef"] == [
        "SUCCESS",
        "PENDING",
        "PENDING",
        "STARTED",
        "RETRY",
        "PENDING",
    ]
    assert bench.broker.held(bench.queue, worker) == [d]
    assert bench.pending() == ["c", "f", "e"]


def test_moves_may_belong_to_several_workers_and_queues(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    bench.worker("w1")
    bench.worker("w2", other)
    bench.send("a")
    bench.send("b", queue=other)
    (a,), (b,) = bench.take("w1"), bench.take("w2", 1, other)

    assert bench.make(bench.finish(a), bench.finish(b)) == [Verdict.DONE, Verdict.DONE]
    assert (bench.state_of("a"), bench.state_of("b")) == ("SUCCESS", "SUCCESS")


def test_a_worker_that_is_gone_from_the_roster_may_still_end_its_claim(bench: Bench) -> None:
    claim = bench.take_one("a")

    verdicts = bench.broker.exchange("w2", [], [bench.finish(claim)], 0).verdicts

    assert verdicts == [Verdict.DONE]


# -- start -------------------------------------------------------------------------------------
def test_start_shows_the_task_started_and_keeps_the_claim(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.make(bench.start(claim))

    assert bench.state_of("a") == "STARTED"
    assert bench.broker.held(bench.queue, "w1") == [claim]


def test_start_never_overwrites_a_final_state(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.backend.record(bench.state(bench.uuid("a"), "SUCCESS"))
    before = bench.dump()

    bench.make(bench.start(claim))

    assert bench.state_of("a") == "SUCCESS"
    assert bench.dump() == before


# -- retry -------------------------------------------------------------------------------------
def test_retry_now_puts_the_given_bytes_at_the_tail(bench: Bench) -> None:
    claim = bench.take_one("a")
    (waiting,) = bench.send("b")

    bench.make(bench.retry(claim, payload=b"\x00 new bytes"))

    assert bench.broker.pending(bench.queue) == [waiting.payload, b"\x00 new bytes"]
    assert bench.state_of("a") == "RETRY"
    assert bench.broker.held(bench.queue, "w1") == []


def test_retry_later_delays_the_given_bytes(bench: Bench) -> None:
    claim = bench.take_one("a")
    due_ns = bench.now_ns() + HOUR_NS

    bench.make(bench.retry(claim, payload=b"\x00 new bytes", due_ns=due_ns))

    assert bench.pending() == []
    assert list(bench.delayed_scores()) == [b"\x00 new bytes"]
    assert abs(bench.delayed_scores()[b"\x00 new bytes"] - due_ns) <= 256
    assert bench.state_of("a") == "RETRY"


def test_retry_due_in_the_past_is_ready_at_once(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.make(bench.retry(claim, due_ns=bench.now_ns() - HOUR_NS))

    assert bench.broker.delayed() == []
    assert bench.broker.pending(bench.queue) == [claim.payload + b" "]


def test_retry_may_name_another_queue(bench: Bench) -> None:
    claim = bench.take_one("a")
    other = f"{bench.queue}.other"

    bench.make(bench.retry(claim, queue=other))

    assert bench.pending(other) == ["a"]
    assert bench.pending() == []


def test_retry_keeps_the_creation_time(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.make(bench.retry(claim))

    (state,) = bench.backend.read([bench.uuid("a")])
    assert state is not None
    assert state.created_at == bench.state(bench.uuid("a"), "RETRY").created_at
    assert state.state == "RETRY"


# -- release -----------------------------------------------------------------------------------
def test_release_puts_the_message_back_at_the_head(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.send("b")

    bench.make(Release(claim=claim))

    assert bench.pending() == ["a", "b"]
    assert bench.state_of("a") == "PENDING"


def test_releases_given_together_keep_their_order(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b", "c", "d")
    claims = bench.take(worker, 3)

    bench.make(*[Release(claim=claim) for claim in claims])

    assert bench.pending() == ["a", "b", "c", "d"]


def test_release_does_not_count_as_a_crash(bench: Bench) -> None:
    claim = bench.take_one("a")
    for _ in range(5):
        bench.make(Release(claim=claim))
        (claim,) = bench.take("w1")

    assert claim.crash_count == 0
