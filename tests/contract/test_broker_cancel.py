"""The broker contract: what a cancellation writes, and what it leaves alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.ports.moves import Canceled, Release, Verdict
from machine.redis import keys
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections
from machine.redis.roles import QueueSettings
from machine.wire.signature import GroupMeta, TaskResult
from machine.wire.states import encode_state, encode_state_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from machine.ports.moves import Claim, Finish, Move
    from tests.contract.conftest import Bench

DAY_S = 86_400
HOUR_NS = 3600 * 1_000_000_000


def marks(bench: Bench) -> int:
    """Return how many marks a worker of the bench's queue is told of."""
    return bench.broker.exchange("looker", [bench.queue], [], 0).marks


def canceled_end(bench: Bench, claim: Claim, name: str = "a", **more: Any) -> Finish:
    """Return the move that ends a claim as canceled."""
    head = bench.head(bench.uuid(name), "FAILURE", error="canceled")
    return replace(bench.finish(claim, **more), state=head)


def prepare(bench: Bench, word: str) -> None:
    """Bring a task of the bench into this state."""
    claim = bench.take_one("a")
    if word == "STARTED":
        bench.make(bench.start(claim))
    elif word == "RETRY":
        bench.make(bench.retry(claim))
    elif word == "PENDING":
        bench.make(Release(claim=claim))
    else:
        bench.make(bench.finish(claim, word))


# -- the state and the mark --------------------------------------------------------------------
@pytest.mark.parametrize("word", ["PENDING", "STARTED", "RETRY"])
def test_a_task_that_has_not_ended_is_canceled_and_marked(bench: Bench, word: str) -> None:
    prepare(bench, word)
    (before,) = bench.backend.read([bench.uuid("a")])
    assert before is not None

    assert bench.broker.cancel([bench.uuid("a")]) == [Canceled.DONE]

    (after,) = bench.backend.read([bench.uuid("a")])
    assert after == replace(before, state="FAILURE", error="canceled")
    assert bench.broker.canceled([bench.uuid("a"), bench.uuid("b")]) == {bench.uuid("a")}
    assert marks(bench) == 1


@pytest.mark.parametrize("word", ["SUCCESS", "FAILURE"])
def test_a_task_that_has_ended_stays_as_it_ended(bench: Bench, word: str) -> None:
    prepare(bench, word)
    before = bench.dump()

    assert bench.broker.cancel([bench.uuid("a")]) == [Canceled.ENDED]
    assert bench.dump() == before


def test_a_result_that_reads_like_a_cancellation_is_not_taken_for_one(bench: Bench) -> None:
    claim = bench.take_one("a")
    value = {"State": "FAILURE", "Results": None, "Error": "canceled", "Fa": ',"Error":"canceled'}
    state = bench.state(bench.uuid("a"), "SUCCESS")
    state.results = [TaskResult("map[string]interface {}", value)]
    head = encode_state_head(state)
    bench.make(replace(bench.finish(claim), state=head))
    before = bench.dump()

    assert bench.broker.cancel([bench.uuid("a")]) == [Canceled.ENDED]
    assert bench.dump() == before


def test_nothing_is_written_for_an_unknown_task(bench: Bench) -> None:
    before = bench.dump()

    assert bench.broker.cancel([bench.uuid("nobody")]) == [Canceled.UNKNOWN]
    assert bench.dump() == before


def test_a_key_of_another_kind_is_left_alone(bench: Bench) -> None:
    bench.send("a")
    group = GroupMeta(group_uuid=bench.group(), task_uuids=[bench.uuid("a")])
    bench.backend.record_group(group)
    before = bench.dump()

    bad = [bench.queue, bench.group()]
    assert bench.broker.cancel(bad) == [Canceled.BAD_KEY] * 2
    assert bench.broker.cancel([], ahead=bad) == [Canceled.BAD_KEY] * 2
    assert bench.dump() == before


@pytest.mark.parametrize("word", ["PENDING", "STARTED", "RETRY"])
def test_canceling_twice_is_canceling_once(bench: Bench, word: str) -> None:
    prepare(bench, word)
    bench.broker.cancel([bench.uuid("a")])
    before = bench.dump()

    assert bench.broker.cancel([bench.uuid("a")] * 2) == [Canceled.DONE, Canceled.DONE]
    assert bench.dump() == before


def test_several_tasks_are_canceled_each_by_itself_and_in_order(bench: Bench) -> None:
    ended = bench.take_one("ended")
    bench.make(bench.finish(ended))
    bench.send("b", "c")
    names = ["b", "ended", "nobody", "c"]

    codes = bench.broker.cancel([bench.uuid(n) for n in names], ahead=[bench.uuid("later")])

    done, unknown = Canceled.DONE, Canceled.UNKNOWN
    assert codes == [done, Canceled.ENDED, unknown, done, done]
    assert bench.broker.canceled([bench.uuid(n) for n in [*names, "later"]]) == {
        bench.uuid("b"),
        bench.uuid("c"),
    }
    assert marks(bench) == 2


def test_more_tasks_than_one_call_takes_are_all_canceled(bench: Bench) -> None:
    names = [f"n{number}" for number in range(1_100)]
    bench.send(*names)
    uuids = [bench.uuid(name) for name in names]

    assert bench.broker.cancel(uuids) == [Canceled.DONE] * len(names)
    assert bench.broker.canceled(uuids) == set(uuids)
    assert marks(bench) == len(names)


def test_canceling_nothing_is_fine(bench: Bench) -> None:
    assert bench.broker.cancel([]) == []
    assert bench.broker.canceled([]) == set()
    assert marks(bench) == 0


def test_acancel_does_what_cancel_does(bench: Bench) -> None:
    bench.send("a")

    async def ask() -> list[Canceled]:
        return await bench.broker.acancel([bench.uuid("a")], ahead=[bench.uuid("b")])

    assert asyncio.run(ask()) == [Canceled.DONE, Canceled.DONE]
    assert (bench.state_of("a"), bench.state_of("b")) == ("FAILURE", "FAILURE")
    assert bench.broker.canceled([bench.uuid("a"), bench.uuid("b")]) == {bench.uuid("a")}


# -- ahead -------------------------------------------------------------------------------------
def test_a_task_canceled_ahead_is_never_queued(bench: Bench) -> None:
    claim = bench.take_one("a")

    assert bench.broker.cancel([], ahead=[bench.uuid("next")]) == [Canceled.DONE]
    bench.make(bench.finish(claim, follow_ups=[bench.message("next"), bench.message("other")]))

    assert bench.pending() == ["other"]
    (state,) = bench.backend.read([bench.uuid("next")])
    assert state is not None
    assert (state.state, state.error) == ("FAILURE", "canceled")
    assert marks(bench) == 0


def test_a_task_canceled_ahead_that_was_sent_meanwhile_is_canceled_and_marked(
    bench: Bench,
) -> None:
    bench.send("a")

    assert bench.broker.cancel([], ahead=[bench.uuid("a")]) == [Canceled.DONE]
    assert bench.state_of("a") == "FAILURE"
    assert bench.broker.canceled([bench.uuid("a")]) == {bench.uuid("a")}


def test_canceling_ahead_twice_is_canceling_once(bench: Bench) -> None:
    bench.broker.cancel([], ahead=[bench.uuid("a")])
    before = bench.dump()

    assert bench.broker.cancel([bench.uuid("a")], ahead=[bench.uuid("a")]) == [Canceled.DONE] * 2
    assert bench.dump() == before


def test_canceling_ahead_leaves_alone_what_has_ended(bench: Bench) -> None:
    prepare(bench, "SUCCESS")
    before = bench.dump()

    assert bench.broker.cancel([], ahead=[bench.uuid("a")]) == [Canceled.ENDED]
    assert bench.dump() == before


# -- moves of a canceled task ------------------------------------------------------------------
def rich_finish(bench: Bench, claim: Claim) -> Move:
    """Return the good end of a chord's member with a follow-up and a dead letter."""
    return bench.finish(
        claim,
        follow_ups=[bench.message("next")],
        members=[bench.member("a", 1)],
        fallen=[(bench.uuid("below"), encode_state(bench.state("x", "FAILURE")))],
        letter=("letter", b"envelope"),
    )


MOVES: dict[str, Callable[[Bench, Claim], Move]] = {
    "finish": rich_finish,
    "failure": lambda bench, claim: bench.finish(claim, "FAILURE"),
    "retry": lambda bench, claim: bench.retry(claim),
    "retry later": lambda bench, claim: bench.retry(claim, due_ns=bench.now_ns() + HOUR_NS),
}


@pytest.mark.parametrize("build", MOVES.values(), ids=MOVES.keys())
@pytest.mark.parametrize("started", [True, False])
def test_whatever_a_canceled_task_came_to_is_refused_and_changes_nothing(
    bench: Bench, build: Callable[[Bench, Claim], Move], started: bool
) -> None:
    claim = bench.take_one("a")
    if started:
        bench.make(bench.start(claim))
    bench.broker.cancel([bench.uuid("a")])
    before = bench.dump()

    assert bench.make(build(bench, claim)) == [Verdict.CANCELED]
    assert bench.make(build(bench, claim)) == [Verdict.CANCELED]
    assert bench.dump() == before
    assert bench.broker.held(bench.queue, "w1") == [claim]


def test_a_result_that_reads_like_a_cancellation_is_refused_too(bench: Bench) -> None:
    claim = bench.take_one("a")
    value = {"A": 1, "State": "FAILURE", "Results": None, "Error": "canceled"}
    state = bench.state(bench.uuid("a"), "SUCCESS")
    state.results = [TaskResult("map[string]interface {}", value)]
    bench.broker.cancel([bench.uuid("a")])
    before = bench.dump()
    move = replace(bench.finish(claim), state=encode_state_head(state))

    assert bench.make(replace(move, follow_ups=[bench.message("next")])) == [Verdict.CANCELED]
    assert bench.dump() == before


def test_a_canceled_task_is_not_shown_as_started(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.broker.cancel([bench.uuid("a")])
    before = bench.dump()

    bench.make(bench.start(claim))

    assert bench.dump() == before


@pytest.mark.parametrize("error", ["canceled", "canceled: replaced by task_b"])
def test_ending_as_canceled_keeps_the_state_and_takes_the_mark_away(
    bench: Bench, error: str
) -> None:
    claim = bench.take_one("a")
    bench.broker.cancel([bench.uuid("a")])
    (before,) = bench.backend.read([bench.uuid("a")])
    head = bench.head(bench.uuid("a"), "FAILURE", error=error)
    follow_ups = [bench.message("on_error")]

    verdicts = bench.make(replace(bench.finish(claim, follow_ups=follow_ups), state=head))

    assert verdicts == [Verdict.DONE]
    assert bench.backend.read([bench.uuid("a")]) == [before]
    assert bench.broker.canceled([bench.uuid("a")]) == set()
    assert marks(bench) == 0
    assert bench.broker.held(bench.queue, "w1") == []
    assert bench.pending() == ["on_error"]


def test_ending_as_canceled_twice_is_ending_once(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.broker.cancel([bench.uuid("a")])
    move = canceled_end(bench, claim, follow_ups=[bench.message("on_error")])
    bench.make(move)
    before = bench.dump()

    assert bench.make(move) == [Verdict.FENCED]
    assert bench.dump() == before


def test_ending_as_canceled_counts_in_a_chord(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.broker.cancel([bench.uuid("a")])

    verdicts = bench.make(canceled_end(bench, claim, members=[bench.member("a", 1)]))

    assert verdicts == [Verdict.ARMED]


def test_ending_as_canceled_writes_the_state_where_it_has_expired(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.broker.cancel([bench.uuid("a")])
    bench.backend.purge_state(bench.uuid("a"))

    assert bench.make(canceled_end(bench, claim)) == [Verdict.DONE]

    (state,) = bench.backend.read([bench.uuid("a")])
    assert state is not None
    assert (state.state, state.error) == ("FAILURE", "canceled")
    assert marks(bench) == 0


def test_a_late_end_of_a_canceled_task_is_fenced(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))
    bench.broker.cancel([bench.uuid("a")])
    before = bench.dump()

    assert bench.make(bench.finish(claim), canceled_end(bench, claim)) == [Verdict.FENCED] * 2
    assert bench.dump() == before
    assert bench.broker.canceled([bench.uuid("a")]) == {bench.uuid("a")}


def test_a_mark_stays_until_its_message_ends_whoever_holds_it(bench: Bench) -> None:
    bench.take_one("a", "zombie")
    bench.worker("heir")
    bench.broker.cancel([bench.uuid("a")])

    bench.reap("zombie")
    (claim,) = bench.take("heir")

    assert marks(bench) == 1
    assert bench.make(canceled_end(bench, claim)) == [Verdict.DONE]
    assert marks(bench) == 0


def test_other_tasks_go_on_as_ever(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b")
    a, b = bench.take(worker, 2)
    bench.broker.cancel([bench.uuid("a")])

    assert bench.make(bench.finish(a), bench.finish(b)) == [Verdict.CANCELED, Verdict.DONE]
    assert (bench.state_of("a"), bench.state_of("b")) == ("FAILURE", "SUCCESS")


# -- how long a mark is kept -------------------------------------------------------------------
def test_a_mark_is_kept_for_a_week(bench: Bench, request: pytest.FixtureRequest) -> None:
    bench.send("a")
    bench.broker.cancel([bench.uuid("a")])

    assert kept_s(bench, request) == pytest.approx(7 * DAY_S, abs=5)


def test_the_mark_of_a_delayed_task_outlives_its_time(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    message = bench.message("a", due_ns=bench.now_ns() + 30 * 24 * HOUR_NS)
    bench.broker.enqueue([message])
    bench.broker.cancel([bench.uuid("a")])

    assert kept_s(bench, request) == pytest.approx(31 * DAY_S, abs=5)


def kept_s(bench: Bench, request: pytest.FixtureRequest) -> float:
    """Return for how many seconds more the mark of the bench's task is kept."""
    raw = request.getfixturevalue("raw")
    until_ms = raw.zscore(keys.canceled(bench.queue), bench.uuid("a"))
    return float(until_ms) / 1000 - bench.now_ns() / 1e9


def test_a_mark_whose_time_is_over_is_forgotten_at_a_claim(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    worker = bench.worker()
    bench.send("a", "b")
    bench.broker.cancel([bench.uuid("a"), bench.uuid("b")])
    name = keys.canceled(bench.queue)
    request.getfixturevalue("raw").zadd(name, {bench.uuid("a"): bench.now_ns() // 1_000_000})

    bench.take(worker, 0)

    assert bench.broker.canceled([bench.uuid("a"), bench.uuid("b")]) == {bench.uuid("b")}
    assert marks(bench) == 1


# -- states elsewhere --------------------------------------------------------------------------
@pytest.mark.leaves("canceled")
def test_where_states_are_elsewhere_only_the_mark_is_set(
    queue: str, redis_url: str, request: pytest.FixtureRequest
) -> None:
    settings = replace(QueueSettings.of(Config()), default_queue=queue, keeps_states=False)
    broker = RedisBroker(Connections(parse_address(redis_url)), settings)
    uuid = f"task_{queue}"

    codes = broker.cancel([uuid], ahead=[f"{uuid}_later"])

    assert codes == [Canceled.DONE, Canceled.DONE]
    assert broker.canceled([uuid, f"{uuid}_later", f"{uuid}_other"]) == {uuid, f"{uuid}_later"}
    assert request.getfixturevalue("raw").exists(uuid, f"{uuid}_later") == 0
    broker.close()
