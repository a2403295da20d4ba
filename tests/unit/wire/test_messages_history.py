"""Progress and attempts as bytes: ours beside Go's fields, and only where there are any."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import WireError
from machine.wire.signature import Attempt, Progress, TaskResult, TaskState
from machine.wire.states import decode_state, encode_attempt, encode_state

NOW = "2026-11-20T15:15:26.418773057Z"

texts = st.text(st.characters(codec="utf-8"), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["Attempts", "CreatedAt", "State", "Error", "Progress", "Attempt"])


def state(**changes: object) -> TaskState:
    fields: dict[str, object] = {
        "task_uuid": "task_1",
        "task_name": "add",
        "state": "STARTED",
        "created_at": NOW,
    }
    return TaskState(**(fields | changes))  # type: ignore[arg-type]


def test_the_fields_stand_before_the_creation_time() -> None:
    full = state(progress=Progress(0.25, 'a "quarter"'), attempts=[Attempt(1, "boom", NOW)])

    assert encode_state(full).decode() == (
        '{"TaskUUID":"task_1","TaskName":"add","State":"STARTED","Results":null,"Error":"",'
        '"Progress":{"Fraction":0.25,"Note":"a \\"quarter\\""},'
        f'"Attempts":[{{"Attempt":1,"Error":"boom","At":"{NOW}"}}],"CreatedAt":"{NOW}","TTL":0}}'
    )


def test_a_state_without_them_has_no_field_of_ours() -> None:
    document = json.loads(encode_state(state()))

    assert set(document) == {
        *("TaskUUID", "TaskName", "State", "Results", "Error", "CreatedAt", "TTL")
    }


@given(
    fraction=st.floats(min_value=0, max_value=1),
    note=texts,
    errors=st.lists(texts, max_size=4),
)
def test_what_was_written_is_read(fraction: float, note: str, errors: list[str]) -> None:
    attempts = [Attempt(number, error, NOW) for number, error in enumerate(errors, start=1)]
    full = state(progress=Progress(fraction, note), attempts=attempts)

    assert decode_state(encode_state(full)) == full


@given(
    value=st.dictionaries(names | texts, values, max_size=4),
    errors=st.lists(texts | st.just('}],"CreatedAt":"x","Attempts":[{"Attempt":'), max_size=3),
)
def test_each_key_that_scripts_look_for_stands_once(
    value: dict[str, object], errors: list[str]
) -> None:
    attempts = [Attempt(number, error, NOW) for number, error in enumerate(errors, start=1)]
    results = [TaskResult("map[string]interface {}", value)]
    raw = encode_state(state(state="SUCCESS", results=results, attempts=attempts))

    assert len(re.findall(rb'"CreatedAt":', raw)) == 1
    assert len(re.findall(rb'"Attempts":', raw)) == (1 if attempts else 0)
    found = re.search(rb'"Attempts":\[(.*)\],"CreatedAt":"', raw, re.DOTALL)
    encoded = b",".join(encode_attempt(attempt) for attempt in attempts)
    assert (found[1] if found else b"") == encoded
    assert decode_state(raw).attempts == attempts


def test_long_texts_are_cut_at_1_kib() -> None:
    snow = "\N{SNOWMAN}" * 5_000
    full = state(progress=Progress(0.5, snow), attempts=[Attempt(1, snow, NOW)])

    read = decode_state(encode_state(full))

    assert read.progress is not None
    for text in (read.progress.note, read.attempts[0].error):
        assert len(text.encode()) <= 1024
        assert text.startswith("\N{SNOWMAN}" * 300)
        assert text.endswith("…")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Progress", 0.5),
        ("Progress", []),
        ("Progress", {}),
        ("Progress", {"Fraction": "0.5"}),
        ("Progress", {"Fraction": 0.5, "Note": 1}),
        ("Attempts", {}),
        ("Attempts", [1]),
        ("Attempts", [{}]),
        ("Attempts", [{"Attempt": "1", "Error": "", "At": ""}]),
        ("Attempts", [{"Attempt": True, "Error": "", "At": ""}]),
        ("Attempts", [{"Attempt": 1, "Error": None, "At": ""}]),
    ],
)
def test_a_field_of_ours_in_another_form_is_refused_by_name(field: str, value: object) -> None:
    document = {"TaskUUID": "task_1", "State": "STARTED", field: value}

    with pytest.raises(WireError, match=f"state field {field} is "):
        decode_state(json.dumps(document).encode())


def test_null_is_as_good_as_absent() -> None:
    raw = b'{"TaskUUID":"task_1","State":"STARTED","Progress":null,"Attempts":null}'

    read = decode_state(raw)

    assert (read.progress, read.attempts) == (None, [])
