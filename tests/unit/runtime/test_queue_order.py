"""
Which queue comes first in the next claim.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.runtime.child.queue_order import QueueOrder


def test_without_weights_the_order_is_always_the_one_given() -> None:
    order = QueueOrder(["b", "a"], ())

    assert [list(order.take_turn(1)) for _ in range(3)] == [["b", "a"]] * 3


def test_turns_are_shared_by_weight_and_spread_out() -> None:
    order = QueueOrder(["high", "mid", "low"], [5, 1, 1])

    firsts = [order.take_turn(1)[0] for _ in range(7)]

    assert firsts == ["high", "high", "mid", "high", "low", "high", "high"]


def test_behind_the_first_the_heavier_queue_comes_sooner() -> None:
    order = QueueOrder(["low", "mid", "high"], [1, 2, 3])

    assert [list(order.take_turn(1)) for _ in range(3)] == [
        ["high", "mid", "low"],
        ["mid", "high", "low"],
        ["low", "high", "mid"],
    ]


def test_what_claims_nothing_uses_up_no_turn() -> None:
    order, other = QueueOrder(["a", "b"], [1, 1]), QueueOrder(["a", "b"], [1, 1])

    order.take_turn(0)

    assert order.take_turn(1) == other.take_turn(1)


def test_each_queue_needs_its_weight() -> None:
    with pytest.raises(ValueError, match="zip"):
        QueueOrder(["a", "b"], [1])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_in_one_round_each_queue_is_first_as_often_as_it_weighs(weights: list[int]) -> None:
    queues = [f"q{number}" for number in range(len(weights))]
    order = QueueOrder(queues, weights)

    orders = [order.take_turn(1) for _ in range(sum(weights))]

    assert Counter(order[0] for order in orders) == dict(zip(queues, weights, strict=True))
    assert all(sorted(order) == queues for order in orders)
