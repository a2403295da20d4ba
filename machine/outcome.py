"""
What running a task came to: one of three values, and nothing written yet.

The executor returns one, `workflow` derives what follows from it, and
`runtime.settle` turns both into the one change of state that Redis sees.
"""

from __future__ import annotations

from typing import NamedTuple

from machine.wire.signature import TaskResult


class Succeeded(NamedTuple):
    """The task returned; ``results`` are its values with their Go types, in order."""

    results: list[TaskResult]


class Retry(NamedTuple):
    """
    The task is to run again.

    ``delay_s`` is seconds from now, ≥ 0. ``counted`` says whether this uses up
    one of the signature's retries (an error) or not (``RetryLater``).
    """

    delay_s: float
    error: str
    counted: bool


class Failed(NamedTuple):
    """The task failed for good with this text."""

    error: str


Outcome = Succeeded | Retry | Failed
