"""Attempt -> delay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.workflow.callbacks import fibonacci_next


@pytest.mark.parametrize(
    ("start", "expected"),
    [(-5, 1), (0, 1), (1, 2), (2, 3), (3, 5), (4, 5), (5, 8), (8, 13), (10, 13)],
)
def test_the_next_fibonacci_number_is_machinerys(start: int, expected: int) -> None:
    assert fibonacci_next(start) == expected


def test_delays_from_zero_are_the_fibonacci_sequence() -> None:
    delays = [0]
    for _ in range(7):
        delays.append(fibonacci_next(delays[-1]))

    assert delays[1:] == [1, 2, 3, 5, 8, 13, 21]


@given(st.integers(0, 1 << 63))
def test_the_next_fibonacci_number_is_above_the_start_and_at_most_twice_it(start: int) -> None:
    found = fibonacci_next(start)

    assert start < found <= max(1, 2 * start)
