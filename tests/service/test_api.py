"""
The HTTP caller as processes: several replicas, real workers, a real client.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from machine.embedded import EmbeddedServer
from tests.service.replicas import Replicas, Wait

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def replicas(redis_url: str, queue: str, tmp_path: Path, wait_until: Wait) -> Iterator[Replicas]:
    made = Replicas(redis_url, queue, tmp_path, wait_until)
    yield made
    made.end()


@pytest.fixture
def worker(site: Any, replicas: Replicas) -> Any:
    """Start a worker that knows the tasks."""
    site.start(**replicas.variables())
    return site


def sent(client: httpx.Client, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
    """Send, and return what the 202 says."""
    answer = client.post(path, json={} if body is None else body, headers=headers)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == found["location"]
    return found


def ended(client: httpx.Client, location: str) -> dict[str, Any]:
    """Return the result when it has ended."""
    for _ in range(6):
        found: dict[str, Any] = client.get(location, params={"wait": 10}).json()
        if found["ended"]:
            return found
    pytest.fail(f"{location} did not end: {found}")


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return a problem document, after a look at its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["type"] == f"/docs#{code}"
    assert found["title"]
    assert found["detail"]
    return found


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream, each as its name, id and data."""
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in ("event", "id", "data"):
            event[name] = json.loads(value) if name == "data" else value
        elif not line and event:
            yield event
            event = {}


# -- any replica -------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
def test_a_task_sent_to_one_replica_is_read_through_another(
    replicas: Replicas,
) -> None:
    one, other = replicas.start(), replicas.start()

    accepted = sent(one, "/tasks/shout", {"args": ["hello", 2], "kwargs": {"loud": True}})
    found = ended(other, accepted["location"])

    assert accepted["state"] == "PENDING"
    assert found["id"] == accepted["id"]
    assert found["state"] == "SUCCESS"
    assert found["outcome"] == "succeeded"
    assert found["result"] == "HELLO HELLO"
    assert found["results"] == [{"type": "string", "value": "HELLO HELLO"}]


def test_a_task_sent_to_one_replica_is_canceled_through_another(
    replicas: Replicas, site: Any
) -> None:
    one, other = replicas.start(), replicas.start()
    accepted = sent(one, "/tasks/add", {"args": [1, 2]})

    canceled = other.delete(accepted["location"])
    site.start(**replicas.variables())
    done = ended(one, sent(one, "/tasks/add", {"args": [3]})["location"])

    assert canceled.status_code == 200
    assert canceled.json()["outcome"] == "canceled"
    assert done["result"] == 3  # the worker has been past the canceled one
    assert ended(one, accepted["location"])["error"] == "canceled"
    problem_of(other.delete(f"/results/{done['id']}"), 409, "ended")
    problem_of(other.delete("/results/task_nobody"), 404, "unknown-result")


@pytest.mark.usefixtures("worker")
def test_a_stream_is_resumed_through_another_replica(
    replicas: Replicas, queue: str, raw: redis.Redis
) -> None:
    one, other = replicas.start(), replicas.start()
    place = sent(one, "/tasks/in_two_halves", {"args": [f"{queue}.go"]})["events"]

    with one.stream("GET", place) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        seen = next(e for e in events(stream.iter_lines()) if e["data"]["progress"])
    with other.stream("GET", place, headers={"Last-Event-ID": seen["id"]}) as stream:
        raw.rpush(f"{queue}.go", "go")
        rest = list(events(stream.iter_lines()))

    assert seen["event"] == "state"
    assert seen["data"]["progress"] == {"fraction": 0.5, "note": "half"}
    assert seen["id"] not in [event["id"] for event in rest]
    assert [event["event"] for event in rest] == ["end"]
    assert rest[0]["data"]["result"] == "whole"
    again = one.get(place, headers={"Last-Event-ID": rest[0]["id"]})
    assert again.status_code == 204  # nothing is new, and nothing will be
    assert list(events(iter(one.get(place).text.splitlines()))) == rest


@pytest.mark.usefixtures("worker")
def test_the_same_key_sends_once_however_often_and_to_whichever_replica(
    replicas: Replicas, started: Any
) -> None:
    clients = [replicas.start(), replicas.start()]
    key = {"Idempotency-Key": '"order-1"'}

    with ThreadPoolExecutor(8) as pool:
        many = [
            pool.submit(sent, clients[i % 2], "/tasks/counted", {"args": ["a"]}, **key)
            for i in range(24)
        ]
        places = {one.result()["location"] for one in many}
    found = ended(clients[0], *places)
    other = clients[1].post("/tasks/counted", json={"args": ["b"]}, headers=key)
    elsewhere = clients[0].post("/tasks/shout", json={"args": ["a"]}, headers=key)
    marker = sent(clients[0], "/tasks/counted", {"args": ["end"]})

    assert found["result"] == "a"
    problem_of(other, 409, "key-reused")
    problem_of(elsewhere, 409, "key-reused")
    ended(clients[0], marker["location"])
    assert [name for name, _ in started(2)] == ["a", "end"]


@pytest.mark.usefixtures("worker")
def test_a_workflow_with_a_key_is_sent_once(replicas: Replicas, started: Any) -> None:
    one, other = replicas.start(), replicas.start()
    call = {"name": "counted", "args": ["a"]}
    body = {"steps": [{"group": [call, call]}, {"name": "counted", "kwargs": {"name": "z"}}]}
    body["steps"][1]["options"] = {"immutable": True}

    answers = [sent(c, "/chains", body, **{"Idempotency-Key": "w"}) for c in (one, other, one)]

    assert answers[0] == answers[1] == answers[2]
    assert ended(other, answers[0]["location"])["result"] == "z"
    assert sorted(name for name, _ in started(3)) == ["a", "a", "z"]


# -- waiting and workflows ---------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
def test_a_client_that_prefers_to_wait_gets_the_result_at_once(
    replicas: Replicas,
) -> None:
    client = replicas.start()

    quick = client.post("/tasks/add", json={"args": [1, 2]}, headers={"Prefer": "wait=20"})
    chained = client.post(
        "/chains",
        json={"steps": [{"name": "add", "args": [1, 1]}, {"name": "add", "args": [5]}]},
        headers={"Prefer": "respond-async, wait=20"},
    )

    assert quick.status_code == 200
    assert quick.json()["result"] == 3
    assert quick.headers["Preference-Applied"] == "wait=20"
    assert quick.headers["Content-Location"] == f"/results/{quick.json()['id']}"
    assert chained.json()["result"] == 7


@pytest.mark.usefixtures("worker")
def test_groups_chords_and_workflows_in_each_other_end_as_they_should(
    replicas: Replicas,
) -> None:
    one, other = replicas.start(), replicas.start()
    pair = [{"name": "add", "args": [1, 1]}, {"name": "add", "args": [5, 5]}]

    group = sent(one, "/groups", {"members": pair})
    chord = sent(one, "/chords", {"members": pair, "callback": {"name": "add"}})
    nested = sent(
        one,
        "/chains",
        {"steps": [{"chord": {"members": pair, "callback": {"name": "add"}}}, {"group": pair}]},
    )
    values = {name: ended(other, task["location"])["result"] for name, task in (
        ("first", group["tasks"][0]), ("second", group["tasks"][1]), ("chord", chord),
    )}  # fmt: skip
    replicas.wait_until(lambda: other.get(nested["location"]).json()["done"], 20, "the group ends")
    members = other.get(nested["location"]).json()

    assert values == {"first": 2, "second": 10, "chord": 12}
    assert [m["state"]["result"] for m in members["members"]] == [14, 22]
    assert (members["total"], members["ended"], members["failed"]) == (2, 2, 0)
    whole = other.get(group["location"], params={"offset": 1, "limit": 1}).json()
    assert whole["total"] == 2
    assert [member["id"] for member in whole["members"]] == [group["tasks"][1]["id"]]
    assert other.get(chord["group"]).json()["total"] == 3
    problem_of(other.get("/groups/group_nobody"), 404, "unknown-group")


@pytest.mark.leaves("queue", "canceled")
def test_the_end_of_a_chain_is_pending_before_it_is_sent_and_can_be_canceled(
    replicas: Replicas,
) -> None:
    one, other = replicas.start(), replicas.start()
    body = {"steps": [{"name": "add", "args": [1]}, {"name": "add"}, {"name": "add"}]}

    chain = sent(one, "/chains", body)
    waiting = other.get(chain["location"]).json()
    progress = other.get(chain["group"]).json()
    canceled = other.delete(chain["location"])
    rest = other.delete(chain["group"]).json()

    assert waiting["state"] == "PENDING"
    assert [member["state"] is None for member in progress["members"]] == [False, True, True]
    assert canceled.json()["outcome"] == "canceled"
    assert rest["ended"] == rest["failed"] == rest["total"] == 3
    assert {member["state"]["outcome"] for member in rest["members"]} == {"canceled"}


@pytest.mark.leaves("queue")
def test_metrics_count_what_this_replica_sent_and_show_what_waits(replicas: Replicas) -> None:
    client = replicas.start()
    sent(client, "/tasks/add", {"args": [1]})
    sent(client, "/groups", {"members": [{"name": "add"}, {"name": "fail", "args": ["x"]}]})

    lines = client.get("/metrics").text.splitlines()

    queue = replicas.queue
    assert f'machinery_tasks_sent_total{{queue="{queue}",task="add"}} 2.0' in lines
    assert f'machinery_tasks_sent_total{{queue="{queue}",task="fail"}} 1.0' in lines
    assert f'machinery_queue_tasks{{queue="{queue}",state="pending"}} 3.0' in lines


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.leaves("queue")
def test_a_full_queue_is_429_and_says_when_to_come_back(replicas: Replicas) -> None:
    client = replicas.start(MAX_QUEUE_LENGTH="1")
    sent(client, "/tasks/add", {"args": [1]})

    answer = client.post("/tasks/add", json={"args": [2]})

    assert "max_queue_length" in problem_of(answer, 429, "queue-full")["detail"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_without_redis_a_replica_lives_is_not_ready_and_says_503_until_it_is_back(
    queue: str, tmp_path: Path, wait_until: Wait
) -> None:
    with EmbeddedServer(data_dir=str(tmp_path / "data"), args=["--appendonly", "yes"]) as server:
        made = Replicas(server.url, queue, tmp_path, wait_until)
        try:
            client = made.start()
            location = sent(client, "/tasks/add", {"args": [1]})["location"]
            with client.stream("GET", f"{location}/events") as stream:
                following = events(stream.iter_lines())
                assert next(following)["data"]["state"] == "PENDING"
                server.kill()
                assert client.get("/livez").status_code == 200
                problem_of(client.get("/readyz"), 503, "unavailable")
                refused = client.post("/tasks/add", json={"args": [1]})
                problem_of(refused, 503, "unavailable")
                assert int(refused.headers["Retry-After"]) >= 1
                problem_of(client.get(location), 503, "unavailable")
                server.restart()
                wait_until(lambda: client.get("/readyz").status_code == 200, 20, "it is ready")
                assert client.get(location).json()["state"] == "PENDING"
                assert client.delete(location).json()["outcome"] == "canceled"
                assert next(following)["event"] == "end"  # the stream has outlived it
        finally:
            made.end()


@pytest.mark.leaves("queue")
def test_a_replica_told_to_end_lets_streams_and_waits_go_and_exits_with_0(
    replicas: Replicas,
) -> None:
    client = replicas.start()
    accepted = sent(client, "/tasks/add", {"args": [1]})

    with client.stream("GET", accepted["events"]) as stream, ThreadPoolExecutor(1) as pool:
        following = events(stream.iter_lines())
        assert next(following)["data"]["state"] == "PENDING"
        waiting = pool.submit(client.get, accepted["location"], params={"wait": 30})
        health = [client.get("/livez") for _ in range(3)]  # the waiting one is in by now
        replicas.processes[0].send_signal(signal.SIGTERM)
        rest = list(following)
        status = replicas.processes[0].wait(10)

    assert [answer.status_code for answer in health] == [200, 200, 200]
    assert rest == []
    assert waiting.exception() is not None or waiting.result().json()["state"] == "PENDING"
    assert status == 0


@pytest.mark.leaves("queue")
def test_with_tokens_set_only_who_shows_one_comes_in(replicas: Replicas, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first, second\n")
    client = replicas.start(token="second", API_TOKEN_FILE=str(tmp_path / "token"))
    bare = {"Authorization": ""}

    assert client.get("/tasks").status_code == 200
    assert client.get("/tasks", headers={"Authorization": "bearer first"}).status_code == 200
    for headers in (bare, {"Authorization": "Bearer third"}, {"Authorization": "Basic second"}):
        for method, path in (("GET", "/tasks"), ("POST", "/tasks/add"), ("GET", "/openapi.json")):
            answer = client.request(method, path, headers=headers)
            problem_of(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for path in ("/livez", "/readyz", "/docs"):
        assert client.get(path, headers=bare).status_code == 200
    key = {"Idempotency-Key": "k"}
    mine = sent(client, "/tasks/add", {"args": [1]}, **key)
    theirs = sent(client, "/tasks/add", {"args": [1]}, **key, Authorization="Bearer first")
    assert mine["id"] != theirs["id"]  # a key is its client's own


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"API_HOST": "0.0.0.0"}, "api_token"),  # noqa: S104 - that is what is refused
        ({"API_TOKEN": "a,,b"}, "between two commas"),
        ({"RESULT_BACKEND": "null"}, "result_backend"),
        ({"API_PORT": "70000"}, "API_PORT"),
    ],
)
def test_settings_that_cannot_be_end_it_at_once(
    variables: dict[str, str], text: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "caller" / "api.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "API_PORT": "0"} | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 78
    assert done.stderr.startswith("error: ")
    assert text in done.stderr


@pytest.mark.parametrize("missing", ["msgspec", "starlette"])
def test_without_its_extra_it_says_what_to_install(missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}', name='{missing}')"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "caller" / "api.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "API_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 78
    assert done.stderr == "error: the HTTP caller needs its extra: pip install '.[api]'\n"
