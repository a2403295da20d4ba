"""States, group metas and dead letters as bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError, WireError
from machine.wire.signature import GroupMeta, State, TaskResult, TaskState
from machine.wire.states import (
    STATE_TAIL,
    decode_group,
    decode_letter,
    decode_results,
    decode_state,
    encode_group,
    encode_letter,
    encode_state,
    encode_state_head,
)
from machine.wire.text import ZERO_TIME

GOLDEN = Path(__file__).parents[2] / "golden"
#: What the scripts look for in a stored state.
CREATED = re.compile(rb'"CreatedAt":"[^"]*"')
NOW = "2026-11-20T15:15:26.418773057Z"


def names(prefix: str) -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.json"))


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def spliced(state: TaskState, created_at: str) -> bytes:
    """Do what the scripts do with a head."""
    return b'%s"CreatedAt":"%s"%s' % (
        encode_state_head(state),
        created_at.encode(),
        STATE_TAIL,
    )


def refusal(read: Any, raw: bytes) -> str:
    with pytest.raises(WireError) as caught:
        read(raw)
    return str(caught.value)


@pytest.mark.parametrize("name", names("state"))
def test_a_state_of_machinery_is_written_again_byte_for_byte(name: str) -> None:
    raw = golden(name)

    state = decode_state(raw)

    assert encode_state(state) == raw
    assert spliced(state, state.created_at) == raw


@pytest.mark.parametrize("name", names("group"))
def test_a_group_of_machinery_is_written_again_byte_for_byte(name: str) -> None:
    raw = golden(name)

    meta = decode_group(raw)

    assert encode_group(meta) == raw
    assert meta.chord_triggered == (name == "group_meta_triggered")
    assert len(meta.task_uuids) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", [2]),
        ("bytes", [b"hi\xff"]),
        ("nil", [[]]),
        ("nothing", []),
        ("map", [{"a": [None, "x", 1.5], "b": 1}]),
        ("list", [[1, "x", None]]),
        (
            "several",
            ["foo<", -7, 1e21, 0.10000000149011612, True, ["a", "&"], [1, -2], [0.5, 1.0],
             (1 << 64) - 1],
        ),
    ],
)  # fmt: skip
def test_results_of_a_go_worker_become_python_values(name: str, expected: list[Any]) -> None:
    state = decode_state(golden(f"state_success_{name}"))

    assert state.is_success
    assert repr(decode_results(state)) == repr(expected)


def test_only_a_success_has_results() -> None:
    for name in ("pending", "received", "started", "retry", "failure"):
        state = decode_state(golden(f"state_{name}"))

        assert (state.state, state.results) == (name.upper(), None)
        assert decode_results(state) == []


def test_a_failure_keeps_its_text() -> None:
    state = decode_state(golden("state_failure"))

    assert state.is_failure
    assert state.error == 'Test error <&> "q" \u2028'


def test_a_result_of_an_unknown_type_is_refused_in_gos_words() -> None:
    state = TaskState(task_uuid="task_1", state="SUCCESS", results=[TaskResult("main.T", {})])

    with pytest.raises(WireError, match=r"^main\.T is not one of supported types$"):
        decode_results(state)


def test_a_state_of_2016_has_one_result() -> None:
    raw = b'{"TaskUUID":"task_1","State":"SUCCESS","Result":{"Type":"int64","Value":3},"Error":""}'

    state = decode_state(raw)

    assert state.results == [TaskResult("int64", 3)]
    assert (state.task_name, state.created_at) == ("", "")


def test_a_state_is_read_in_any_case_and_unknown_fields_are_ignored() -> None:
    raw = (
        b'{"taskuuid":"task_1","STATE":"SUCCESS","Mood":0.5,"error":null,'
        b'"results":[{"value":1,"type":"int64"}]}'
    )

    expected = TaskState(task_uuid="task_1", state="SUCCESS", results=[TaskResult("int64", 1)])
    assert decode_state(raw) == expected


@pytest.mark.parametrize("created_at", ["", "2026-11-20T15:15:26", "yesterday", '"', "\\"])
def test_a_creation_time_that_would_hang_a_go_caller_becomes_the_zero_time(created_at: str) -> None:
    state = TaskState(task_uuid="task_1", state="PENDING", created_at=created_at)
    meta = GroupMeta(group_uuid="group_1", task_uuids=[], created_at=created_at)

    for raw in (encode_state(state), encode_group(meta)):
        assert json.loads(raw)["CreatedAt"] == ZERO_TIME


def test_a_state_enum_is_written_as_its_text() -> None:
    state = TaskState(task_uuid="task_1", state=State.STARTED, created_at=NOW)

    assert b'"State":"STARTED"' in encode_state(state)


def test_a_long_or_broken_error_text_is_made_storable() -> None:
    state = TaskState(task_uuid="task_1", state="FAILURE", error="\ud800" + "x" * 10_000_000)

    found = json.loads(encode_state(state))["Error"]

    assert len(found.encode()) == 8192
    assert (found[0], found[-1]) == ("\ufffd", "…")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"x", "a bytes is not a JSON value; see gotypes for what can be sent"),
        ("\udc00", ("the state of task_1 holds the lone surrogate '\\udc00'; "
         "send text that UTF-8 can hold")),
        (float("nan"), "nan cannot be written as JSON; send a finite number"),
    ],
)  # fmt: skip
def test_a_result_that_is_not_json_is_not_written(value: Any, expected: str) -> None:
    state = TaskState(task_uuid="task_1", state="SUCCESS", results=[TaskResult("string", value)])

    with pytest.raises(SignatureError) as caught:
        encode_state_head(state)

    assert str(caught.value) == expected


FAKE = '"CreatedAt":"1999-01-01T00:00:00Z"'
TEXT = st.text() | st.sampled_from([FAKE, f"\\{FAKE}", f'"{FAKE}', f"\\\\{FAKE},", "CreatedAt"])
VALUE = st.recursive(
    TEXT | st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RESULT = st.builds(TaskResult, TEXT, VALUE)
STATE = st.builds(
    TaskState,
    task_uuid=TEXT,
    state=TEXT.filter(bool),
    task_name=TEXT,
    results=st.none() | st.lists(RESULT, max_size=3),
    error=TEXT,
)


@given(STATE)
def test_nothing_in_a_head_looks_like_its_creation_time_to_a_script(state: TaskState) -> None:
    assert CREATED.search(encode_state_head(state)) is None


@given(STATE)
def test_a_head_with_a_time_and_the_tail_is_the_whole_state(state: TaskState) -> None:
    state.created_at = NOW

    raw = spliced(state, NOW)

    assert raw == encode_state(state)
    assert decode_state(raw) == state
    assert CREATED.findall(raw) == [b'"CreatedAt":"%s"' % NOW.encode()]


@given(st.lists(TEXT), st.booleans(), st.booleans())
def test_a_group_is_read_as_written(members: list[str], triggered: bool, lock: bool) -> None:
    meta = GroupMeta(
        group_uuid="group_1",
        task_uuids=members,
        chord_triggered=triggered,
        lock=lock,
        created_at=NOW,
    )

    assert decode_group(encode_group(meta)) == meta


@given(st.binary() | st.text().map(str.encode), st.text(), st.integers(0), st.text())
def test_a_dead_letter_gives_its_payload_back_exactly(
    payload: bytes, reason: str, crash_count: int, worker_id: str
) -> None:
    raw = encode_letter(
        reason=reason, payload=payload, crash_count=crash_count, worker_id=worker_id, buried_ms=1
    )

    assert decode_letter(raw) == (reason, payload, crash_count, worker_id, 1)


def test_a_readable_payload_stays_readable_in_its_letter() -> None:
    raw = encode_letter(
        reason="why", payload=b'{"Name":1}', crash_count=3, worker_id="w", buried_ms=9
    )

    expected = rb'{"reason":"why","crash_count":3,"worker_id":"w","buried_ms":9,'
    assert raw == expected + rb'"payload":"{\"Name\":1}"}'


@pytest.mark.parametrize(
    ("read", "raw", "expected"),
    [
        (decode_state, b"", "state: not JSON at character 0: Expecting value"),
        (decode_state, b"[]", "state is an array of 0; expected an object"),
        (decode_state, b"{}", 'state field State is "" or absent; expected one like SUCCESS'),
        (decode_state, b'{"state":1}', "state field state is 1; expected a string"),
        (decode_state, b'{"State":"S","TTL":true}',
         "state field TTL is true; expected an integer"),
        (decode_state, b'{"State":"S","Results":[1]}',
         "state field Results is 1; expected an array of objects"),
        (decode_state, b'{"State":"S","Results":[{"Type":5,"Value":1}]}',
         "state field Results.Type is 5; expected a string"),
        (decode_state, b'{"State":"S","state":"T"}',
         "state field state appears twice in different cases; expected it once"),
        (decode_group, b'{"TaskUUIDs":"x"}',
         "group field TaskUUIDs is 'x'; expected an array"),
        (decode_group, b'{"GroupUUID":"g","TaskUUIDs":["x",1]}',
         "group field TaskUUIDs is 1; expected an array of strings"),
        (decode_group, b"\xff", "group: byte 0xff at 0; expected UTF-8"),
        (decode_letter, b"{}", "dead letter has no readable payload; expected text or base64"),
        (decode_letter, b'{"payload_base64":"!"}',
         "dead letter has no readable payload; expected text or base64"),
        (decode_letter, b'{"payload":1}',
         "dead letter field payload is 1; expected a string"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_the_record_are_refused(read: Any, raw: bytes, expected: str) -> None:
    assert refusal(read, raw) == expected
