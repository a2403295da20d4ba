"""
Bodies of the HTTP caller: whatever they hold, they become signatures or are refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caller.web.bodies import (
    CallBody,
    ChainBody,
    ChordBody,
    SendOptions,
    convert,
    parse_json,
    signature_options,
)
from caller.web.problems import Problem
from caller.web.task_schema import task_schemas
from caller.web.workflows import Composer
from machine import SignatureError, task


@task
def add(*numbers: int) -> int:
    """Return the sum."""
    return sum(numbers)


@task
def mixed(text: str, data: bytes = b"", *, share: float = 0.5) -> str:
    """Take one of each."""
    return f"{text} {data!r} {share}"


def composer() -> Composer:
    return Composer(task_schemas([add, mixed]), ["q"], {})


def detail(body: Any, kind: Any) -> str:
    with pytest.raises(Problem) as refused:
        convert(body, kind)
    assert refused.value.code == "invalid"
    return refused.value.detail


def options_of(**options: Any) -> dict[str, Any]:
    return signature_options(convert(options, SendOptions), "options", ["q"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"steps": [{"args": {}}]}, "steps[0].args is an object of 0; give an array."),
        (
            {"steps": [{"name": "a"}, {"group": [{"options": {"priority": "1"}}]}]},
            "steps[1].group[0].options.priority is '1'; give a number.",
        ),
        (
            {"steps": [{"chord": {"members": [{}], "calback": {}}}]},
            "has the member 'calback'; known: members, callback; did you mean 'callback'?",
        ),
        ({"steps": [{"chord": {"members": [{}]}}]}, "steps[0].chord has no member 'callback'"),
        ({"steps": [None]}, "steps[0] is null; give an object."),
        ({"steps": [{"name": 5}]}, "steps[0].name is 5; give a text."),
        ({"step": []}, "the body has the member 'step'; known: steps; did you mean 'steps'?"),
        # What is in a name is not taken for msgspec's own words.
        ({"` - at `$.steps[7]": 1}, "has the member '"),
        ({"x" * 100_000: 1}, "the body has the member 'xxx"),
        ([], "the body is an array of 0; give an object."),
    ],
)
def test_a_refusal_says_where_it_is_what_is_there_and_what_to_give(
    body: Any, expected: str
) -> None:
    found = detail(body, ChainBody)

    assert expected in found
    assert len(found) < 300


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("countdown", -1, "a number of at least 0"),
        ("countdown", 1e9 + 1, "a number of at most 1000000000"),
        ("countdown", 10**400, "a number that fits 64 bits"),
        ("countdown", False, "a number"),
        ("countdown", "1", "a number"),
        ("retry_count", 101, "a number of at most 100"),
        ("retry_timeout", 0.5, "a whole number"),
        ("immutable", 0, "true or false"),
        ("ignore_when_task_not_registered", None, "true or false"),
        ("unique", "k" * 257, "a text of at most 256"),
        ("headers", {str(n): "" for n in range(61)}, "an object of at most 60"),
        ("eta", 5, "an RFC 3339 time, like 2026-11-20T15:15:26Z"),
        ("eta", "tomorrow", "an RFC 3339 time, like 2026-11-20T15:15:26Z"),
        ("eta", "2026-11-20T15:15:26", "an RFC 3339 time, like 2026-11-20T15:15:26Z"),
        ("expires", 0, "a number of more than 0"),
        ("expires", [], "a number of seconds, or an RFC 3339 time"),
        ("expires", "soon", "an RFC 3339 time, like 2026-11-20T15:15:26Z"),
    ],
)
def test_an_option_out_of_its_type_or_bounds_is_refused(
    name: str, value: Any, expected: str
) -> None:
    found = detail({"options": {name: value}}, CallBody)

    assert found.startswith(f"options.{name} is ")
    assert f"; give {expected}" in found


def test_options_become_those_of_a_signature() -> None:
    found = options_of(
        countdown=3,
        expires="2026-11-20T16:15:26+01:00",
        retry_count=3.0,
        priority=7,
        unique="",
        on_duplicate="join",
        headers={"a": "b"},
    )

    assert found == {
        "countdown": 3.0,
        "expires": datetime(2026, 11, 20, 15, 15, 26, tzinfo=UTC),
        "retry_count": 3,
        "priority": 7,
        "unique": "",
        "on_duplicate": "join",
        "headers": {"a": "b"},
    }
    assert type(found["retry_count"]) is int


@pytest.mark.parametrize("left_out", [CallBody, SendOptions])
def test_what_a_body_leaves_out_is_not_set(left_out: Any) -> None:
    assert signature_options(SendOptions(), "options", []) == {}
    assert convert({}, left_out) == left_out()


HOSTILE = st.sampled_from(
    [
        *(10**400, -(10**400), 1 << 63, -0.0, 5e-324, 1.7e308, "", "x-a", "X-", "a\nb", "é" * 2000),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-23:59", "2026-06-30T23:59:60Z"),
        *("2026-11-20T15:15:26.123456789Z", "add", "mixed", "q", "join", "/wA=", "` - at `$.a[9]`"),
    ]
)
NAMES = st.sampled_from(
    [
        *("args", "kwargs", "options", "name", "chain", "group", "chord", "members", "callback"),
        *("steps", "text", "data", "share", *SendOptions.__struct_fields__),
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | HOSTILE,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(NAMES | st.text(max_size=9), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip
CALLS = st.fixed_dictionaries(
    {"name": st.sampled_from(["add", "mixed", "ad"])},
    optional={
        "args": st.lists(ANYTHING, max_size=3),
        "kwargs": st.dictionaries(NAMES, ANYTHING, max_size=3),
        "options": st.dictionaries(
            st.sampled_from(SendOptions.__struct_fields__), ANYTHING, max_size=3
        ),
    },
)
PIECES = st.recursive(
    CALLS | ANYTHING,
    lambda inner: (
        st.fixed_dictionaries({"chain": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"group": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries(
            {"chord": st.fixed_dictionaries({"members": st.lists(inner), "callback": inner})}
        )
    ),
    max_leaves=8,
)


@given(piece=PIECES)
@example(piece={"name": "mixed", "options": {"eta": "0001-01-01T00:00:00+01:00"}})
@example(piece={"name": "mixed", "args": ["a", "/wA="], "options": {"expires": 5e-324}})
def test_any_body_becomes_signatures_or_a_refusal(piece: Any) -> None:
    # As from a client: through text, so that nothing is in it that JSON does not have.
    try:
        piece = parse_json(json.dumps(piece).encode(), "the body")
    except ValueError:
        return
    call = {name: piece[name] for name in piece if name != "name"} if type(piece) is dict else piece
    for compose in (
        lambda: composer().task("mixed", call),
        lambda: composer().chain({"steps": [piece]}),
        lambda: composer().group({"members": [piece, {"name": "add"}]}),
        lambda: composer().chord({"members": [piece], "callback": piece}),
        lambda: composer().chord(piece),
    ):
        with suppress(Problem, SignatureError):
            compose()


@pytest.mark.parametrize("levels", [20, 32, 40, 1000])
def test_however_deep_a_workflow_is_nested_it_is_read_or_refused(levels: int) -> None:
    raw = b'{"chain":[' * levels + b'{"name":"add","args":[1]}' + b"]}" * levels
    try:
        piece = parse_json(b'{"steps":[%b]}' % raw, "the body")
    except ValueError as error:
        assert "nested too deeply" in str(error)  # noqa: PT017 - the bound is not to be passed
        assert levels > 30
        return
    assert levels < 40
    composer().chain(piece)


def test_a_chord_says_what_it_misses() -> None:
    assert detail({"members": [{}]}, ChordBody) == "the body has no member 'callback'; give it."
