"""The broker contract: who is given what, and in which order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from machine.ports.moves import Message, Release, Verdict

if TYPE_CHECKING:
    from tests.contract.conftest import Bench


def test_a_worker_that_is_not_registered_gets_nothing(bench: Bench) -> None:
    bench.send("a")

    answer = bench.broker.exchange("stranger", [bench.queue], [], 1)

    assert answer.claims == []
    assert answer.held == {bench.queue: None}
    assert bench.pending() == ["a"]


def test_no_more_is_claimed_than_wanted(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b", "c")

    claims = bench.take(worker, 2)

    assert [bench.name_of(claim.payload) for claim in claims] == ["a", "b"]
    assert bench.pending() == ["c"]


def test_wanting_nothing_claims_nothing(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a")

    assert bench.take(worker, 0) == []
    assert bench.pending() == ["a"]


def test_queues_are_tried_in_the_order_given(bench: Bench) -> None:
    urgent, calm = f"{bench.queue}.urgent", f"{bench.queue}.calm"
    worker = bench.worker("w1", calm, urgent)
    bench.send("c1", "c2", queue=calm)
    bench.send("u1", "u2", queue=urgent)

    claims = bench.take(worker, 3, urgent, calm)

    taken = [(claim.queue, bench.name_of(claim.payload)) for claim in claims]
    assert taken == [(urgent, "u1"), (urgent, "u2"), (calm, "c1")]
    assert bench.pending(calm) == ["c2"]


def test_a_worker_gets_nothing_from_a_queue_it_is_not_registered_on(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    worker = bench.worker()
    bench.send("a", queue=other)

    answer = bench.broker.exchange(worker, [bench.queue, other], [], 5)

    assert answer.claims == []
    assert answer.held == {bench.queue: 0, other: None}


def test_a_claim_says_whose_it_is_and_that_nobody_died_of_it(bench: Bench) -> None:
    claim = bench.take_one("a")

    assert (claim.worker_id, claim.queue, claim.crash_count) == ("w1", bench.queue, 0)


def test_two_workers_never_get_the_same_message(bench: Bench) -> None:
    first, second = bench.worker("w1"), bench.worker("w2")
    bench.send("a", "b", "c")

    mine, theirs = bench.take(first, 2), bench.take(second, 2)

    assert [bench.name_of(c.payload) for c in mine] == ["a", "b"]
    assert [bench.name_of(c.payload) for c in theirs] == ["c"]


def test_many_threads_take_each_message_once(bench: Bench) -> None:
    names = [f"n{i}" for i in range(200)]
    bench.send(*names)
    workers = [bench.worker(f"w{i}") for i in range(4)]

    def drain(worker: str) -> list[str]:
        done = []
        while claims := bench.take(worker, 3):
            assert bench.make(*map(bench.finish, claims)) == [Verdict.DONE] * len(claims)
            done += [bench.name_of(claim.payload) for claim in claims]
        return done

    with ThreadPoolExecutor(len(workers)) as pool:
        taken = [name for done in pool.map(drain, workers) for name in done]

    assert sorted(taken) == sorted(names)
    assert {bench.state_of(name) for name in names} == {"SUCCESS"}


def test_claim_ids_are_all_different_and_fences_grow(bench: Bench) -> None:
    worker = bench.worker()
    claims = []
    for _ in range(3):
        bench.send(*[f"n{len(claims) + i}" for i in range(4)])
        claims += bench.take(worker, 4)

    fences = [claim.fence for claim in claims]

    assert len({claim.id for claim in claims}) == 12
    assert fences == sorted(set(fences))


def test_the_answer_says_what_the_worker_held_before(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b", "c")

    first = bench.broker.exchange(worker, [bench.queue], [], 2)
    second = bench.broker.exchange(worker, [bench.queue], [bench.finish(first.claims[0])], 1)

    assert first.held == {bench.queue: 0}
    assert second.held == {bench.queue: 1}
    assert second.verdicts == [Verdict.DONE]
    assert [bench.name_of(claim.payload) for claim in second.claims] == ["c"]


def test_everything_works_on_a_server_that_forgot_our_scripts(bench: Bench) -> None:
    claim = bench.take_one("a")
    for step in (
        lambda: bench.send("b"),
        lambda: bench.make(bench.finish(claim)),
        lambda: bench.take("w1"),
    ):
        bench.forget_scripts()
        step()

    assert bench.state_of("a") == "SUCCESS"
    assert [bench.name_of(held.payload) for held in bench.broker.held(bench.queue, "w1")] == ["b"]


def test_what_is_released_can_be_claimed_in_the_same_exchange(bench: Bench) -> None:
    claim = bench.take_one("a")

    answer = bench.broker.exchange("w1", [bench.queue], [Release(claim=claim)], 1)

    assert answer.verdicts == [Verdict.DONE]
    assert [again.payload for again in answer.claims] == [claim.payload]
    assert answer.claims[0].id != claim.id


def test_moves_come_before_claims_on_a_server_that_forgot_our_scripts(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.forget_scripts()
    bench.take("w1", 0)  # it knows this one script again, and only this one

    answer = bench.broker.exchange("w1", [bench.queue], [Release(claim=claim)], 1)

    assert answer.held == {bench.queue: 0}
    assert [again.payload for again in answer.claims] == [claim.payload]


def test_claims_are_shown_in_fence_order(bench: Bench) -> None:
    worker = bench.worker()
    bench.send(*[f"n{i}" for i in range(20)])
    claims = bench.take(worker, 12) + bench.take(worker, 8)

    assert bench.broker.held(bench.queue, worker) == claims


def test_a_worker_that_holds_nothing_is_shown_nothing(bench: Bench) -> None:
    assert bench.broker.held(bench.queue, "stranger") == []


def test_the_server_answers(bench: Bench) -> None:
    bench.broker.ping()


def test_states_are_kept_in_the_same_store(bench: Bench) -> None:
    assert bench.broker.keeps_states is True


def test_a_message_without_a_state_goes_round_like_any_other(bench: Bench) -> None:
    worker = bench.worker()
    bench.broker.enqueue([Message(bench.uuid("a"), bench.queue, b"raw", b"")])
    (claim,) = bench.take(worker)

    assert bench.make(Release(claim=claim)) == [Verdict.DONE]
    assert bench.broker.pending(bench.queue) == [b"raw"]
