"""
What the HTTP caller says to requests, good ones and bad ones, on a real Redis without a worker.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis

from caller.web import events
from caller.web.problems import KINDS
from caller.web.routes import SLACK_BYTES, make_app
from caller.web.service import Service
from caller.web.workflows import MOST_WORKFLOW_BYTES
from machine import build, task
from machine.config import Config, RedisConfig
from machine.registry import Registry
from machine.server import Server
from machine.wire.limits import is_result_id
from machine.wire.signature import Progress, State, TaskResult, TaskState


@task
def add(*numbers: int) -> int:
    """Return the sum."""
    return sum(numbers)


@task(queue="mail")
def shout(text: str, times: int = 1, *, loud: bool = False) -> str:
    """Return the text so many times."""
    return " ".join([text.upper() if loud else text] * times)


@task
def turned(data: bytes) -> bytes:
    """Return the bytes in reverse."""
    return data[::-1]


@task
def mean(numbers: list[float], weight: float = 1.0) -> float:
    """Return the mean."""
    return weight * sum(numbers) / len(numbers)


@task
def anything(value, *, other=None):
    """Return it."""
    return value, other


@task(unique=True, on_duplicate="refuse")
def alone(name: str) -> str:
    """Run as the only one of its name."""
    return name


@task(unique=lambda name: {}[name])
def broken(name: str) -> str:
    """Have no key for any name."""
    return name


TASKS = (add, shout, turned, mean, anything, alone, broken)


class Api:
    """One replica in this process."""

    def __init__(self, config: Config) -> None:
        registry = Registry()
        registry.register_tasks({task.name: task for task in TASKS})
        self.config = config
        self.server: Server = build.server(config, registry, retry_s=1.0)
        self.service = Service(self.server)
        self.app = make_app(self.service, config)

    def ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost:8000"
            ) as client:
                return await client.request(method, path, **rest)

        return asyncio.run(once())

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.ask("POST", path, json={} if body is None else body, headers=headers)

    def record(self, **fields: Any) -> str:
        state = TaskState(task_uuid="task_x", task_name="x", **fields)
        self.service.backend.record(state)
        return "/results/task_x"


@pytest.fixture
def config(redis_url: str, queue: str, delayed_key: str) -> Config:
    return Config(
        broker=redis_url,
        default_queue=queue,
        allowed_queues=(f"{queue}.mail",),
        redis=RedisConfig(delayed_tasks_key=delayed_key),
        max_message_bytes=20_000,
    )


@pytest.fixture
def api(config: Config) -> Iterator[Api]:
    shout.queue = config.allowed_queues[0]
    made = Api(config)
    yield made
    made.server.close()


leaves_work = pytest.mark.leaves("queue", "delayed", "canceled")


def problem_of(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["type"]) == (status, f"/docs#{code}"), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    return detail


# -- what is sent ------------------------------------------------------------------------------


@leaves_work
def test_a_call_becomes_the_message_that_its_annotations_ask_for(api: Api) -> None:
    for path, body in (
        ("/tasks/add", {"args": [1, 2.0, -0.0]}),
        ("/tasks/turned", {"args": [base64.b64encode(b"\xff\x00").decode()]}),
        ("/tasks/mean", {"args": [[1, 2.5]], "kwargs": {"weight": 3}}),
        ("/tasks/anything", {"kwargs": {"value": [1, 2], "other": "o"}}),
    ):
        assert api.post(path, body).status_code == 202

    messages = api.server.pending_tasks()

    assert [[tuple(arg) for arg in message.args] for message in messages] == [
        [("int64", 1, ""), ("int64", 2, ""), ("int64", 0, "")],
        [("[]byte", "/wA=", "")],
        [("[]float64", [1.0, 2.5], ""), ("float64", 3.0, "")],
        [("[]int64", [1, 2], ""), ("string", "o", "other")],
    ]


@leaves_work
def test_the_options_of_a_body_are_those_of_the_signature(api: Api, queue: str) -> None:
    options = {
        "queue": queue,
        "countdown": 0,
        "expires": "2999-01-01T00:00:00Z",
        "retry_count": 3,
        "retry_timeout": 5,
        "priority": 7,
        "immutable": True,
        "ignore_when_task_not_registered": True,
        "headers": {"traceparent": "00-1"},
    }

    answer = api.post("/tasks/shout", {"args": ["a"], "options": options})

    assert answer.status_code == 202, answer.text
    [message] = api.server.pending_tasks()
    assert message.uuid == answer.json()["id"]
    assert (message.retry_count, message.retry_timeout, message.priority) == (3, 5, 7)
    assert message.immutable
    assert message.ignore_when_task_not_registered
    assert message.header("traceparent") == "00-1"
    assert message.header("x-expires-at").startswith("2999-01-01")


@leaves_work
def test_a_task_goes_to_its_own_queue_and_a_later_one_to_the_delayed(api: Api) -> None:
    api.post("/tasks/shout", {"args": ["a"]})
    api.post("/tasks/add", {"args": [1], "options": {"countdown": 3600}})
    api.post("/tasks/add", {"args": [2], "options": {"eta": "2999-01-01T00:00:00+01:00"}})

    assert [one.name for one in api.server.pending_tasks(api.config.allowed_queues[0])] == ["shout"]
    assert [one.args[0].value for one in api.server.delayed_tasks()] == [1, 2]


@leaves_work
def test_the_request_id_comes_back_and_travels_with_the_tasks(api: Api) -> None:
    given = api.post("/tasks/add", {"args": [1]}, **{"X-Request-Id": "abc-1"})
    made = api.post("/tasks/add", {"args": [1]}, **{"X-Request-Id": "no spaces, please"})

    assert given.headers["X-Request-Id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])
    assert [one.header("x-correlation-id") for one in api.server.pending_tasks()] == [
        "abc-1",
        made.headers["X-Request-Id"],
    ]


@leaves_work
def test_the_trace_of_a_request_goes_on_in_its_tasks_if_it_is_one(api: Api) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    api.post("/tasks/add", {"args": [1]}, traceparent=parent, tracestate="vendor=1")
    api.post("/tasks/add", {"args": [1]}, traceparent="nonsense", tracestate="vendor=1")

    traced, bare = api.server.pending_tasks()

    assert (traced.header("traceparent"), traced.header("tracestate")) == (parent, "vendor=1")
    assert not {"traceparent", "tracestate"} & set(bare.headers or ())


@leaves_work
def test_a_unique_task_that_is_there_already_is_409_and_says_where(api: Api) -> None:
    first = api.post("/tasks/alone", {"args": ["a"]})
    second = api.post("/tasks/alone", {"args": ["a"]})
    joined = api.post("/tasks/alone", {"args": ["a"], "options": {"on_duplicate": "join"}})

    problem_of(second, 409, "duplicate")
    assert second.headers["Location"] == first.headers["Location"]
    assert joined.json()["id"] == first.json()["id"]


@leaves_work
def test_an_empty_body_is_a_call_without_arguments(api: Api) -> None:
    assert api.ask("POST", "/tasks/add").status_code == 202


# -- what is refused ---------------------------------------------------------------------------

CALLS: list[tuple[Any, str]] = [
    ([], "the body is an array of 0; give an object"),
    ({"arg": []}, "the body has the member 'arg'; known: args, kwargs, options; did you mean"),
    ({"args": {}}, "args is an object of 0; give an array"),
    ({"args": [1]}, "shout() argument 'text' is an int"),
    ({}, "shout() missing a required argument: 'text'"),
    ({"args": ["a", 1, 2]}, "too many positional arguments"),
    ({"args": ["a"], "kwargs": {"text": "b"}}, "multiple values for argument 'text'"),
    ({"kwargs": []}, "kwargs is an array of 0; give an object"),
    ({"args": ["a"], "kwargs": {"louder": True}}, "unexpected keyword argument 'louder'"),
    ({"args": ["a", 1.5]}, "argument 'times' is a float"),
    ({"args": ["a", 10**30]}, "out of range for int64"),
    ({"args": [None]}, "argument 'text' is None"),
    ({"args": ["a"], "options": {"queue": "elsewhere"}}, "options.queue is 'elsewhere'; give one"),
    ({"args": ["a"], "options": {"queu": "x"}}, "did you mean 'queue'?"),
    ({"args": ["a"], "options": {"countdown": -1}}, "options.countdown is -1; give a number"),
    ({"args": ["a"], "options": {"countdown": 1e300}}, "options.countdown is 1e+300"),
    ({"args": ["a"], "options": {"countdown": True}}, "options.countdown is true"),
    ({"args": ["a"], "options": {"eta": "tomorrow"}}, "options.eta is 'tomorrow'; give an RFC"),
    (
        {"args": ["a"], "options": {"eta": "2999-01-01T00:00:00Z", "countdown": 1}},
        "Both eta and countdown",
    ),
    ({"args": ["a"], "options": {"eta": 5}}, "options.eta is 5; give an RFC 3339 time"),
    (
        {"args": ["a"], "options": {"expires": 0}},
        "options.expires is 0; give a number of more than 0",
    ),
    ({"args": ["a"], "options": {"expires": []}}, "options.expires is an array of 0"),
    ({"args": ["a"], "options": {"retry_count": 1000}}, "options.retry_count is 1000"),
    ({"args": ["a"], "options": {"priority": 1.5}}, "options.priority is 1.5; give a whole"),
    ({"args": ["a"], "options": {"immutable": 1}}, "options.immutable is 1; give true or false"),
    ({"args": ["a"], "options": {"headers": {"X-Attempt": "9"}}}, "do not begin with x-"),
    ({"args": ["a"], "options": {"headers": {"a": 1}}}, "options.headers.a is 1"),
    ({"args": ["a"], "options": {"headers": {"": "b"}}}, "options.headers is ''; give names"),
    ({"args": ["a"], "options": {"headers": []}}, "options.headers is an array of 0"),
    ({"args": ["a"], "options": {"unique": "a\nb"}}, "unique is"),
    ({"args": ["a"], "options": {"on_duplicate": "perhaps"}}, "one of join, refuse, replace"),
    ({"args": ["a"], "options": {"uuid": "task_1"}}, "options has the member 'uuid'"),
]


@pytest.mark.parametrize(("body", "text"), CALLS)
def test_a_call_that_cannot_be_is_422_and_says_what_which_and_the_cure(
    api: Api, body: Any, text: str
) -> None:
    assert text in problem_of(api.post("/tasks/shout", body), 422, "invalid")
    assert api.server.pending_tasks(api.config.allowed_queues[0]) == []


WORKFLOWS: list[tuple[str, Any, str]] = [
    ("/chains", {}, "the body has no member 'steps'"),
    ("/chains", {"steps": []}, "steps is an array of 0; give an array of at least 1"),
    ("/chains", {"steps": [{"name": "ad"}]}, "steps[0].name: Task 'ad' is not registered here."),
    ("/chains", {"steps": [{"args": []}]}, "steps[0] has no member 'name'"),
    ("/chains", {"steps": [{"name": "add", "options": {"q": 1}}]}, "steps[0].options has the"),
    (
        "/chains",
        {"steps": [{"name": "add", "chain": [{"name": "add"}]}]},
        "steps[0] has members beside 'chain'",
    ),
    ("/groups", {"members": [{"group": []}]}, "members[0].group is an array of 0"),
    ("/groups", {"members": [{"name": "alone", "args": ["a"]}]}, "is unique"),
    ("/groups", {"members": [{"name": "shout"}]}, "missing a required argument"),
    ("/chords", {"members": [{"name": "add"}]}, "the body has no member 'callback'"),
    ("/chords", {"callback": {"name": "add"}}, "the body has no member 'members'"),
]


@pytest.mark.parametrize(("path", "body", "text"), WORKFLOWS)
def test_a_workflow_that_cannot_be_is_422_and_says_where(
    api: Api, path: str, body: Any, text: str
) -> None:
    assert text in problem_of(api.post(path, body), 422, "invalid")
    assert api.server.pending_tasks() == []


def test_a_workflow_whose_messages_would_swell_is_refused(config: Config) -> None:
    big = Api(Config(broker=config.broker, default_queue=config.default_queue))
    callback = {"name": "add", "options": {"headers": {str(i): "x" * 1000 for i in range(60)}}}
    members = [{"name": "add"}] * (MOST_WORKFLOW_BYTES // 60_000)

    answer = big.post("/chords", {"members": members, "callback": callback})

    assert "64 MiB" in problem_of(answer, 422, "invalid")
    assert big.server.pending_tasks() == []


BODIES: list[tuple[bytes, str]] = [
    (b"{", "not"),
    (b"{} {}", "something follows the value"),
    (b'{"args": [NaN]}', "NaN is not a JSON number"),
    (b'{"args": [], "args": []}', "appears twice"),
    (b'{"args": [1e999]}', "64 bits"),
    (b'{"args": ["\\ud800"]}', "lone surrogate"),
    (b"\xff\xfe{}", "is not UTF-8"),
    (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    (b'{"args": [' + b"[" * 70 + b"]" * 70 + b"]}", "nested too deeply"),
    (b'{"args": [' + b"1" * 5000 + b"]}", "4300 digits"),
]


@pytest.mark.parametrize(("body", "text"), BODIES, ids=range(len(BODIES)))
def test_bytes_that_are_not_json_are_400(api: Api, body: bytes, text: str) -> None:
    answer = api.ask(
        "POST", "/tasks/add", content=body, headers={"Content-Type": "application/json"}
    )

    assert text in problem_of(answer, 400, "bad-json")


def test_a_body_that_is_too_large_is_413_without_being_read(api: Api) -> None:
    most = api.config.max_message_bytes + SLACK_BYTES
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1000
            yield b" " * 1000

    answer = api.ask(
        "POST", "/tasks/add", content=chunks(), headers={"Content-Type": "application/json"}
    )

    assert f"more than {most} bytes" in problem_of(answer, 413, "too-large")
    assert read <= most + 2000


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json; charset=latin-1"])
def test_a_body_that_does_not_say_it_is_json_is_415(api: Api, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}

    problem_of(api.ask("POST", "/tasks/add", content=b"{}", headers=headers), 415, "not-json")


@pytest.mark.parametrize(
    ("path", "text"),
    [("/tasks/ad", "Did you mean 'add'?"), ("/tasks/machine.gather", "GET /tasks")],
)
def test_an_unknown_task_is_404_and_a_close_one_is_named(api: Api, path: str, text: str) -> None:
    assert text in problem_of(api.post(path), 404, "unknown-task")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not-found"),
        ("GET", "/tasks/", {}, 405, "wrong-method"),
        ("PUT", "/tasks/add", {}, 405, "wrong-method"),
        ("GET", "/results/task_x?wait=soon", {}, 400, "bad-query"),
        ("GET", "/results/task_x?wait=-1", {}, 400, "bad-query"),
        ("GET", "/results/task_x?wait=nan", {}, 400, "bad-query"),
        ("GET", "/groups/group_x?limit=5000", {}, 400, "bad-query"),
        ("GET", "/groups/group_x?offset=x", {}, 400, "bad-query"),
        ("GET", "/results/%00", {}, 404, "unknown-result"),
        ("GET", "/results/" + "x" * 500, {}, 404, "unknown-result"),
        ("GET", "/results/task_x/events", {}, 404, "unknown-result"),
        ("POST", "/tasks/add", {"Idempotency-Key": "a b"}, 400, "bad-header"),
        ("POST", "/tasks/add", {"Idempotency-Key": "x" * 300}, 400, "bad-header"),
    ],
)
def test_what_else_is_wrong_with_a_request_is_a_problem_too(
    api: Api, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    problem_of(api.ask(method, path, headers=headers), status, code)


def test_an_error_in_the_code_is_500_and_tells_clients_nothing(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    answer = api.post("/tasks/broken", {"args": ["secret"]})

    assert "secret" not in problem_of(answer, 500, "internal")
    assert "KeyError" in caplog.text


def test_a_key_is_refused_where_results_are_kept_elsewhere(config: Config) -> None:
    api = Api(replace(config, result_backend=config.broker.rpartition("/")[0] + "/1"))

    answer = api.post("/tasks/add", {"args": [1]}, **{"Idempotency-Key": "k"})

    assert "result_backend" in problem_of(answer, 400, "bad-header")
    api.server.close()


# -- what is read ------------------------------------------------------------------------------


def test_a_result_has_a_tag_and_is_304_while_it_is_the_same(api: Api) -> None:
    path = api.record(state=State.SUCCESS, results=[TaskResult("int64", 3)])

    first = api.ask("GET", path)
    tag = first.headers["ETag"]
    same = api.ask("GET", path, headers={"If-None-Match": f'"other", W/{tag}'})
    other = api.ask("GET", path, headers={"If-None-Match": '"other"'})

    assert (first.status_code, same.status_code, other.status_code) == (200, 304, 200)
    assert same.content == b""
    assert same.headers["ETag"] == tag
    assert first.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("fields", "outcome", "result"),
    [
        ({"state": State.PENDING}, None, None),
        ({"state": State.SUCCESS}, "succeeded", None),
        ({"state": State.SUCCESS, "results": [TaskResult("string", "<b>")]}, "succeeded", "<b>"),
        (
            {"state": State.SUCCESS, "results": [TaskResult("int64", 1), TaskResult("bool", True)]},
            "succeeded",
            [1, True],
        ),
        ({"state": State.FAILURE, "error": "no such planet"}, "failed", None),
        ({"state": State.FAILURE, "error": "canceled: by ann"}, "canceled", None),
        ({"state": State.FAILURE, "error": "expired: it was late"}, "expired", None),
    ],
)
def test_a_state_is_told_with_its_outcome(
    api: Api, fields: dict[str, Any], outcome: str | None, result: Any
) -> None:
    found = api.ask("GET", api.record(**fields)).json()

    assert found["outcome"] == outcome
    assert found["result"] == result
    assert found["ended"] is (outcome is not None)
    assert found["error"] == fields.get("error")


def test_a_result_that_has_no_place_in_json_is_404(api: Api, raw: redis.Redis) -> None:
    odd = b'{"TaskUUID":"t","State":"SUCCESS","Results":[{"Type":"float64","Value":1e999}]}'
    raw.set("task_odd", odd, ex=60)

    problem_of(api.ask("GET", "/results/task_odd"), 404, "unreadable")
    problem_of(api.ask("GET", "/results/task_odd/events"), 404, "unreadable")


@pytest.mark.parametrize("value", [b"nonsense", b'{"GroupUUID":"g","TaskUUIDs":[]}', b"\xff"])
def test_what_somebody_else_wrote_under_an_id_is_404_and_harms_nobody(
    api: Api, raw: redis.Redis, value: bytes
) -> None:
    raw.set("task_odd", value, ex=60)
    raw.lpush(api.config.default_queue, value)

    problem_of(api.ask("GET", "/results/task_odd"), 404, "unreadable")
    problem_of(api.ask("GET", "/results/task_odd/events"), 404, "unreadable")
    problem_of(api.ask("DELETE", "/results/task_odd"), 404, "unreadable")
    problem_of(api.ask("GET", f"/groups/{api.config.default_queue}"), 404, "unknown-group")
    problem_of(api.ask("GET", f"/results/{api.config.default_queue}"), 404, "unknown-result")
    raw.delete(api.config.default_queue)


@leaves_work
def test_a_preference_that_cannot_be_read_is_ignored(api: Api) -> None:
    answer = api.post("/tasks/add", {"args": [1]}, Prefer="wait=for-ever")

    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


@leaves_work
def test_a_wait_that_is_too_short_gives_the_state_as_it_is(api: Api) -> None:
    steps = {"steps": [{"name": "add"}, {"name": "add"}]}

    task_answer = api.post("/tasks/add", {"args": [1]}, Prefer="wait=0.01")
    chain_answer = api.post("/chains", steps, Prefer="wait=0.01")
    result = api.ask("GET", f"{chain_answer.headers['Location']}?wait=0.01")

    assert (task_answer.status_code, chain_answer.status_code) == (202, 202)
    assert task_answer.headers["Preference-Applied"] == "wait=0.01"
    assert result.json()["state"] == "PENDING"


def test_head_asks_for_the_headers_only_even_of_a_stream(api: Api) -> None:
    path = api.record(state=State.STARTED)

    stream = api.ask("HEAD", f"{path}/events")

    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert stream.content == b""
    assert api.ask("HEAD", path).status_code == 200


def test_one_state_that_is_nonsense_does_not_silence_the_other_streams(
    api: Api, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK_S", 0.01)
    backend, following = api.service.backend, api.service.following
    states = [TaskState(task_uuid=f"task_{n}", state=State.STARTED) for n in "ab"]

    async def follow() -> bytes:
        for state in states:
            backend.record(state)
        streams = [following.events(state.task_uuid, state, "") for state in states]
        for stream in streams:
            await anext(stream)
            await anext(stream)
        raw.set("task_a", b"nonsense", ex=60)
        backend.record(replace(states[1], progress=Progress(0.5)))
        told = await anext(streams[1])
        for stream in streams:
            await stream.aclose()
        await following.close()
        return told

    assert b'"fraction":0.5' in asyncio.run(follow())


def test_every_answer_has_the_headers_that_keep_browsers_safe(api: Api) -> None:
    for path in ("/tasks", "/docs", "/nothing", "/livez"):
        answer = api.ask("GET", path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers


@leaves_work
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/tasks/add", {}, 202),
        ("POST", "/tasks/add", {"Origin": "http://localhost:8000"}, 202),
        ("POST", "/tasks/add", {"Origin": "http://evil.test"}, 403),
        ("POST", "/tasks/add", {"Origin": "null"}, 403),
        ("POST", "/tasks/add", {"Origin": "http://localhost:9"}, 403),
        ("POST", "/tasks/add", {"Sec-Fetch-Site": "same-origin"}, 202),
        ("POST", "/tasks/add", {"Sec-Fetch-Site": "none"}, 202),
        ("POST", "/tasks/add", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", "/tasks/add", {"Sec-Fetch-Site": "same-site", "Origin": "http://evil.test"}, 403),
        ("DELETE", "/results/task_x", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/tasks", {"Sec-Fetch-Site": "cross-site"}, 200),
        ("GET", "/tasks", {"Host": "rebound.test"}, 403),
        ("GET", "/tasks", {"Host": "[::1]:8000"}, 200),
        ("GET", "/tasks", {"Host": "127.0.0.1"}, 200),
        ("GET", "/tasks", {"Host": "127.0.0.1.evil.test"}, 403),
        ("GET", "/tasks", {"Host": "[::1"}, 403),
        ("GET", "/livez", {"Host": "10.0.0.7:8000"}, 200),
    ],
)
def test_without_a_token_pages_of_other_sites_may_do_nothing(
    api: Api, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = api.ask(method, path, headers=headers)

    assert answer.status_code == status, answer.text
    assert status != 403 or problem_of(answer, 403, "cross-site")


def test_who_shows_a_token_or_listens_openly_may_be_called_by_any_name(config: Config) -> None:
    for changes in ({"api_token": "t"}, {"api_open": True}, {"api_host": "10.0.0.7"}):
        named = Api(replace(config, **changes))
        headers = {"Host": "tasks.example", "Authorization": "Bearer t"}
        assert named.ask("GET", "/tasks", headers=headers).status_code == 200
        named.server.close()


def test_the_page_may_run_its_own_script_only_and_explains_every_problem(api: Api) -> None:
    answer = api.ask("GET", "/docs")
    script = answer.text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert f"script-src 'sha256-{digest}'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|innerHTML|\son\w+=", answer.text)
    for code in KINDS:
        assert f'<tr id="{code}">' in answer.text


def test_the_list_of_tasks_says_what_each_takes_and_gives(api: Api) -> None:
    listed = {one["name"]: one for one in api.ask("GET", "/tasks").json()["tasks"]}

    assert list(listed) == sorted(task.name for task in TASKS)
    assert listed["shout"]["doc"] == "Return the text so many times."
    assert listed["shout"]["queue"] == api.config.allowed_queues[0]
    assert listed["add"]["queue"] == api.config.default_queue
    assert [p["name"] for p in listed["shout"]["parameters"]] == ["text", "times", "loud"]
    assert [p["required"] for p in listed["shout"]["parameters"]] == [True, False, False]
    assert listed["shout"]["location"] == "/tasks/shout"


@leaves_work
def test_a_key_whose_result_is_not_kept_any_more_does_not_run_it_again(
    config: Config, raw: redis.Redis
) -> None:
    api = Api(config)
    key = {"Idempotency-Key": "old"}
    of_others = set(raw.scan_iter("group_*"))
    sent = api.post("/tasks/add", {"args": [1]}, **key).json()
    again = api.post("/tasks/add", {"args": [1]}, **key).json()
    raw.delete(sent["id"])
    lost = api.post("/tasks/add", {"args": [1]}, **key)  # perhaps it was never queued: it is now
    [name] = set(raw.scan_iter("group_*")) - of_others
    record = raw.get(name)
    raw.set(name, re.sub(rb'"CreatedAt":"\d{4}', b'"CreatedAt":"2001', record or b""), ex=60)
    raw.delete(sent["id"])

    expired = api.post("/tasks/add", {"args": [1]}, **key)

    assert again["id"] == sent["id"] == lost.json()["id"]
    assert "kept for 3600 s" in problem_of(expired, 409, "key-expired")
    assert raw.llen(config.default_queue) == 2
    assert is_result_id(sent["id"])
    api.server.close()
