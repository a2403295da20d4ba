"""The broker contract: leases, dead workers, crash counts, convictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machine.ports.broker import Reaped
from machine.ports.moves import Release, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench


def crash(bench: Bench, times: int, heir: str = "heir") -> Reaped:
    """Claim everything and die, so many times; return what the last reap did."""
    bench.worker(heir)
    reaped = Reaped(0, [])
    for i in range(times):
        worker = bench.worker(f"victim{i}")
        bench.take(worker, 1000)
        reaped = bench.reap(worker, heir)
    return reaped


# -- the roster --------------------------------------------------------------------------------
def test_a_registered_worker_is_on_the_roster_of_each_queue(bench: Bench) -> None:
    other = f"{bench.queue}.other"

    bench.broker.register("w1", [bench.queue, other])

    for queue in (bench.queue, other):
        roster = bench.broker.roster(queue)
        assert list(roster.stamps) == ["w1"]
        assert 0 <= roster.stamps["w1"] - roster.now_ms <= 15_000


def test_an_empty_roster_has_no_stamps(bench: Bench) -> None:
    roster = bench.broker.roster(bench.queue)

    assert roster.stamps == {}
    assert abs(roster.now_ms - bench.now_ns() // 1_000_000) < 60_000


def test_registering_again_keeps_the_claims(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.broker.register("w1", [bench.queue])

    assert bench.broker.held(bench.queue, "w1") == [claim]


def test_a_worker_that_holds_nothing_leaves_the_roster(bench: Bench) -> None:
    bench.worker("w1")
    bench.worker("w2")

    bench.broker.unregister("w1", [bench.queue])
    bench.broker.unregister("w1", [bench.queue])

    assert list(bench.broker.roster(bench.queue).stamps) == ["w2"]


def test_a_worker_that_holds_a_claim_stays_on_the_roster(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.broker.unregister("w1", [bench.queue])

    assert list(bench.broker.roster(bench.queue).stamps) == ["w1"]
    assert bench.broker.held(bench.queue, "w1") == [claim]
    assert bench.make(bench.finish(claim)) == [Verdict.DONE]


def test_a_worker_leaves_only_the_queues_where_it_holds_nothing(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    bench.worker("w1", bench.queue, other)
    bench.send("a")
    bench.take("w1")

    bench.broker.unregister("w1", [bench.queue, other])

    assert list(bench.broker.roster(bench.queue).stamps) == ["w1"]
    assert bench.broker.roster(other).stamps == {}


def test_a_worker_that_left_claims_nothing(bench: Bench) -> None:
    bench.worker("w1")
    bench.broker.unregister("w1", [bench.queue])
    bench.send("a")

    assert bench.take("w1") == []
    assert bench.pending() == ["a"]


# -- heartbeats --------------------------------------------------------------------------------
def test_a_heartbeat_says_how_many_claims_each_worker_holds(bench: Bench) -> None:
    bench.worker("w1")
    bench.worker("w2")
    bench.send("a", "b", "c")
    bench.take("w1", 2)

    assert bench.broker.heartbeat(bench.queue, ["w1", "w2"]) == [2, 0]


def test_a_heartbeat_of_an_unknown_worker_registers_nobody(bench: Bench) -> None:
    bench.worker("w1")

    assert bench.broker.heartbeat(bench.queue, ["stranger", "w1"]) == [None, 0]
    assert list(bench.broker.roster(bench.queue).stamps) == ["w1"]


def test_a_heartbeat_and_a_claim_never_take_the_stamp_back(bench: Bench) -> None:
    worker = bench.worker()
    stamps = [bench.stamp(worker)]

    bench.broker.heartbeat(bench.queue, [worker])
    stamps.append(bench.stamp(worker))
    bench.take(worker, 0)
    stamps.append(bench.stamp(worker))

    assert stamps == sorted(stamps)


def test_a_heartbeat_after_the_reaper_came_answers_none(bench: Bench) -> None:
    bench.take_one("a", "victim")
    bench.worker("heir")
    bench.reap("victim")

    assert bench.broker.heartbeat(bench.queue, ["victim"]) == [None]


# -- reaping -----------------------------------------------------------------------------------
def test_a_dead_workers_claims_go_back_to_the_head_in_order(bench: Bench) -> None:
    worker = bench.worker("victim")
    bench.worker("heir")
    bench.send("a", "b", "c", "d", "e")
    bench.take(worker, 2)
    bench.take(worker, 1)

    reaped = bench.reap(worker)

    assert reaped == Reaped(3, [])
    assert bench.pending() == ["a", "b", "c", "d", "e"]
    assert bench.broker.held(bench.queue, worker) == []
    assert list(bench.broker.roster(bench.queue).stamps) == ["heir"]


def test_reaping_again_with_the_same_stamp_changes_nothing(bench: Bench) -> None:
    bench.take_one("a", "victim")
    bench.worker("heir")
    stamp = bench.stamp("victim")
    bench.broker.reap(bench.queue, "victim", stamp, "heir", [])
    before = bench.dump()

    again = bench.broker.reap(bench.queue, "victim", stamp, "heir", [])

    assert again == Reaped(0, [])
    assert bench.dump() == before


def test_reaping_with_a_stale_stamp_changes_nothing(bench: Bench) -> None:
    bench.take_one("a", "alive")
    bench.worker("heir")
    stamp = bench.stamp("alive")
    before = bench.dump()

    for stale in (stamp - 1, stamp + 1, 0):
        reaped = bench.broker.reap(bench.queue, "alive", stale, "heir", [])

        assert reaped == Reaped(0, [])
        assert bench.dump() == before


def test_reaping_a_worker_nobody_knows_changes_nothing(bench: Bench) -> None:
    bench.worker("heir")
    before = bench.dump()

    assert bench.broker.reap(bench.queue, "stranger", 0, "heir", []) == Reaped(0, [])
    assert bench.dump() == before


def test_an_heir_that_is_not_registered_gets_nothing(bench: Bench) -> None:
    bench.take_one("a", "victim")
    before = bench.dump()

    reaped = bench.reap("victim", "stranger")

    assert reaped == Reaped(0, [])
    assert bench.dump() == before


def test_a_dead_worker_that_held_nothing_leaves_the_roster(bench: Bench) -> None:
    bench.worker("victim")
    bench.worker("heir")

    assert bench.reap("victim") == Reaped(0, [])
    assert list(bench.broker.roster(bench.queue).stamps) == ["heir"]


def test_reaping_one_worker_leaves_the_others_alone(bench: Bench) -> None:
    bench.take_one("a", "victim")
    claim = bench.take_one("b", "neighbour")
    bench.worker("heir")

    bench.reap("victim")

    assert bench.pending() == ["a"]
    assert bench.broker.held(bench.queue, "neighbour") == [claim]


def test_at_most_two_hundred_claims_go_back_in_one_call(bench: Bench) -> None:
    worker = bench.worker("victim")
    bench.worker("heir")
    names = [f"n{i:03}" for i in range(250)]
    bench.send(*names)
    bench.take(worker, 250)
    stamp = bench.stamp(worker)

    first = bench.broker.reap(bench.queue, worker, stamp, "heir", [])

    assert first == Reaped(200, [])
    assert bench.pending() == names[:200]
    assert worker in bench.broker.roster(bench.queue).stamps

    second = bench.broker.reap(bench.queue, worker, stamp, "heir", [])

    assert second == Reaped(50, [])
    assert sorted(bench.pending()) == names
    assert worker not in bench.broker.roster(bench.queue).stamps


# -- crash counts ------------------------------------------------------------------------------
def test_each_death_counts_one_crash(bench: Bench) -> None:
    bench.send("a")
    counts = []
    for worker in ("v1", "v2"):
        (claim,) = bench.take(bench.worker(worker))
        counts.append(claim.crash_count)
        bench.worker("heir")
        bench.reap(worker)
    (claim,) = bench.take(bench.worker("w3"))

    assert [*counts, claim.crash_count] == [0, 1, 2]


def test_a_death_counts_only_for_what_was_held(bench: Bench) -> None:
    bench.send("a", "b")
    bench.take(bench.worker("victim"), 1)
    bench.worker("heir")
    bench.reap("victim")

    counts = {bench.name_of(c.payload): c.crash_count for c in bench.take("heir", 2)}

    assert counts == {"a": 1, "b": 0}


def test_what_a_worker_holds_is_shown_with_its_crash_counts(bench: Bench) -> None:
    bench.send("a")
    crash(bench, 1)
    claims = bench.take("heir")

    assert [claim.crash_count for claim in claims] == [1]
    assert bench.broker.held(bench.queue, "heir") == claims


def test_release_neither_adds_to_the_crash_count_nor_forgets_it(bench: Bench) -> None:
    bench.send("a")
    crash(bench, 2)
    (claim,) = bench.take("heir")

    bench.make(Release(claim=claim))
    (again,) = bench.take("heir")

    assert (claim.crash_count, again.crash_count) == (2, 2)


def test_a_finish_forgets_the_crash_count(bench: Bench) -> None:
    (message,) = bench.send("a")
    crash(bench, 2)
    bench.make(bench.finish(bench.take("heir")[0]))
    bench.broker.enqueue([message._replace(pending=b"")])

    (claim,) = bench.take("heir")

    assert claim.payload == message.payload
    assert claim.crash_count == 0


# -- convictions -------------------------------------------------------------------------------
def test_a_message_at_the_limit_becomes_a_claim_of_the_heir(bench: Bench) -> None:
    (message,) = bench.send("poison")

    reaped = crash(bench, 3)

    assert reaped.requeued == 0
    (claim,) = reaped.convicted
    assert (claim.worker_id, claim.queue, claim.payload, claim.crash_count) == (
        "heir",
        bench.queue,
        message.payload,
        3,
    )
    assert bench.broker.held(bench.queue, "heir") == [claim]
    assert bench.pending() == []


def test_a_convicted_claim_is_finished_by_the_heir_like_any_other(bench: Bench) -> None:
    bench.send("poison")
    (claim,) = crash(bench, 3).convicted

    verdicts = bench.make(bench.finish(claim, "FAILURE", letter=("letter", b"envelope")))

    assert verdicts == [Verdict.DONE]
    assert bench.state_of("poison") == "FAILURE"
    assert bench.broker.held(bench.queue, "heir") == []


def test_a_convicted_message_goes_to_the_next_heir_when_the_first_one_dies(bench: Bench) -> None:
    bench.send("poison")
    crash(bench, 3)
    bench.worker("second")

    reaped = bench.reap("heir", "second")

    assert reaped.requeued == 0
    assert [(c.worker_id, c.crash_count) for c in reaped.convicted] == [("second", 4)]
    assert bench.pending() == []


def test_the_victims_late_finish_of_a_convicted_message_is_fenced(bench: Bench) -> None:
    bench.send("poison")
    crash(bench, 2)
    (mine,) = bench.take(bench.worker("zombie"))
    bench.reap("zombie")
    before = bench.dump()

    assert bench.make(bench.finish(mine)) == [Verdict.FENCED]
    assert bench.dump() == before


def test_the_limit_is_the_brokers_setting(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_deliveries=1)
    bench.send("a")

    reaped = crash(bench, 1)

    assert [claim.crash_count for claim in reaped.convicted] == [1]


def test_a_claim_may_be_convicted_by_name_at_its_first_crash(bench: Bench) -> None:
    bench.send("a", "b", "c")
    worker = bench.worker("victim")
    bench.worker("heir")
    claims = bench.take(worker, 3)

    reaped = bench.reap(worker, "heir", (claims[1].id, "no-such-claim"))

    assert reaped.requeued == 2
    assert [(c.payload, c.crash_count) for c in reaped.convicted] == [(claims[1].payload, 1)]
    assert bench.pending() == ["a", "c"]


def test_innocents_go_back_when_a_neighbour_is_convicted(bench: Bench) -> None:
    bench.send("poison")
    crash(bench, 2)
    bench.send("innocent")
    worker = bench.worker("victim")
    bench.take(worker, 2)

    reaped = bench.reap(worker)

    assert [bench.name_of(claim.payload) for claim in reaped.convicted] == ["poison"]
    assert bench.pending() == ["innocent"]
