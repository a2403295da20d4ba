"""What is due, and what is sent for it: the same whoever asks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError
from machine.periodic.entries import Entry
from machine.periodic.runs import run_of
from machine.periodic.watermarks import MOST_CAUGHT_UP, Step, Watermark, steps
from machine.runtime.supervisor.timetable import decode_timetable, encode_timetable
from machine.wire.signature import Arg, Signature
from machine.workflow.pieces import Chain, Group

HOUR_MS = 3_600_000
T = 500_000 * HOUR_MS


def sig(name: str = "add", **fields: Any) -> Signature:
    return Signature(name=name, args=[Arg("int64", 1)], routing_key="q", headers={}, **fields)


def entry(kind: Any = "task", spec: Any = "@hourly", *signatures: Signature, **ways: Any) -> Entry:
    callback = ways.pop("callback", None)
    return Entry.of(kind, spec, "nightly", signatures or [sig()], callback, **ways)


# -- what is due -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("catch_up", "now_ms", "expected"),
    [
        ("latest", T + HOUR_MS - 1, []),
        ("latest", T + HOUR_MS, [Step(T + HOUR_MS, sends=True)]),
        ("latest", T + 9 * HOUR_MS + 60_000, [Step(T + 9 * HOUR_MS, sends=True)]),
        ("skip", T + HOUR_MS + 10_000, [Step(T + HOUR_MS, sends=True)]),
        ("skip", T + HOUR_MS + 10_001, [Step(T + HOUR_MS, sends=False)]),
        ("skip", T + 9 * HOUR_MS + 60_000, [Step(T + 9 * HOUR_MS, sends=False)]),
        ("all", T + 3 * HOUR_MS, [Step(T + n * HOUR_MS, sends=True) for n in (1, 2, 3)]),
    ],
)
def test_catch_up_says_what_becomes_of_missed_times(
    catch_up: Any, now_ms: int, expected: list[Step]
) -> None:
    assert steps(entry(catch_up=catch_up), T, now_ms) == expected


def test_no_more_than_the_last_hundred_times_are_made_up_for() -> None:
    found = steps(entry(catch_up="all"), T, T + 1000 * HOUR_MS)

    assert [step.due_ms for step in found] == [T + n * HOUR_MS for n in range(901, 1001)]
    assert MOST_CAUGHT_UP == 100


def test_nothing_is_due_where_the_mark_is_ahead_of_the_clock() -> None:
    assert steps(entry(catch_up="all"), T + 24 * HOUR_MS, T) == []


# -- marks -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mark", "text"), [(Watermark(5, 5), "5"), (Watermark(5, 4), "5 4"), (Watermark(5, 0), "5 0")]
)
def test_a_mark_is_its_text(mark: Watermark, text: str) -> None:
    assert mark.text == text
    assert Watermark.of(text) == mark


@pytest.mark.parametrize("text", ["", "x", "-5", "5 x", "5.5", " 5"])
def test_what_is_no_mark_is_none(text: str) -> None:
    assert Watermark.of(text) is None


# -- what is sent ------------------------------------------------------------------------------
KINDS = {
    "task": entry("task"),
    "chain": entry("chain", "@hourly", sig("a"), sig("b"), sig("c")),
    "group": entry("group", "@hourly", sig("a"), sig("b")),
    "chord": entry("chord", "@hourly", sig("a"), sig("b"), callback=sig("c")),
    "tree": entry("task", "@hourly", sig(on_success=[sig("s")], on_error=[sig("e"), sig("f")])),
}
KINDS["workflow"] = Entry.of(
    "chain",
    "@hourly",
    "nightly",
    [Group([sig("a", on_error=[sig("e")]), Chain([sig("b"), sig("c", on_success=[sig("s")])])]),
     Group([sig("d"), sig("d")], "group_mine"), sig("f", on_error=[sig("g")])],
)  # fmt: skip
each_kind = pytest.mark.parametrize("one", KINDS.values(), ids=KINDS)


def ids(signature: Signature) -> list[str]:
    """Return the ids of a signature and of all below it."""
    below = [*signature.on_success, *signature.on_error]
    below += [signature.chord_callback] if signature.chord_callback else []
    return [signature.uuid, *(one for callback in below for one in ids(callback))]


@each_kind
def test_two_that_ask_get_the_same_messages(one: Entry) -> None:
    assert run_of(one, "q", T) == run_of(decode_timetable(encode_timetable([one]))[0], "q", T)


@each_kind
def test_each_time_name_and_home_has_ids_of_its_own(one: Entry) -> None:
    other = Entry(name="other", spec=one.spec, signatures=one.signatures, kind=one.kind,
                  callback=one.callback)  # fmt: skip
    runs = [
        run_of(one, "q", T),
        run_of(one, "q", T + 1),
        run_of(one, "r", T),
        run_of(other, "q", T),
    ]

    found = [{uuid for s in run.signatures for uuid in ids(s)} for run in runs]

    assert len(set.union(*found)) == sum(map(len, found))


@each_kind
def test_the_templates_are_not_written_into(one: Entry) -> None:
    before = encode_timetable([one])

    run_of(one, "q", T)

    assert encode_timetable([one]) == before


def test_an_id_in_a_template_is_not_used_twice() -> None:
    one = entry("task", "@hourly", sig(uuid="task_mine", eta_ns=5))

    [signature] = run_of(one, "q", T).signatures

    assert signature.uuid.startswith("task_")
    assert signature.uuid != "task_mine"
    assert signature.eta_ns is None


def test_a_chain_is_linked_and_every_link_is_known() -> None:
    run = run_of(KINDS["chain"], "q", T)

    [first] = run.signatures
    second, third = first.on_success[0], first.on_success[0].on_success[0]
    assert [s.name for s in (first, second, third)] == ["a", "b", "c"]
    assert run.uuids == [first.uuid, second.uuid, third.uuid]
    assert run.metas == []


def test_a_group_has_a_record_of_its_members() -> None:
    run = run_of(KINDS["group"], "q", T)

    [meta] = run.metas
    assert meta.task_uuids == run.uuids == [s.uuid for s in run.signatures]
    assert {s.group_uuid for s in run.signatures} == {meta.group_uuid}
    assert {s.group_task_count for s in run.signatures} == {2}
    assert meta.group_uuid.startswith("group_")


def test_all_members_of_a_chord_carry_the_same_callback() -> None:
    run = run_of(KINDS["chord"], "q", T)

    callbacks = [s.chord_callback for s in run.signatures]
    assert callbacks[0] is not None
    assert callbacks[0].uuid.startswith("chord_")
    assert callbacks[0] == callbacks[1]
    assert run.uuids == [*(s.uuid for s in run.signatures), callbacks[0].uuid]


def test_what_follows_a_group_has_one_id_in_all_its_members() -> None:
    run = run_of(KINDS["workflow"], "q", T)

    a, b = run.signatures
    [c] = b.on_success
    assert [s.name for s in (a, b, c)] == ["a", "b", "c"]
    assert a.chord_callback == c.chord_callback
    members = {meta.group_uuid: meta.task_uuids for meta in run.metas}
    assert len(members) == 2
    assert members[a.group_uuid] == [a.uuid, c.uuid]
    assert all(meta.nested and meta.group_uuid != "group_mine" for meta in run.metas)


# -- entries -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": ""},
            "Schedule name '' is not usable: give 1 to 200 printable characters.",
        ),
        (
            {"name": "a\nb"},
            "Schedule name 'a\\nb' is not usable: give 1 to 200 printable characters.",
        ),
        (
            {"catch_up": "some"},
            "Schedule 'n': catch_up is 'some'; give 'latest', 'skip' or 'all'.",
        ),
        ({"signatures": ()}, "Schedule 'n': a task cannot have 0 signatures."),
        ({"signatures": (sig(), sig())}, "Schedule 'n': a task cannot have 2 signatures."),
        ({"signatures": (), "kind": "group"}, "Schedule 'n': a group cannot have 0 signatures."),
    ],
)
def test_what_cannot_be_an_entry_is_refused(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"name": "n", "spec": "@hourly", "signatures": (sig(),)}

    with pytest.raises(SignatureError) as caught:
        Entry(**(fields | changes))

    assert str(caught.value) == message


def test_an_interval_becomes_text() -> None:
    assert entry("task", timedelta(seconds=0.5)).spec == "@interval 500ms"


def test_entries_of_the_same_words_are_equal() -> None:
    assert entry("chain", "@daily", sig("a"), sig("b")) == entry(
        "chain", "@daily", sig("a"), sig("b")
    )
    assert entry("task", "@daily") != entry("task", "@hourly")


# -- between processes -------------------------------------------------------------------------
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(
    st.lists(
        st.builds(
            lambda kind, name, value, catch_up, overlap, spec: Entry(
                name=name,
                spec=spec,
                signatures=(
                    Signature(name="a", args=[Arg("string", value)], headers={"x": value}),
                ),
                kind=kind,
                callback=sig("c") if kind == "chord" else None,
                catch_up=catch_up,
                overlap=overlap,
            ),
            st.sampled_from(["task", "chain", "group", "chord"]),
            NAMES,
            st.text(st.characters(exclude_categories=["Cs"])),
            st.sampled_from(["latest", "skip", "all"]),
            st.booleans(),
            st.sampled_from(["@daily", "0 9\t* * *", "@interval 250ms", "TZ=Asia/Tokyo @daily"]),
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_again(entries: list[Entry]) -> None:
    assert decode_timetable(encode_timetable(entries)) == entries


def test_only_the_last_line_of_a_report_is_its_end() -> None:
    lines = encode_timetable(
        [entry(), entry("chord", "@daily", sig("end"), callback=sig("end"))]
    ).split(b"\n")

    assert lines[-2:] == [b"end", b""]
    assert b"end" not in lines[:-2]
