"""Each side reads every state the other side writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.interop.callers import Job, fresh, ints, texts
from tests.interop.crossing import GO_QUEUE, PY_QUEUE, Crossing

by_either = pytest.mark.parametrize("sender", ["go", "py"])
in_either = pytest.mark.parametrize("queue", [GO_QUEUE, PY_QUEUE], ids=["in-go", "in-py"])


def is_now(created_at: str) -> bool:
    """Say whether a time that Go wrote is of this minute."""
    then = datetime.fromisoformat(created_at[:19]).replace(tzinfo=UTC)
    return abs(datetime.now(UTC) - then) < timedelta(minutes=1)


@by_either
def test_pending(lively: Crossing, sender: str) -> None:
    uuids = lively.caller(sender).send(Job(name="add", args=ints(1), queue=fresh("nobody_s")))

    [state] = lively.go.states(*uuids)

    assert is_now(state.pop("CreatedAt"))
    assert state == {
        "TaskUUID": uuids[0],
        "TaskName": "add",
        "State": "PENDING",
        "Results": None,
        "Error": "",
        "TTL": 0,
    }
    found = lively.py.server.get_state(uuids[0])
    assert found is not None
    assert (found.state, found.task_name, found.results, found.error) == (
        "PENDING",
        "add",
        None,
        "",
    )
    lively.raw.delete(*lively.raw.keys("nobody_s*"))


@by_either
@in_either
def test_started(lively: Crossing, sender: str, queue: str) -> None:
    gate = fresh("gate")
    args = [*texts(gate), *ints(5)]

    uuids = lively.caller(sender).send(Job(name="gated", args=args, queue=queue))

    lively.wait_for_state("STARTED", *uuids)
    [state] = lively.go.states(*uuids)
    assert (state["State"], state["TaskName"]) == ("STARTED", "gated")
    assert is_now(state["CreatedAt"])
    started = lively.py.server.get_state(uuids[0])
    assert started is not None
    assert (started.state, started.task_name) == ("STARTED", "gated")
    lively.open(gate)
    assert lively.go.get(uuids)[0].values == [5]


def test_go_reads_pythons_retry(crossing: Crossing) -> None:
    crossing.py_worker()

    uuids = crossing.go.send(
        Job(name="fail", args=texts("once more"), queue=PY_QUEUE, retry_count=1, retry_timeout=50)
    )

    crossing.wait_for_state("RETRY", *uuids)
    [state] = crossing.go.states(*uuids)
    assert (state["State"], state["TaskName"], state["Results"]) == ("RETRY", "fail", None)
    assert is_now(state["CreatedAt"])
    assert crossing.go.get(uuids, 0.05)[0].error == "Timeout reached"


@by_either
@in_either
def test_success_keeps_the_name_and_the_time_of_its_birth(
    lively: Crossing, sender: str, queue: str
) -> None:
    gate = fresh("gate")
    args = [*texts(gate), *ints(5)]
    uuids = lively.caller(sender).send(Job(name="gated", args=args, queue=queue))
    lively.wait_for_state("STARTED", *uuids)
    before = lively.document(uuids[0])

    lively.open(gate)

    lively.wait_for_state("SUCCESS", *uuids)
    [state] = lively.go.states(*uuids)
    assert state == {
        **before,
        "State": "SUCCESS",
        "Results": [{"Type": "int64", "Value": 5}],
    }
    assert 3590 <= lively.raw.ttl(uuids[0]) <= 3600


@by_either
@in_either
@pytest.mark.parametrize("name", ["fail", "panics"])
def test_failure(lively: Crossing, sender: str, queue: str, name: str) -> None:
    uuids = lively.caller(sender).send(Job(name=name, args=texts('<"é\n>'), queue=queue))

    assert lively.go.get(uuids)[0].error == '<"é\n>'
    assert lively.py.get(uuids)[0].error == '<"é\n>'
    [state] = lively.go.states(*uuids)
    assert (state["State"], state["TaskName"], state["Results"]) == ("FAILURE", name, None)


@by_either
@in_either
def test_a_result_that_is_nothing_ends_the_wait(lively: Crossing, sender: str, queue: str) -> None:
    uuids = lively.caller(sender).send(Job(name="nothing", queue=queue))

    assert (lively.go.get(uuids)[0].values, lively.go.get(uuids)[0].error) == ([], "")
    assert lively.py.server.result(uuids[0]).get(5) is None
    assert lively.document(uuids[0])["Results"] == []


def test_python_fails_what_cannot_be_converted_as_go_does(lively: Crossing) -> None:
    wrong = '{"UUID":"%s","Name":"add","RoutingKey":"py_q","Args":[{"Type":"int64","Value":1.5}]}'
    uuid = fresh("task")

    lively.raw.rpush(PY_QUEUE, wrong % uuid)

    text = 'Reflect task args error: strconv.ParseInt: parsing "1.5": invalid syntax'
    lively.wait_for_state("FAILURE", uuid)
    assert lively.go.get([uuid])[0].error == text


def test_python_survives_what_would_stop_a_go_worker(lively: Crossing) -> None:
    lively.raw.rpush(
        PY_QUEUE,
        b"not json",
        b'{"Name":"add","UUID":"task_x","RetryCount":1.0}',
        b'{"Name":"add","UUID":"task_y","Args":[{"Type":"[]int64","Value":true}]}',
    )

    uuids = lively.go.send(Job(name="add", args=ints(1, 2), queue=PY_QUEUE))

    assert lively.go.get(uuids)[0].values == [3]
    reasons = [letter.reason for letter in lively.py.server.broker.dead(PY_QUEUE)]
    assert len(reasons) >= 2


@pytest.mark.parametrize("writer", ["go", "py"])
def test_a_purged_state_is_gone_for_both(lively: Crossing, writer: str) -> None:
    uuids = lively.caller(writer).send(Job(name="nothing", queue=PY_QUEUE))
    lively.wait_for_state("SUCCESS", *uuids)

    lively.py.server.purge_state(uuids[0])

    assert "nil" in lively.go.ask_for_error("state", UUIDs=uuids)["Error"]
    assert lively.py.server.get_state(uuids[0]) is None
