"""
Chords from sending to their value: a small one, one of ten times as many members, a nested one.

The members are no-op tasks, and the callback takes all their results. The
ratio of the two plain ones says whether what a member costs depends on how
many there are: 10 where it does not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from environment import Environment
from samples import Samples

from machine import chain, group, tasks

#: Names of the values: members/s, of the nested one tasks/s.
SMALL, LARGE, NESTED = "chord.small", "chord.large", "chord.nested"
#: Worker processes: members of one chord then end in several at once.
_PROCESSES = 2
_WARM_UP = 20
#: Seconds after which a chord counts as lost.
_LOST_S = 120.0


def run(environment: Environment, count: int, into: Samples) -> None:
    """
    Measure the three once.

    Args:
        environment: Where; its server is empty.
        count: Members of the large one; the others have a tenth of it.
        into: Gets the values, and under ``<name>.caller`` the caller's CPU.
    """
    small = max(1, count // 10)
    with environment.worker(_PROCESSES, environment.config.default_queue) as pids:
        _time(_make_plain(_WARM_UP), _WARM_UP * (_WARM_UP - 1))
        for name, tasks_in_it, chord, value in (
            (SMALL, small, _make_plain(small), small * (small - 1)),
            (LARGE, 10 * small, _make_plain(10 * small), 10 * small * (10 * small - 1)),
            (NESTED, 2 * small, _make_nested(small), small * small),
        ):
            _measure(name, tasks_in_it, chord, value, pids, into)


def _make_plain(size: int) -> Any:
    return tasks.add.map([(i, i) for i in range(size)]) | tasks.add.partial()


def _make_nested(size: int) -> Any:
    return group(chain(tasks.add.s(i, i), tasks.add.partial(1)) for i in range(size)) | (
        tasks.add.partial()
    )


def _measure(
    name: str, count: int, chord: Any, value: int, pids: Sequence[int], into: Samples
) -> None:
    started_s = time.process_time()
    with into.rate(name, count, pids):
        _time(chord, value)
    into.cpu[f"{name}.caller"].append((time.process_time() - started_s) / count * 1e6)


def _time(chord: Any, value: int) -> None:
    reached = chord.send().get(timeout=_LOST_S)
    if reached != value:
        sys.exit(f"error: a chord came to {reached}, not to {value}")
