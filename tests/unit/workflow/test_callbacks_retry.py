"""Attempt -> delay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.broker.eager_store import backoff_s
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


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(-1, 0.5), (0, 0.5), (1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0)],
)
def test_backoff_doubles_up_to_its_ceiling(attempt: int, expected: float) -> None:
    assert backoff_s(attempt, first_s=0.5, most_s=60.0) == expected


@given(st.integers())
def test_backoff_stays_within_its_bounds_at_any_attempt(attempt: int) -> None:
    assert 0.01 <= backoff_s(attempt, first_s=0.01, most_s=30.0) <= 30.0
