"""What a running task may know of its run, and say about it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError, TaskCanceled, TaskFailed
from machine.execution import TaskContext
from machine.wire.headers import ATTEMPT_HEADER
from machine.wire.signature import Progress, Signature


def context(**headers: str) -> TaskContext:
    made = Signature(name="add", uuid="task_1", headers={**headers})
    return TaskContext(made, fence=7)


def test_it_knows_the_message_the_fence_and_the_attempt() -> None:
    first, third = context(), context(**{ATTEMPT_HEADER: "3"})

    assert (first.signature.uuid, first.fence, first.attempt) == ("task_1", 7, 1)
    assert third.attempt == 3


def test_the_last_word_about_progress_counts() -> None:
    made = context()
    assert made.said is None

    made.progress(0.25, "a quarter")
    made.progress(1)

    assert made.said == Progress(1.0, "")
    assert isinstance(made.said.fraction, float)


@given(fraction=st.floats(min_value=0, max_value=1))
def test_any_fraction_between_0_and_1_is_taken(fraction: float) -> None:
    made = context()

    made.progress(fraction)

    assert made.said == Progress(fraction)


@given(fraction=st.floats().filter(lambda f: not 0 <= f <= 1))
def test_any_other_fraction_is_refused_and_the_word_before_it_stays(fraction: float) -> None:
    made = context()
    made.progress(0.5)

    with pytest.raises(SignatureError) as caught:
        made.progress(fraction)

    assert str(caught.value) == f"progress {fraction!r} is out of bounds; give 0 to 1."
    assert made.said == Progress(0.5)
    assert math.isnan(fraction) or not 0 <= fraction <= 1


def test_a_task_that_is_not_canceled_goes_on() -> None:
    made = context()

    made.raise_if_canceled()

    assert made.canceled is False


def test_a_canceled_task_may_end_itself() -> None:
    made = context()
    made.canceled = True

    with pytest.raises(TaskCanceled, match=r"^canceled$") as caught:
        made.raise_if_canceled()

    assert isinstance(caught.value, TaskFailed)
    assert (caught.value.uuid, caught.value.task_name) == ("task_1", "add")
