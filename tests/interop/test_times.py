"""Retries that change language, and delayed tasks moved by either side."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.interop.callers import Job, fresh, ints, texts
from tests.interop.crossing import BOTH_QUEUE, GO_QUEUE, PY_QUEUE, Crossing

by_either = pytest.mark.parametrize("sender", ["go", "py"])
DELAYED = "delayed_tasks"
#: Redis keeps scores as doubles: of nanoseconds of this century it keeps every 256th.
SCORE_STEP_NS = 256


def later(queue: str, count: int, first_ms: int, step_ms: float) -> list[Job]:
    """Return tasks that say when they ran, due one after another."""
    now_ns = time.time_ns()
    return [
        Job(name="now", queue=queue, eta_ns=now_ns + round((first_ms + n * step_ms) * 1e6))
        for n in range(count)
    ]


def too_early(jobs: Sequence[Job], answers: Sequence[object]) -> list[object]:
    """Return what ran before its time."""
    pairs = zip(jobs, answers, strict=True)
    return [answer for job, answer in pairs if answer.values[0] < (job.eta_ns or 0)]


# -- delayed tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize("mover", ["go", "py"])
def test_either_side_moves_the_delayed_tasks_of_both(crossing: Crossing, mover: str) -> None:
    jobs = [*later(GO_QUEUE, 250, 300, 1), *later(PY_QUEUE, 250, 300, 1)]
    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)
    assert crossing.raw.zcard(DELAYED) == 1000

    crossing.go_worker(moves_delayed=mover == "go")
    crossing.py_worker(moves_delayed=mover == "py")

    answers = crossing.go.get(uuids)
    assert too_early(jobs * 2, answers) == []
    assert not crossing.raw.exists(DELAYED)


def test_two_movers_deliver_each_delayed_task_once(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    eta_ns = time.time_ns() + 300_000_000
    jobs = [
        Job(name="count", args=ints(n), queue=BOTH_QUEUE, eta_ns=eta_ns + n * 1000)
        for n in range(500)
    ]

    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)

    answers = crossing.go.get(uuids)
    assert [answer.values[1] for answer in answers] == [*range(500), *range(500)]
    assert crossing.runs(*uuids) == [1] * 1000


@by_either
def test_scores_are_the_due_time_in_nanoseconds(crossing: Crossing, sender: str) -> None:
    hour_ns = time.time_ns() + 3_600_000_000_000
    jobs = [Job(name="now", eta_ns=hour_ns + n * 1_000_000_007) for n in range(20)]

    crossing.caller(sender).send(*jobs)

    scores = [score for _, score in crossing.raw.zrange(DELAYED, 0, -1, withscores=True)]
    wrong = [
        (job.eta_ns, score)
        for job, score in zip(jobs, scores, strict=True)
        if abs(int(score) - (job.eta_ns or 0)) > SCORE_STEP_NS
    ]
    assert wrong == []


@by_either
def test_both_languages_list_what_is_delayed_and_what_is_ready(
    crossing: Crossing, sender: str
) -> None:
    hour_ns = time.time_ns() + 3_600_000_000_000
    delayed = [Job(name="now", eta_ns=hour_ns + n * 10**9) for n in (2, 0, 1)]
    ready = [Job(name="joined", args=texts(str(n))) for n in range(3)]

    due = crossing.caller(sender).send(*delayed)
    uuids = crossing.caller(sender).send(*ready)

    in_order = [due[1], due[2], due[0]]
    go_delayed = crossing.go.ask("delayed")["Signatures"]
    go_ready = crossing.go.ask("pending")["Signatures"]
    assert [one["UUID"] for one in go_delayed] == in_order
    assert [one["UUID"] for one in go_ready] == uuids
    assert [one["Args"][0]["Value"] for one in go_ready] == ["0", "1", "2"]
    py_delayed = crossing.py.server.delayed_tasks()
    assert [one.uuid for one in py_delayed] == in_order
    assert [one.eta_ns for one in py_delayed] == [hour_ns + n * 10**9 for n in range(3)]
    assert [one.uuid for one in crossing.py.server.pending_tasks()] == uuids


@by_either
@pytest.mark.parametrize("queue", [GO_QUEUE, PY_QUEUE])
def test_a_time_in_the_past_is_ready_at_once(lively: Crossing, sender: str, queue: str) -> None:
    caller = lively.caller(sender)

    uuids = caller.send(Job(name="now", queue=queue, eta_ns=1_600_000_000_000_000_001))

    assert len(caller.get(uuids)[0].values) == 1


# -- retries -----------------------------------------------------------------------------------


def test_counted_retries_change_the_language(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    paths = ["go,py,go", "py,go,py", "go,go,py", "py,py,go"] * 10
    jobs = [Job(name="relay", args=texts(path), queue=BOTH_QUEUE, retry_count=2) for path in paths]

    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)

    expected = [([path[-2:]], "") for path in paths * 2]
    assert [(answer.values, answer.error) for answer in crossing.go.get(uuids)] == expected
    assert [(answer.values, answer.error) for answer in crossing.py.get(uuids)] == expected


@pytest.mark.parametrize("first", ["go", "py"])
def test_the_other_language_counts_on_from_where_the_first_one_failed(
    crossing: Crossing, first: str
) -> None:
    start = {"go": crossing.go_worker, "py": crossing.py_worker}
    worker = start[first](BOTH_QUEUE, moves_delayed=False)
    told = [fresh("task"), fresh("task")]
    jobs = [
        Job(
            name="fail",
            args=texts("still no"),
            queue=BOTH_QUEUE,
            retry_count=1,
            headers={"trace": "kept"},
            on_error=[Job(name="joined", uuid=one, queue=BOTH_QUEUE)],
        )
        for one in told
    ]

    uuids = crossing.go.send(jobs[0]) + crossing.py.send(jobs[1])

    crossing.wait_until(lambda: crossing.raw.zcard(DELAYED) == 2, "they wait for their retries")
    waiting = crossing.go.ask("delayed")["Signatures"]
    assert sorted(one["UUID"] for one in waiting) == sorted(uuids)
    assert [(one["RetryCount"], one["RetryTimeout"]) for one in waiting] == [(0, 1)] * 2
    assert [one["Headers"]["trace"] for one in waiting] == ["kept"] * 2
    assert [one["RoutingKey"] for one in waiting] == [BOTH_QUEUE] * 2
    crossing.kill(worker)
    crossing.raw.delete(f"{{{BOTH_QUEUE}}}:workers")
    start["py" if first == "go" else "go"](BOTH_QUEUE)
    assert [answer.error for answer in crossing.go.get(uuids)] == ["still no"] * 2
    assert [answer.error for answer in crossing.py.get(uuids)] == ["still no"] * 2
    crossing.wait_for_state("SUCCESS", *told)
    assert [answer.values for answer in crossing.py.get(told)] == [["still no"]] * 2


def test_run_me_again_changes_the_language_without_counting(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE)
    wanted = ["go", "py"] * 125
    jobs = [Job(name="insist", args=texts(who), queue=BOTH_QUEUE) for who in wanted]

    uuids = crossing.go.send(*jobs) + crossing.py.send(*jobs)

    assert [answer.values for answer in crossing.go.get(uuids)] == [[who] for who in wanted * 2]
