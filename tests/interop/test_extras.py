"""
What Machinery has no words for: it takes it along, reads past it, and is not disturbed.

A state may say how far a task is and how its runs before ended; a message's headers may say when
it is too late and what may run only once; a task may be canceled; and a workflow may have others
in it.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from machine import DuplicateTask, TaskFailed
from machine.wire.signature import Arg, Signature
from machine.wire.text import format_time
from machine.workflow.pieces import Chain, Chord, Group, GroupChain
from tests.interop.callers import Job, fresh, ints, texts
from tests.interop.crossing import DEFAULT_QUEUE, GO_QUEUE, PY_QUEUE, Crossing

QUEUES = {"go": GO_QUEUE, "py": PY_QUEUE}
by_either = pytest.mark.parametrize("sender", ["go", "py"])
HOUR_NS = 3_600_000_000_000


# -- states ------------------------------------------------------------------------------------


def test_go_reads_a_state_that_says_how_far_the_task_is(lively: Crossing) -> None:
    gate = fresh("gate")
    args = [*texts(gate), *ints(5)]

    uuids = lively.go.send(Job(name="gated_halfway", args=args, queue=PY_QUEUE))

    lively.wait_until(lambda: "Progress" in lively.document(uuids[0]), "it has said how far it is")
    shown = lively.document(uuids[0])
    assert shown.pop("Progress") == {"Fraction": 0.5, "Note": 'half <"é">'}
    assert lively.go.states(*uuids) == [shown]
    assert shown["State"] == "STARTED"
    lively.open(gate)
    assert lively.go.get(uuids)[0].values == [5]


def test_go_reads_a_retry_that_says_how_the_run_before_ended(crossing: Crossing) -> None:
    crossing.py_worker()

    uuids = crossing.go.send(
        Job(name="fail", args=texts("no luck"), queue=PY_QUEUE, retry_count=1, retry_timeout=50)
    )

    crossing.wait_for_state("RETRY", *uuids)
    shown = crossing.document(uuids[0])
    [attempt] = shown.pop("Attempts")
    assert (attempt["Attempt"], attempt["Error"]) == (1, "no luck")
    assert crossing.go.states(*uuids) == [shown]


def test_go_reads_a_result_that_says_how_the_runs_before_ended(lively: Crossing) -> None:
    job = Job(name="relay", args=texts("py,py"), queue=PY_QUEUE, retry_count=1)

    uuids = lively.go.send(job)

    assert lively.go.get(uuids)[0].values == ["py"]
    shown = lively.document(uuids[0])
    assert [attempt["Error"] for attempt in shown.pop("Attempts")] == ["step 0 failed in py"]
    assert lively.go.states(*uuids) == [shown]
    state = lively.py.server.get_state(uuids[0])
    assert state is not None
    assert [attempt.error for attempt in state.attempts] == ["step 0 failed in py"]


# -- canceling ---------------------------------------------------------------------------------


@by_either
def test_a_go_caller_is_told_that_a_task_is_canceled(lively: Crossing, sender: str) -> None:
    caller, gate, nobody_s = lively.caller(sender), fresh("gate"), fresh("nobody_s")
    args = [*texts(gate), *ints(5)]
    running = caller.send(Job(name="gated", args=args, queue=PY_QUEUE))
    waiting = caller.send(Job(name="gated", args=args, queue=nobody_s))
    delayed = caller.send(Job(name="now", queue=PY_QUEUE, eta_ns=time.time_ns() + HOUR_NS))
    lively.wait_for_state("STARTED", *running)

    for uuid in (*running, *waiting, *delayed):
        assert lively.py.server.cancel(uuid)

    answers = lively.go.get([*running, *waiting, *delayed])
    assert [answer.error for answer in answers] == ["canceled"] * 3
    lively.open(gate)
    [after] = lively.go.get(lively.go.send(Job(name="add", args=ints(1), queue=PY_QUEUE)))
    assert after.values == [1]
    assert [state["Error"] for state in lively.go.states(*running)] == ["canceled"]
    lively.raw.delete(nobody_s, "delayed_tasks")


def test_what_go_runs_is_run_though_it_was_canceled(lively: Crossing) -> None:
    gate = fresh("gate")
    uuids = lively.go.send(Job(name="gated", args=[*texts(gate), *ints(5)], queue=GO_QUEUE))
    lively.wait_for_state("STARTED", *uuids)

    lively.py.server.cancel(uuids[0])

    assert lively.go.get(uuids)[0].error == "canceled"
    lively.open(gate)
    lively.wait_for_state("SUCCESS", *uuids)


# -- headers -----------------------------------------------------------------------------------


def test_go_runs_what_has_a_time_limit_and_a_key(lively: Crossing) -> None:
    key, gate = fresh("key"), fresh("gate")
    headers = {
        "x-expires-at": format_time(time.time_ns() + HOUR_NS),
        "x-unique": key,
        "x-on-duplicate": "refuse",
    }
    args = [*texts(gate), *ints(5)]
    job = Job(name="gated", args=args, queue=GO_QUEUE, headers=headers)
    first = lively.py.send(job)
    lively.wait_for_state("STARTED", *first)

    with pytest.raises(DuplicateTask):
        lively.py.send(job)

    lively.open(gate)
    assert lively.go.get(first)[0].values == [5]
    # Go does not know the key, but its result is what ends it.
    assert lively.go.get(lively.py.send(job))[0].values == [5]


def test_go_takes_headers_of_ours_on_to_python(lively: Crossing) -> None:
    late = {"x-expires-at": "2020-01-01T00:00:00Z"}
    then = Job(name="add", queue=PY_QUEUE, headers=late, uuid=fresh("task"))

    uuids = lively.go.send(Job(name="add", args=ints(1), queue=GO_QUEUE, on_success=[then]))

    assert lively.go.get(uuids)[0].values == [1]
    assert lively.go.get([then.uuid])[0].error.startswith("expired: ")
    assert lively.runs(then.uuid) == [0]


# -- workflows in workflows --------------------------------------------------------------------


def add(number: int, queue: str) -> Signature:
    """Return a task that adds a number to what comes before it."""
    return Signature(name="add", args=[Arg("int64", number)], routing_key=queue)


def chain(first: int, *languages: str) -> Chain[Any]:
    """Return a chain of additions, each by a power of ten more, and where each is run."""
    return Chain(add(first * 10**n, QUEUES[one]) for n, one in enumerate(languages))


def test_a_group_of_chains_ends_in_either_language(lively: Crossing) -> None:
    group = Group(
        [
            chain(1, "go", "py"),
            chain(2, "py", "go"),
            chain(3, "py", "go", "py"),
            chain(4, "go", "py", "go"),
            add(5, GO_QUEUE),
        ]
    )

    result = lively.py.server.send_group(group)

    assert result.get(20) == [11, 22, 333, 444, 5]
    again = lively.py.server.group_result(result.group_uuid)
    assert again.get(20) == [11, 22, 333, 444, 5]


def test_go_spreads_a_group_that_follows_its_task(lively: Crossing) -> None:
    group = Group([add(n, QUEUES[one]) for n, one in enumerate(["go", "py"] * 5)])
    piece = GroupChain[Any]([add(1, GO_QUEUE), group])

    result = lively.py.server.send_chain(piece)

    assert result.get(20) == [1 + n for n in range(10)]


def test_a_chord_of_chains_fires_when_go_ran_the_links_before_the_last(lively: Crossing) -> None:
    chords = [
        Chord(
            Group([chain(1, "go", "py"), chain(2, "go", "go", "py"), add(n, PY_QUEUE)]),
            Signature(name="count_sum", args=[], routing_key=queue),
        )
        for n in range(20)
        for queue in QUEUES.values()
    ]

    results = [lively.py.server.send_chord(one) for one in chords]

    assert [one.get(20) for one in results] == [11 + 222 + n for n in range(20) for _ in QUEUES]
    assert lively.runs(*(one.uuid for one in results)) == [1] * 40


def test_a_chord_of_chains_fires_whichever_language_runs_the_last_links(mixing: Crossing) -> None:
    chords = [
        Chord(
            Group([chain(1, "py", "go"), chain(2, "go", "py", "go"), chain(3, "go", "py")]),
            Signature(name="count_sum", args=[], routing_key=queue),
        )
        for _ in range(20)
        for queue in QUEUES.values()
    ]

    results = [mixing.py.server.send_chord(one) for one in chords]

    assert [one.get(30) for one in results] == [11 + 222 + 33] * 40
    assert mixing.runs(*(one.uuid for one in results)) == [1] * 40


def test_a_group_between_two_tasks_runs_in_both_languages(mixing: Crossing) -> None:
    pieces = [
        Chain[Any](
            [
                add(1, first),
                Group([add(n, QUEUES[one]) for n, one in enumerate(["go", "py"] * 3)]),
                Signature(name="count_sum", args=[], routing_key=last),
            ]
        )
        for first in QUEUES.values()
        for last in QUEUES.values()
    ]

    results = [mixing.py.server.send_chain(piece) for piece in pieces]

    assert [one.get(30) for one in results] == [sum(1 + n for n in range(6))] * 4


def test_a_group_after_a_group_with_members_in_both(crossing: Crossing) -> None:
    crossing.go_worker()
    # The task between two groups is Python's own, and goes to the default queue.
    crossing.py_worker(PY_QUEUE, DEFAULT_QUEUE, INTEROP_GROUPS="true")
    first, second = (
        Group([add(n, queue) for queue in QUEUES.values() for n in (1, 2)]) for _ in range(2)
    )

    result = crossing.py.server.send_chain(GroupChain[Any]([first, second]))

    assert result.get(20) == [7, 8, 7, 8]


def test_a_failure_in_go_is_what_the_workflow_comes_to(lively: Crossing) -> None:
    fails = Signature(name="fail", args=[Arg("string", "no luck")], routing_key=GO_QUEUE)
    group = Group([Chain([fails, add(1, PY_QUEUE)]), chain(2, "py", "go")])

    result = lively.py.server.send_group(group)

    with pytest.raises(TaskFailed, match="no luck"):
        result.get(20)
