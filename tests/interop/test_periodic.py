"""
One timetable for schedulers of both languages: each of its times is sent once, by one of them.

A period is a second of the clock, and a run is of the period in which its sender wrote down
that it is pending. Go's timers go off at the second itself and ours a little after it, so Go
sends while it can. Now and then it sends nothing: where the lock lapses between its GET and its
GETSET, it has the lock and takes the answer for an error. So no gap counts while it is there.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from tests.interop.callers import Caller, Job, Plan, ints
from tests.interop.crossing import BOTH_QUEUE, Crossing

SPEC = "@every 1s"
#: Runs of each entry that are waited for, in each part of the test.
SOME = 2
OTHER = {"go": "py", "py": "go"}
#: What each language's runs note, so that they can be told apart.
MARKS = {"go": 1000, "py": 2000}
KINDS = ("task", "chain", "group", "chord")


class Run(NamedTuple):
    """A run of an entry, by the task of it that notes itself."""

    entry: str
    period: datetime
    sender: str


def timetable(sender: str) -> list[Plan]:
    """Return an entry of each kind; in each run, one of the tasks sent first notes itself."""
    task, chain, group, chord = (
        Job(name="count_sum", args=ints(MARKS[sender] + n), queue=BOTH_QUEUE)
        for n in range(len(KINDS))
    )
    more = Job(name="add", queue=BOTH_QUEUE)
    return [
        Plan(kind="task", spec=SPEC, name="task", jobs=[task]),
        Plan(kind="chain", spec=SPEC, name="chain", jobs=[chain, more]),
        Plan(kind="group", spec=SPEC, name="group", jobs=[group, more]),
        Plan(kind="chord", spec=SPEC, name="chord", jobs=[chord, more], callback=more),
    ]


def runs(crossing: Crossing) -> list[Run]:
    """Return every run whose task has ended."""
    found = []
    for uuid in crossing.raw.hkeys("runs"):
        state = crossing.document(uuid.decode())
        if state["State"] == "SUCCESS":
            mark = int(state["Results"][0]["Value"])
            sender = "go" if mark < MARKS["py"] else "py"
            period = datetime.fromisoformat(state["CreatedAt"][:19]).replace(tzinfo=UTC)
            found.append(Run(KINDS[mark % 1000], period, sender))
    return sorted(found)


def least(found: Iterable[Run], sender: str) -> int:
    """Return how many runs of this sender the entry has that has the fewest."""
    numbers = Counter(run.entry for run in found if run.sender == sender)
    return min(numbers[kind] for kind in KINDS)


def gaps(found: Iterable[Run]) -> list[Run]:
    """Return the runs, but for the first of each entry, that no run came one period before."""
    known = list(found)
    periods = {run[:2] for run in known}
    first = {kind: min(run.period for run in known if run.entry == kind) for kind in KINDS}
    second = timedelta(seconds=1)
    return [
        run
        for run in known
        if run.period > first[run.entry] and (run.entry, run.period - second) not in periods
    ]


def wait_for_more(crossing: Crossing, sender: str, number: int = SOME) -> None:
    """Wait until a language has sent each entry so many more times."""
    enough = least(runs(crossing), sender) + number
    crossing.wait_until(
        lambda: least(runs(crossing), sender) >= enough, f"{sender} sent {number} more of each"
    )


def sent_twice(found: Iterable[Run]) -> list[tuple[str, datetime]]:
    """Return what has more than one run: entries with their periods."""
    numbers = Counter((run.entry, run.period) for run in found)
    return [one for one, number in numbers.items() if number > 1]


@pytest.mark.parametrize("stays", ["go", "py"])
def test_each_time_is_sent_once_whoever_is_there(crossing: Crossing, stays: str) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE, INTEROP_GROUPS="true")
    schedulers: dict[str, list[Caller]] = {
        "go": [crossing.go_scheduler() for _ in range(2)],
        "py": [crossing.py_scheduler() for _ in range(2)],
    }
    for language, callers in schedulers.items():
        for caller in callers:
            for plan in timetable(language):
                caller.schedule(plan)

    wait_for_more(crossing, "go")
    for caller in schedulers[OTHER[stays]]:
        caller.close()
    left_at = datetime.now(UTC)
    wait_for_more(crossing, stays)

    found = runs(crossing)
    assert sent_twice(found) == []
    if stays == "py":
        assert gaps(run for run in found if run.period > left_at) == []


def test_go_leaves_alone_what_python_has_sent(crossing: Crossing) -> None:
    crossing.py_worker(BOTH_QUEUE)
    go, py = crossing.go_scheduler(), crossing.py_scheduler()
    for plan in timetable("go"):
        go.schedule(plan)
    for plan in timetable("py"):
        py.schedule(plan)
    wait_for_more(crossing, "go", 1)

    go.signal(signal.SIGSTOP)
    wait_for_more(crossing, "py", 1)
    # Go wakes up in the period that Python has served, with its own timer due.
    go.signal(signal.SIGCONT)
    wait_for_more(crossing, "go", 1)

    found = runs(crossing)
    assert sent_twice(found) == []
    assert least(found, "py") >= 1
