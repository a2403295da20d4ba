"""Times, floats and error texts as Go writes them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import WireError
from machine.wire.text import cut_error, format_float, format_time, parse_time

GOLDEN = Path(__file__).parents[2] / "golden"


def test_floats_are_written_with_gos_digits() -> None:
    rows = json.loads((GOLDEN / "floats.json").read_bytes(), parse_float=str, parse_int=str)

    for bits, text in rows:
        assert format_float(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


TIMES = [
    (0, "1970-01-01T00:00:00Z"),
    (1_795_187_710_170_962_496, "2026-11-20T15:15:10.170962496Z"),
    (1_000_000_000_120_000_000, "2001-09-09T01:46:40.12Z"),
    (-1, "1969-12-31T23:59:59.999999999Z"),
    (-62_135_596_800_000_000_000, "0001-01-01T00:00:00Z"),
    (253_402_300_799_999_999_999, "9999-12-31T23:59:59.999999999Z"),
]


@pytest.mark.parametrize(("ns", "text"), TIMES)
def test_a_time_is_rfc3339_with_nanoseconds_in_utc(ns: int, text: str) -> None:
    assert format_time(ns) == text
    assert parse_time(text) == ns


@given(st.integers(TIMES[-2][0], TIMES[-1][0]))
def test_every_time_is_read_as_written(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-11-20T15:15:26.418773+00:00", 1_795_187_726_418_773_000),
        ("1970-01-01T05:30:00+05:30", 0),
        ("1969-12-31T23:59:59-00:01", 59_000_000_000),
        ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
    ],
)
def test_any_offset_is_read_and_digits_after_the_ninth_are_cut(text: str, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-11-20", "2026-11-20T15:15:26", "2026-11-20 15:15:26Z", "2026-11-20T15:15:26+0000",
        "2026-02-30T00:00:00Z", "2026-11-20T24:00:00Z", "2026-11-20T15:15:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2026-11-20t15:15:26z",
        "2026-11-20T15:15:26,5Z", "٢٠٢٦-11-20T15:15:26Z", "2026-11-20T15:15:26Z\n",
    ],
)  # fmt: skip
def test_a_time_go_would_not_read_is_refused(text: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_time(text)

    expected = "expected RFC 3339 like 2026-11-20T15:15:26.418Z, years 1 to 9999"
    assert str(caught.value) == f"time is {text!r}; {expected}"


def test_an_error_text_is_cut_to_8_kib_of_whole_characters() -> None:
    assert cut_error("x" * 8192) == "x" * 8192
    assert cut_error("x" * 8193) == "x" * 8189 + "…"
    assert len(cut_error("é" * 9000).encode()) in (8191, 8192)
    assert cut_error("a\ud800b\ud83d\ude00") == "a\ufffdb😀"
    assert cut_error("x" * 8000) == "x" * 8000
