"""Python values as Go types and back, held against what Go itself answers."""

from __future__ import annotations

import json
import math
import struct
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from machine.errors import SignatureError, WireError
from machine.wire import gotypes

GOLDEN = Path(__file__).parents[2] / "golden"
WHERE = "argument 'x' of task add"
INTS = {
    "int": (-(1 << 63), (1 << 63) - 1), "int8": (-128, 127), "int16": (-32768, 32767),
    "int32": (-(1 << 31), (1 << 31) - 1), "int64": (-(1 << 63), (1 << 63) - 1),
    "uint": (0, (1 << 64) - 1), "uint8": (0, 255), "uint16": (0, 65535),
    "uint32": (0, (1 << 32) - 1), "uint64": (0, (1 << 64) - 1),
}  # fmt: skip


class Colour(IntEnum):
    RED = 3


class Word(StrEnum):
    HI = "hi"


def outcome(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """Return the error's text, or "" where the call succeeds."""
    try:
        call(*args, **options)
    except (SignatureError, WireError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ("bool", True)),
        (7, ("int64", 7)),
        (-(1 << 63), ("int64", -(1 << 63))),
        (1.5, ("float64", 1.5)),
        ("é", ("string", "é")),
        (b"hi\xff", ("[]byte", "aGn/")),
        (bytearray(b"hi\xff"), ("[]byte", "aGn/")),
        ([True, False], ("[]bool", [True, False])),
        ([1, 2], ("[]int64", [1, 2])),
        ([1, 2.5], ("[]float64", [1.0, 2.5])),
        (["a", ""], ("[]string", ["a", ""])),
        ([], ("[]int64", [])),
        (Colour.RED, ("int64", 3)),
        (Word.HI, ("string", "hi")),
        ([Colour.RED, 4], ("[]int64", [3, 4])),
    ],
)
def test_a_value_without_a_named_type_gets_the_natural_one(value: Any, expected: Any) -> None:
    found = gotypes.infer(value, WHERE)

    assert found == expected
    assert type(found[1]) is type(expected[1])


def test_an_empty_list_has_the_type_its_parameter_declares() -> None:
    assert gotypes.infer([], WHERE, empty="[]string") == ("[]string", [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None, which has no type on the wire; leave it out, or send '' or 0"),
        ({}, "a dict, which has no type on the wire; send json.dumps(value) as a string"),
        ((1,), "a tuple, which has no type on the wire; send list(value)"),
        ({1}, "a set, which has no type on the wire; send sorted(value)"),
        (
            datetime(2026, 1, 1, tzinfo=UTC),
            "a datetime, which has no type on the wire; send value.isoformat()",
        ),
        (Decimal(1), "a Decimal, which has no type on the wire; send str(value)"),
        (
            object(),
            "an object, which has no type on the wire; send json.dumps of its fields as a string",
        ),
        (math.nan, "nan; JSON has no such number, send a finite one"),
        (
            1 << 63,
            (
                "9223372036854775808, out of range for int64 (-9223372036854775808 to "
                "9223372036854775807); name a type that holds it, or send a string"
            ),
        ),
        ("a\ud800", "the lone surrogate '\\ud800' at 1; send text that UTF-8 can hold, or bytes"),
        (
            [1, "a"],
            (
                "a list that holds a str and an int; its items must all be bool, int, float or "
                "str. Send json.dumps(value) as a string"
            ),
        ),
        (
            [[1]],
            (
                "a list that holds a list; its items must all be bool, int, float or str. "
                "Send json.dumps(value) as a string"
            ),
        ),
    ],
)
def test_what_has_no_go_type_is_refused_with_its_name_and_a_cure(value: Any, expected: str) -> None:
    verb = "has" if isinstance(value, str) else "is"

    assert outcome(gotypes.infer, value, WHERE) == f"{WHERE} {verb} {expected}"


def test_the_bad_item_of_a_list_is_named() -> None:
    expected = (
        f"{WHERE}[1] is 300, out of range for int8 (-128 to 127); "
        "name a type that holds it, or send a string"
    )

    assert outcome(gotypes.coerce, "[]int8", [1, 300], WHERE) == expected


@pytest.mark.parametrize("name", INTS)
def test_a_named_int_type_takes_its_whole_range_and_no_more(name: str) -> None:
    low, high = INTS[name]

    accepted = [gotypes.coerce(name, n, WHERE) for n in (low, high)]

    assert accepted == [low, high]
    for outside in (low - 1, high + 1):
        assert outcome(gotypes.coerce, name, outside, WHERE) == (
            f"{WHERE} is {outside}, out of range for {name} ({low} to {high}); "
            "name a type that holds it, or send a string"
        )


@pytest.mark.parametrize(
    ("go_type", "value", "expected"),
    [
        ("int64", True, "is a bool; int64 takes int"),
        ("int64", 1.0, "is a float; int64 takes int"),
        ("bool", 1, "is an int; bool takes bool"),
        ("string", b"a", "is a bytes; string takes str"),
        ("string", None, "is None; string takes str"),
        ("float64", "1", "is a str; float64 takes float"),
        ("float64", True, "is a bool; float64 takes float"),
        ("float64", math.inf, "is inf; JSON has no such number, send a finite one"),
        ("float32", 1e39, "is 1e+39, too large for float32"),
        ("float64", 10**400, "is an int of 1329 bits, too large for float64"),
        (
            "float64",
            (1 << 53) + 1,
            "is 9007199254740993, which no float64 holds exactly; send an int64 or a string",
        ),
        ("[]int64", (1, 2), "is a tuple; []int64 takes a list of int"),
        ("[]string", "ab", "is a str; []string takes a list of str"),
        ("[]byte", "ab", "is a str; []byte takes bytes, or a list of ints"),
        ("[]bool", {}, "is a dict; []bool takes a list of bool"),
    ],
)
def test_a_named_type_refuses_what_it_cannot_hold(go_type: str, value: Any, expected: str) -> None:
    assert outcome(gotypes.coerce, go_type, value, WHERE) == f"{WHERE} {expected}"


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    expected = (
        f"{WHERE}: complex128 is not one of supported types; use bool, int, int8, int16, int32, "
        "int64, uint, uint8, uint16, uint32, uint64, float32, float64, string, or [] before one"
    )

    assert outcome(gotypes.coerce, "complex128", 1, WHERE) == expected


@pytest.mark.parametrize(
    ("go_type", "value", "expected"),
    [
        ("float64", 1, 1.0),
        ("[]float32", [1, 0.5], [1.0, 0.5]),
        ("[]byte", b"\x00\xff", "AP8="),
        ("[]uint8", [0, 255], "AP8="),
        ("[]uint16", [0, 65535], [0, 65535]),
    ],
)
def test_a_named_type_gives_its_json_value(go_type: str, value: Any, expected: Any) -> None:
    assert repr(gotypes.coerce(go_type, value, WHERE)) == repr(expected)


def go_rows() -> list[tuple[str, Any, str]]:
    rows = json.loads((GOLDEN / "reflect.json").read_bytes())
    # 1e400 never gets here: wire refuses it, and json has no number for it.
    return [(row["Type"], row["Value"], row["Error"]) for row in rows if row["Value"] != math.inf]


def differs_from_go(go_type: str, value: Any) -> str | None:
    """Return our own text for the three kinds of value we treat otherwise on purpose."""
    shown = "[]uint8" if go_type == "[]byte" else go_type
    if go_type in INTS and type(value) is int:
        low, high = INTS[go_type]
        word_low, word_high = INTS["uint64" if go_type[0] == "u" else "int64"]
        if word_low <= value <= word_high and not low <= value <= high:
            return f"{value} is out of range for {go_type} ({low} to {high})"
    if go_type.startswith(("[]uint", "[]byte")) and type(value) in (int, float):
        return f"{value} is not {shown}"
    if go_type.startswith("[]") and go_type in gotypes.TYPES and value is True:
        return f"true is not {shown}"
    if go_type.startswith("[]") and go_type in gotypes.TYPES and isinstance(value, dict) and value:
        text = "map[a:true b:[1 <nil> x]]" if len(value) == 2 else "map[a:1]"
        return f"{text} is not {shown}"
    return None


@pytest.mark.parametrize(("go_type", "value", "error"), go_rows())
def test_every_value_is_accepted_or_refused_in_gos_words(
    go_type: str, value: Any, error: str
) -> None:
    ours = differs_from_go(go_type, value)

    assert outcome(gotypes.decode, go_type, value) == (error if ours is None else ours)


def test_gos_worker_dies_only_of_values_we_refuse() -> None:
    deadly = [(kind, value) for kind, value, error in go_rows() if error == "panic"]

    assert len(deadly) == 21
    assert [value for kind, value in deadly if differs_from_go(kind, value) is None] == []


@pytest.mark.parametrize(
    ("go_type", "value", "expected"),
    [
        ("int64", 185135722552891243, 185135722552891243),
        ("uint64", 9223372036854775808, 9223372036854775808),
        ("int8", -0.0, 0),
        ("float64", 1, 1.0),
        ("float64", 1.28, 1.28),
        ("float32", 0.5, 0.5),
        ("float32", 0.1, 0.10000000149011612),
        ("[]byte", "aGn/", b"hi\xff"),
        ("[]uint8", [104, 105, 255], b"hi\xff"),
        ("[]byte", "aG\nn/", b"hi\xff"),
        ("[]byte", None, b""),
        ("[]uint16", "aGn/", [104, 105, 255]),
        ("[]string", {}, []),
        ("[]float64", [1, 2.5], [1.0, 2.5]),
    ],
)
def test_a_received_value_becomes_the_python_value(go_type: str, value: Any, expected: Any) -> None:
    assert repr(gotypes.decode(go_type, value)) == repr(expected)


@pytest.mark.parametrize("go_type", sorted(gotypes.TYPES))
def test_null_is_an_empty_slice_and_no_scalar(go_type: str) -> None:
    text = outcome(gotypes.decode, go_type, None)

    assert text == ("" if go_type.startswith("[]") else f"<nil> is not {go_type}")


def test_there_are_fourteen_scalars_and_fifteen_slices() -> None:
    slices = [name for name in gotypes.TYPES if name.startswith("[]")]

    assert (len(gotypes.TYPES) - len(slices), len(slices)) == (14, 15)


@pytest.mark.parametrize(
    ("go_type", "value", "expected"),
    [
        ("int64", 10**4000, 'strconv.ParseInt: parsing "an int of 13288 bits": value out of range'),
        (
            "float64",
            10**4000,
            'strconv.ParseFloat: parsing "an int of 13288 bits": value out of range',
        ),
        ("float32", 1e39, 'strconv.ParseFloat: parsing "1e+39": value out of range'),
        ("x" * 9000, 1, "x" * 200 + " is not one of supported types"),
        ("bool", ["y" * 9000], "[" + "y" * 199 + " is not bool"),
        ("bool", [[[[[1]]]]], "[[[[...]]]] is not bool"),
        ("[]byte", "é", "illegal base64 data at input byte 0"),
        ("[]byte", "aA=", "illegal base64 data at input byte 3"),
    ],
)
def test_no_received_value_makes_an_error_text_long(
    go_type: str, value: Any, expected: str
) -> None:
    assert outcome(gotypes.decode, go_type, value) == expected


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "string": st.text(),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "float32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    **{name: st.integers(low, high) for name, (low, high) in INTS.items()},
}
VALUES = {**SCALARS, **{f"[]{name}": st.lists(one) for name, one in SCALARS.items()}}
VALUES["[]byte"] = VALUES["[]uint8"] = st.binary()


@given(st.sampled_from(sorted(VALUES)).flatmap(lambda n: st.tuples(st.just(n), VALUES[n])))
@example(("float64", -0.0))
@example(("float64", 5e-324))
def test_each_type_gives_back_what_was_sent(sent: tuple[str, Any]) -> None:
    go_type, value = sent

    found = gotypes.decode(go_type, gotypes.coerce(go_type, value, WHERE))

    assert repr(found) == repr(value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.sampled_from(sorted(gotypes.TYPES)) | st.text(), JUNK)
def test_anything_received_gives_a_value_or_a_wire_error(go_type: str, value: Any) -> None:
    text = outcome(gotypes.decode, go_type, value)

    assert len(text) < 300
    if not text:
        found = gotypes.decode(go_type, value)
        assert isinstance(found, bool | int | float | str | bytes | list)


@given(st.binary(max_size=40))
def test_base64_is_read_as_written(data: bytes) -> None:
    assert gotypes.decode("[]uint32", b64encode(data).decode()) == list(data)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, ("int64", 3)),
        (1 << 63, ("uint64", 1 << 63)),
        (b"hi\xff", ("[]uint8", "aGn/")),
        ([1, 2], ("[]int64", [1, 2])),
        ([], ("[]int64", [])),
        ((), ("[]int64", [])),
        ([1, "a", None], ("[]interface {}", [1, "a", None])),
        ([1 << 63], ("[]uint64", [1 << 63])),
        ([[1], (2,)], ("[]interface {}", [[1], [2]])),
        ({"a": {"b": [1.5, True]}}, ("map[string]interface {}", {"a": {"b": [1.5, True]}})),
        ({"a": Colour.RED}, ("map[string]interface {}", {"a": 3})),
    ],
)
def test_a_returned_value_has_the_type_go_would_give_it(value: Any, expected: Any) -> None:
    assert gotypes.infer_result(value) == expected


def holds_itself() -> list[Any]:
    found: list[Any] = ["x"]
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "the result is nan; JSON has no such number, send a finite one"),
        ([1.0, -math.inf], "the result[1] is -inf; JSON has no such number, send a finite one"),
        (
            {"a": [math.nan]},
            "the result['a'][0] is nan; JSON has no such number, send a finite one",
        ),
        ({1: 2}, "the result has an int as a key (1); JSON keys are strings"),
        (
            {"a": b"x"},
            "the result['a'] is a bytes; inside a dict or a mixed list send base64 text instead",
        ),
        (holds_itself(), "the result holds itself or is nested deeper than 64 levels"),
        (
            {"when": datetime(2026, 1, 1, tzinfo=UTC)},
            ("the result['when'] is a datetime, which has no type on the wire; "
            "send value.isoformat()"),
        ),
        (None, "the result is None, which has no type on the wire; leave it out, or send '' or 0"),
        ("\udc00", ("the result has the lone surrogate '\\udc00' at 0; "
         "send text that UTF-8 can hold, or bytes")),
    ],
)  # fmt: skip
def test_a_result_json_cannot_hold_is_refused_by_name(value: Any, expected: str) -> None:
    assert outcome(gotypes.infer_result, value) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, "int64"), (bool, "bool"), (float, "float64"), (str, "string"), (bytes, "[]byte"),
        (bytearray, "[]byte"), (list[int], "[]int64"), (list[float], "[]float64"),
        (list[bool], "[]bool"), (list[str], "[]string"), (list[bytes], None), (list, None),
        (dict[str, int], None), (int | None, None), (list[list[int]], None), (Any, None),
        ("int", None), (None, None), (Colour, None),
    ],
)  # fmt: skip
def test_an_annotation_names_its_go_type_or_nothing(annotation: Any, expected: str | None) -> None:
    assert gotypes.from_annotation(annotation) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (bool, {"type": "boolean"}),
        (float, {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308}),
        (str, {"type": "string"}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (bytearray, {"type": "string", "contentEncoding": "base64"}),
        (list[bool], {"type": "array", "items": {"type": "boolean"}}),
        (
            list[int],
            {
                "type": "array",
                "items": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": -(1 << 63),
                    "maximum": (1 << 63) - 1,
                },
            },
        ),
    ],
)
def test_every_type_that_an_annotation_can_name_has_a_json_schema(
    annotation: Any, expected: dict[str, Any]
) -> None:
    go_type = gotypes.from_annotation(annotation)

    assert go_type is not None
    assert gotypes.json_schema(go_type) == expected


@pytest.mark.parametrize(
    ("go_type", "value", "expected"),
    [
        ("bool", True, True),
        ("bool", 1, False),
        ("int64", True, False),
        ("int64", 1 << 70, True),
        ("float64", 1, True),
        ("float64", False, False),
        ("string", b"", False),
        ("[]byte", [1], True),
        ("[]byte", "", False),
        ("[]int64", [1, 2], True),
        ("[]int64", [1, True], False),
        ("[]string", "ab", False),
    ],
)
def test_values_are_told_apart_as_a_type_checker_does(
    go_type: str, value: Any, expected: bool
) -> None:
    assert gotypes.has_type(go_type, value) is expected


def test_float32_is_rounded_as_go_narrows_it() -> None:
    expected = struct.unpack("<f", struct.pack("<f", 1 / 3))[0]

    assert gotypes.decode("float32", 1 / 3) == expected
