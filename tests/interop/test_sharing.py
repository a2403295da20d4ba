"""Workers of both languages on one list: each task is done once, by one that knows it."""

from __future__ import annotations

import pytest

from tests.interop.callers import Job, ints
from tests.interop.crossing import BOTH_QUEUE, Crossing

EACH = 1000


def test_two_languages_share_a_list(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    jobs = [Job(name="count", args=ints(n), queue=BOTH_QUEUE) for n in range(EACH)]

    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)

    answers = crossing.go.get(uuids)
    assert [answer.values[1] for answer in answers] == [*range(EACH), *range(EACH)]
    assert {answer.values[0] for answer in answers} == {"go", "py"}
    assert crossing.py.get(uuids) == answers
    assert crossing.runs(*uuids) == [1] * len(uuids)


def test_a_task_only_python_knows_gets_past_go(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    jobs = [Job(name="only_py", args=ints(n), queue=BOTH_QUEUE) for n in range(EACH)]

    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)

    answers = crossing.go.get(uuids)
    assert [answer.values for answer in answers] == [["py", n] for n in range(EACH)] * 2


def test_a_task_only_go_knows_gets_past_python(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    jobs = [Job(name="only_go", args=ints(n), queue=BOTH_QUEUE) for n in range(50)]

    uuids = crossing.py.send(*jobs)

    answers = crossing.go.get(uuids)
    assert [answer.values for answer in answers] == [["go", n] for n in range(50)]


@pytest.mark.parametrize("language", ["go", "py"])
def test_an_unknown_task_that_may_be_ignored_is_dropped(crossing: Crossing, language: str) -> None:
    crossing.go_worker(BOTH_QUEUE) if language == "go" else crossing.py_worker(BOTH_QUEUE)
    nobody = Job(name="nobody_s", queue=BOTH_QUEUE, ignore_when_task_not_registered=True)
    known = Job(name="add", args=ints(1), queue=BOTH_QUEUE)

    uuids = [*crossing.go.send(nobody), *crossing.py.send(nobody), *crossing.go.send(known)]

    assert crossing.go.get(uuids[2:])[0].values == [1]
    crossing.wait_until(lambda: not crossing.raw.exists(BOTH_QUEUE), "the list is empty")
    assert [state["State"] for state in crossing.go.states(*uuids)] == [
        "PENDING",
        "PENDING",
        "SUCCESS",
    ]
