"""The broker contract: a chord arms once, and fires once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from machine.ports.moves import ChordShot, Release, Verdict
from machine.wire.signature import GroupMeta
from machine.wire.states import encode_group

if TYPE_CHECKING:
    from tests.contract.conftest import Bench


def end_members(bench: Bench, names: list[str], count: int, group: str = "g") -> list[Verdict]:
    """Send, claim and finish members of a group, one after the other, in this order."""
    worker = bench.worker()
    bench.send(*names)
    claims = {bench.name_of(claim.payload): claim for claim in bench.take(worker, len(names))}
    return [
        bench.make(bench.finish(claims[name], members=[bench.member(name, count, group)]))[0]
        for name in names
    ]


def armed(bench: Bench) -> list[tuple[str, bytes]]:
    """Return all chords of the bench's queue that have not fired."""
    cursor, chords = bench.broker.armed(bench.queue, 0, 10)
    while cursor:
        cursor, more = bench.broker.armed(bench.queue, cursor, 10)
        chords += more
    return chords


def shot_of(bench: Bench, **changes: object) -> ChordShot:
    """Return the shot that sends the bench's callback."""
    shot = ChordShot(bench.queue, bench.group(), [bench.message("callback")], b"")
    return shot._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [list(order) for order in itertools.permutations("abcd")])
def test_the_last_member_arms_the_chord_whatever_the_order(bench: Bench, order: list[str]) -> None:
    verdicts = end_members(bench, order, 4)

    assert verdicts == [Verdict.DONE, Verdict.DONE, Verdict.DONE, Verdict.ARMED]
    assert armed(bench) == [(bench.group(), bench.member("a", 4).callback)]


def test_a_chord_is_not_armed_before_its_last_member(bench: Bench) -> None:
    end_members(bench, ["a", "b"], 3)

    assert armed(bench) == []


def test_members_ending_in_one_exchange_arm_it_once(bench: Bench) -> None:
    worker = bench.worker()
    bench.send("a", "b", "c")
    moves = [
        bench.finish(claim, members=[bench.member(bench.name_of(claim.payload), 3)])
        for claim in bench.take(worker, 3)
    ]

    verdicts = bench.make(*moves)

    assert sorted(verdicts) == [Verdict.DONE, Verdict.DONE, Verdict.ARMED]
    assert len(armed(bench)) == 1


def test_a_member_that_ends_twice_counts_once(bench: Bench) -> None:
    end_members(bench, ["a"], 2)
    claim = bench.take_one("again")

    verdicts = bench.make(bench.finish(claim, members=[bench.member("a", 2)]))

    assert verdicts == [Verdict.DONE]
    assert armed(bench) == []


def test_a_chord_that_was_fired_is_not_armed_again_by_a_member_that_ends_again(
    bench: Bench,
) -> None:
    end_members(bench, ["a", "b"], 2)
    bench.broker.fire_chord(shot_of(bench, messages=[]))
    again = bench.take_one("again")

    verdicts = bench.make(bench.finish(again, members=[bench.member("b", 2)]))

    assert verdicts == [Verdict.DONE]
    assert armed(bench) == []


def test_a_late_member_counts_for_nothing(bench: Bench) -> None:
    end_members(bench, ["a"], 2)
    claim = bench.take_one("b")
    bench.make(Release(claim=claim))
    before = bench.dump()

    verdicts = bench.make(bench.finish(claim, members=[bench.member("b", 2)]))

    assert verdicts == [Verdict.FENCED]
    assert bench.dump() == before


def test_groups_do_not_count_each_others_members(bench: Bench) -> None:
    end_members(bench, ["a"], 2, "g1")
    verdicts = end_members(bench, ["b"], 2, "g2")

    assert verdicts == [Verdict.DONE]
    assert armed(bench) == []


def test_no_more_armed_chords_are_shown_than_there_are(bench: Bench) -> None:
    for group in ("g1", "g2", "g3"):
        end_members(bench, [f"{group}-a"], 1, group)

    shown = armed(bench)

    assert {group for group, _ in shown} == {bench.group(g) for g in ("g1", "g2", "g3")}


def test_a_chord_is_fired_exactly_once(bench: Bench) -> None:
    end_members(bench, ["a"], 1)

    assert bench.broker.fire_chord(shot_of(bench)) is Verdict.DONE
    before = bench.dump()

    assert bench.broker.fire_chord(shot_of(bench)) is Verdict.FENCED
    assert bench.dump() == before
    assert bench.pending() == ["callback"]
    assert bench.state_of("callback") == "PENDING"
    assert armed(bench) == []


def test_a_chord_that_is_not_armed_does_not_fire(bench: Bench) -> None:
    end_members(bench, ["a"], 2)
    before = bench.dump()

    assert bench.broker.fire_chord(shot_of(bench)) is Verdict.FENCED
    assert bench.dump() == before


def test_a_callback_that_was_sent_before_is_not_sent_again(bench: Bench) -> None:
    end_members(bench, ["a"], 1)
    bench.send("callback")

    assert bench.broker.fire_chord(shot_of(bench)) is Verdict.DONE
    assert bench.pending() == ["callback"]


def test_a_callback_that_never_runs_gets_its_failure(bench: Bench) -> None:
    end_members(bench, ["a"], 1)
    failed = bench.state(bench.uuid("callback"), "FAILURE", error="member a failed")
    head = bench.head(bench.uuid("callback"), "FAILURE", error="member a failed")

    fired = bench.broker.fire_chord(
        shot_of(
            bench,
            messages=[bench.message("on_error")],
            fallen=[(bench.uuid("callback"), whole(bench, head))],
        )
    )

    assert fired is Verdict.DONE
    assert bench.pending() == ["on_error"]
    assert bench.backend.read([bench.uuid("callback")]) == [failed]


def whole(bench: Bench, head: bytes) -> bytes:
    """Return a head with the creation time every state of a bench has."""
    created_at = bench.state("x", "FAILURE").created_at
    return head + f'"CreatedAt":"{created_at}","TTL":0}}'.encode()


def test_a_failure_does_not_replace_a_state_that_is_there(bench: Bench) -> None:
    end_members(bench, ["a"], 1)
    bench.send("callback")
    failed = (bench.uuid("callback"), whole(bench, bench.head(bench.uuid("callback"), "FAILURE")))

    bench.broker.fire_chord(shot_of(bench, messages=[], fallen=[failed]))

    assert bench.state_of("callback") == "PENDING"


def test_firing_marks_the_group_as_triggered(bench: Bench) -> None:
    end_members(bench, ["a"], 1)
    meta = GroupMeta(
        group_uuid=bench.group(),
        task_uuids=[bench.uuid("a")],
        created_at="2026-11-20T15:15:26.418773057Z",
    )
    bench.backend.record_group(meta)
    meta.chord_triggered = True

    bench.broker.fire_chord(shot_of(bench, meta=encode_group(meta)))

    assert bench.backend.read_group(bench.group()) == meta


# -- chords that Go workers may trigger too ------------------------------------------------------
def test_a_member_of_a_shared_chord_arms_it_each_time(bench: Bench) -> None:
    first, second = bench.take_one("a"), bench.take_one("b")

    verdicts = bench.make(
        bench.finish(first, members=[bench.member("a", count=0)]),
        bench.finish(second, members=[bench.member("b", count=0)]),
    )

    assert verdicts == [Verdict.ARMED, Verdict.ARMED]
    assert [group for group, _ in armed(bench)] == [bench.group()]


def test_a_member_of_a_shared_chord_that_ends_again_does_not_arm_it(bench: Bench) -> None:
    member = bench.member("a", count=0)
    bench.make(bench.finish(bench.take_one("a"), members=[member]))
    bench.broker.fire_chord(shot_of(bench, messages=[], shared=True))

    verdicts = bench.make(bench.finish(bench.take_one("again"), members=[member]))

    assert verdicts == [Verdict.DONE]
    assert armed(bench) == []
