"""The broker contract: tasks that will never run, because one before them failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machine.ports.moves import Canceled, ChordShot, Release, Verdict
from machine.redis import keys
from machine.wire.signature import GroupMeta
from machine.wire.states import encode_group, encode_state

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

DAY_S = 86_400


def lost(bench: Bench, name: str, error: str = "not run: add x failed: boom") -> tuple[str, bytes]:
    """Return the record of a task that will never run."""
    uuid = bench.uuid(name)
    return uuid, encode_state(bench.state(uuid, "FAILURE", error=error))


def armed(bench: Bench) -> list[str]:
    """Return the groups of the bench's queue whose chords have not fired."""
    _, chords = bench.broker.armed(bench.queue, 0, 100)
    return sorted(group for group, _ in chords)


def arm(bench: Bench, name: str, group: str = "g", count: int = 1) -> None:
    """End the last member of a chord."""
    claim = bench.take_one(name)
    member = bench.member(name, count, group)
    assert bench.make(bench.finish(claim, "FAILURE", members=[member])) == [Verdict.ARMED]


# -- at a failure ------------------------------------------------------------------------------
def test_what_will_never_run_is_recorded(bench: Bench) -> None:
    claim = bench.take_one("a")

    verdicts = bench.make(
        bench.finish(claim, "FAILURE", fallen=[lost(bench, "b"), lost(bench, "c")])
    )

    assert verdicts == [Verdict.DONE]
    error = "not run: add x failed: boom"
    expected = [bench.state(bench.uuid(name), "FAILURE", error=error) for name in "bc"]
    assert bench.backend.read([bench.uuid("b"), bench.uuid("c")]) == expected
    assert bench.pending() == []


def test_what_has_a_state_already_keeps_it(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.send("b")
    bench.backend.record(bench.state(bench.uuid("c"), "SUCCESS"))

    fallen = [lost(bench, "b"), lost(bench, "c"), lost(bench, "d")]
    bench.make(bench.finish(claim, "FAILURE", fallen=fallen))

    assert [bench.state_of(name) for name in "bcd"] == ["PENDING", "SUCCESS", "FAILURE"]


def test_what_was_recorded_as_never_run_is_never_queued(bench: Bench) -> None:
    claim, other = bench.take_one("a"), bench.take_one("b")
    bench.make(bench.finish(claim, "FAILURE", fallen=[lost(bench, "next")]))

    bench.make(bench.finish(other, follow_ups=[bench.message("next")]))

    assert bench.pending() == []
    assert bench.state_of("next") == "FAILURE"


def test_members_of_chords_among_them_count_as_ended(bench: Bench) -> None:
    claim = bench.take_one("a")

    verdicts = bench.make(
        bench.finish(
            claim,
            "FAILURE",
            fallen=[lost(bench, "b"), lost(bench, "c")],
            members=[bench.member("b", 2), bench.member("c", 2)],
        )
    )

    assert verdicts == [Verdict.ARMED]
    assert armed(bench) == [bench.group()]


def test_one_failure_may_arm_several_chords(bench: Bench) -> None:
    claim = bench.take_one("a")
    members = [bench.member("a", 1, "g1"), bench.member("b", 2, "g2"), bench.member("c", 1, "g3")]

    assert bench.make(bench.finish(claim, "FAILURE", members=members)) == [Verdict.ARMED]
    assert armed(bench) == [bench.group("g1"), bench.group("g3")]


@pytest.mark.parametrize("last", [True, False])
def test_it_is_armed_wherever_in_the_row_the_last_member_stands(bench: Bench, last: bool) -> None:
    claim = bench.take_one("a")
    members = [bench.member("a", 5, "g1"), bench.member("b", 1, "g2")]

    verdicts = bench.make(
        bench.finish(claim, "FAILURE", members=members if last else members[::-1])
    )

    assert verdicts == [Verdict.ARMED]
    assert armed(bench) == [bench.group("g2")]


def test_a_late_failure_records_and_counts_nothing(bench: Bench) -> None:
    claim = bench.take_one("a")
    bench.make(Release(claim=claim))
    before = bench.dump()

    move = bench.finish(claim, "FAILURE", fallen=[lost(bench, "b")], members=[bench.member("b", 1)])

    assert bench.make(move) == [Verdict.FENCED]
    assert bench.dump() == before


def test_the_same_failure_twice_counts_once(bench: Bench) -> None:
    claim = bench.take_one("a")
    move = bench.finish(claim, "FAILURE", fallen=[lost(bench, "b")], members=[bench.member("b", 2)])
    bench.make(move)
    before = bench.dump()

    assert bench.make(move) == [Verdict.FENCED]
    assert bench.dump() == before
    assert armed(bench) == []


# -- at a chord's failure ----------------------------------------------------------------------
def outer_shot(bench: Bench, *, shared: bool = False, meta: bytes = b"") -> ChordShot:
    """Return the shot of a chord whose callback fails, and is the last member of another."""
    return ChordShot(
        *(bench.queue, bench.group(), [bench.message("on_error")], meta, shared),
        fallen=[lost(bench, "callback"), lost(bench, "below")],
        members=[bench.member("callback", 2, "outer")],
    )


def test_a_callback_that_never_runs_counts_in_the_chord_it_is_a_member_of(bench: Bench) -> None:
    first = bench.take_one("first")
    bench.make(bench.finish(first, members=[bench.member("first", 2, "outer")]))
    arm(bench, "a")

    verdict = bench.broker.fire_chord(outer_shot(bench))

    assert verdict is Verdict.ARMED
    assert armed(bench) == [bench.group("outer")]
    assert (bench.state_of("callback"), bench.state_of("below")) == ("FAILURE", "FAILURE")
    assert bench.pending() == ["on_error"]


def test_it_does_not_arm_what_others_keep_waiting(bench: Bench) -> None:
    arm(bench, "a")

    assert bench.broker.fire_chord(outer_shot(bench)) is Verdict.DONE
    assert armed(bench) == []


@pytest.mark.parametrize(
    ("before_s", "after_s"),
    [(60, DAY_S), (30 * DAY_S, 30 * DAY_S)],
    ids=["it was about to expire", "its last member is due in a month"],
)
def test_a_callback_that_never_runs_keeps_the_group_it_is_a_member_of_alive(
    bench: Bench, raw: Any, before_s: int, after_s: int
) -> None:
    outer = bench.group("outer")
    bench.backend.record_group(GroupMeta(group_uuid=outer, task_uuids=[]))
    raw.expire(outer, before_s)
    arm(bench, "a")

    bench.broker.fire_chord(outer_shot(bench))

    kept_s = [raw.ttl(key) for key in (outer, keys.group_done(bench.queue, outer))]
    assert all(after_s - 60 < each <= after_s for each in kept_s), kept_s


def test_a_callback_that_never_runs_lets_nothing_expire_but_a_group(bench: Bench, raw: Any) -> None:
    outer = bench.group("outer")
    raw.set(outer, b"something else")
    arm(bench, "a")

    bench.broker.fire_chord(outer_shot(bench))

    assert raw.ttl(outer) == -1


def test_a_failed_chord_fired_twice_is_fired_once(bench: Bench) -> None:
    arm(bench, "a")
    bench.broker.fire_chord(outer_shot(bench))
    before = bench.dump()

    assert bench.broker.fire_chord(outer_shot(bench)) is Verdict.FENCED
    assert bench.dump() == before


def test_a_chord_that_is_not_armed_records_and_counts_nothing(bench: Bench) -> None:
    before = bench.dump()

    assert bench.broker.fire_chord(outer_shot(bench)) is Verdict.FENCED
    assert bench.broker.fire_chord(outer_shot(bench, shared=True)) is Verdict.FENCED
    assert bench.dump() == before


def test_a_shared_chord_without_its_meta_is_fired_once(bench: Bench) -> None:
    arm(bench, "a", count=0)
    callback = bench.message("callback")._replace(pending=b"")
    shot = ChordShot(bench.queue, bench.group(), [callback], b"", shared=True)

    verdicts = [bench.broker.fire_chord(shot), bench.broker.fire_chord(shot)]

    assert verdicts == [Verdict.DONE, Verdict.FENCED]
    assert bench.pending() == ["callback"]


def test_a_failed_chord_that_go_has_marked_as_triggered_is_told_of_once(bench: Bench) -> None:
    meta = GroupMeta(
        group_uuid=bench.group(),
        task_uuids=[bench.uuid("a")],
        chord_triggered=True,
        created_at="2026-11-20T15:15:26.418773057Z",
    )
    bench.backend.record_group(meta)
    arm(bench, "a", count=0)
    shot = outer_shot(bench, shared=True, meta=encode_group(meta))

    verdicts = [bench.broker.fire_chord(shot), bench.broker.fire_chord(shot)]

    assert verdicts == [Verdict.DONE, Verdict.FENCED]
    assert bench.state_of("callback") == "FAILURE"
    assert bench.pending() == ["on_error"]


# -- states that were written before their tasks were sent ------------------------------------
@pytest.fixture
def ahead(bench: Bench) -> str:
    """Return the id of a task that is to be sent later, and whose state Go may read."""
    state = bench.state(bench.uuid("later"), "PENDING")
    meta = GroupMeta(group_uuid=bench.group(), task_uuids=[state.task_uuid])
    bench.backend.record_group(meta, ahead=[state])
    assert bench.backend.read([state.task_uuid]) == [state]
    return state.task_uuid


def test_a_follow_up_is_queued_over_a_state_that_was_written_ahead(
    bench: Bench, ahead: str
) -> None:
    first, second = bench.take_one("a"), bench.take_one("b")
    later = bench.message("later")

    verdicts = bench.make(*(bench.finish(claim, follow_ups=[later]) for claim in (first, second)))

    assert verdicts == [Verdict.DONE, Verdict.DONE]
    assert ahead == later.uuid
    assert bench.pending() == ["later"]


def test_what_will_never_run_is_recorded_over_a_state_that_was_written_ahead(
    bench: Bench, ahead: str
) -> None:
    bench.make(bench.finish(bench.take_one("a"), "FAILURE", fallen=[lost(bench, "later")]))

    assert bench.state_of("later") == "FAILURE"
    assert ahead == bench.uuid("later")


def test_a_callback_is_sent_over_a_state_that_was_written_ahead(bench: Bench, ahead: str) -> None:
    arm(bench, "a")
    later = bench.message("later")

    assert (
        bench.broker.fire_chord(ChordShot(bench.queue, bench.group("g"), [later], b""))
        is Verdict.DONE
    )

    assert bench.pending() == ["later"]
    assert ahead == later.uuid


def test_a_task_with_a_state_that_was_written_ahead_is_canceled_without_a_mark(
    bench: Bench, ahead: str
) -> None:
    assert bench.broker.cancel([ahead]) == [Canceled.DONE]

    assert bench.broker.canceled([ahead]) == set()
    claim = bench.take_one("a")
    bench.make(bench.finish(claim, follow_ups=[bench.message("later")]))
    assert bench.pending() == []
    assert bench.state_of("later") == "FAILURE"
