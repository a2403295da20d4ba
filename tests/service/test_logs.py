"""
What a worker writes into its log while tasks run, read from the error output of real workers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

import pytest

from machine.results.task import AsyncResult
from machine.wire.signature import Arg, Signature

WaitUntil = Callable[..., Any]


class SiteLike(Protocol):
    queue: str
    server: Any
    logs: Any

    def start(self, *flags: str, **variables: str) -> Any: ...
    def log(self) -> str: ...


def text_of(name: str, text: str, **more: Any) -> Signature:
    return Signature(name=name, args=[Arg("string", text)], **more)


def events(site: SiteLike) -> list[dict[str, Any]]:
    """Return all lines of all workers; each must be one JSON object."""
    lines = [line for file in sorted(site.logs.iterdir()) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def said(site: SiteLike, message: str) -> dict[str, Any]:
    [event] = [event for event in events(site) if event["message"] == message]
    return event


@pytest.fixture
def json_site(site: SiteLike) -> SiteLike:
    site.start("-n", "w-one", TASKS_MODULES="observed_tasks", LOG_FORMAT="json")
    return site


def send(site: SiteLike, signature: Signature) -> AsyncResult[Any]:
    return site.server.send_task(signature)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["speak", "aspeak"])
def test_a_line_of_your_own_code_says_in_which_task_it_was_written(
    json_site: SiteLike, name: str
) -> None:
    uuid = send(json_site, text_of(name, "hello")).uuid
    json_site.server.result(uuid).get(timeout=30)

    event = said(json_site, "heard: hello")

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    assert datetime.fromisoformat(event["time"]).utcoffset() is not None
    del event["time"], event["pid"]
    assert event == {
        "level": "info",
        "logger": "yours.tasks",
        "worker": "w-one",
        "message": "heard: hello",
        "task_id": uuid,
        "task": name,
        "queue": json_site.queue,
        "attempt": 1,
        "correlation_id": uuid,
    }


def test_threads_of_an_asyncio_task_say_so_too(json_site: SiteLike) -> None:
    result = send(json_site, text_of("aspeak", "hello"))
    result.get(timeout=30)

    assert said(json_site, "in a thread: hello")["task_id"] == result.uuid


def test_one_line_tells_the_end_of_each_task_and_which_it_was(
    json_site: SiteLike, wait_until: WaitUntil
) -> None:
    result = send(json_site, text_of("speak", "x"))
    result.get(timeout=30)

    def ends() -> list[dict[str, Any]]:
        return [
            e for e in events(json_site) if e["message"].startswith(f"task speak {result.uuid}")
        ]

    wait_until(ends, 30, "the end to be logged")
    [end] = ends()
    assert re.search(r" ended: SUCCESS in \d+\.\d{3} s$", end["message"])
    assert (end["level"], end["task_id"]) == ("info", result.uuid)


def test_a_failure_is_one_event_with_its_traceback_and_its_task(json_site: SiteLike) -> None:
    result = send(json_site, text_of("fail", "no such planet"))
    with pytest.raises(Exception, match="no such planet"):
        result.get(timeout=30)

    [event] = [e for e in events(json_site) if "traceback" in e]

    assert event["level"] == "error"
    assert "LookupError: no such planet" in event["traceback"]
    assert event["task_id"] == result.uuid


def test_a_retry_tells_its_attempt_and_the_same_id(json_site: SiteLike) -> None:
    signature = text_of("second_time", "x", retry_count=1)
    result = send(json_site, signature)
    result.get(timeout=30)

    ends = [
        e for e in events(json_site) if e.get("task_id") == result.uuid and "ended" in e["message"]
    ]

    assert [e["attempt"] for e in ends[:1]] == [1]
    assert {e["correlation_id"] for e in ends} == {result.uuid}


def test_what_follows_a_task_has_its_correlation_id(
    json_site: SiteLike,
) -> None:
    last = text_of("speak", "the end", uuid=f"task_{json_site.queue}_last")
    started = send(json_site, text_of("speak", "the start", on_success=[last], immutable=True))
    started.get(timeout=30)
    json_site.server.result(last.uuid).get(timeout=30)

    event = said(json_site, "heard: the end")

    assert (event["task_id"], event["correlation_id"]) == (last.uuid, started.uuid)


def test_a_given_correlation_id_goes_through_to_tasks_that_tasks_send(
    json_site: SiteLike,
) -> None:
    result = send(json_site, text_of("relay", "inner", headers={"x-correlation-id": "order-7"}))
    inner = json_site.server.result(result.get(timeout=30))
    inner.get(timeout=30)

    event = said(json_site, "heard: inner")

    assert (event["task_id"], event["correlation_id"]) == (inner.uuid, "order-7")


def test_a_hostile_correlation_id_is_one_line_and_short(
    site: SiteLike, wait_until: WaitUntil
) -> None:
    site.start(TASKS_MODULES="observed_tasks", LOG_FORMAT="text")
    bad = "\x1b[31m\nFAKE ERROR " + "x" * 500
    send(site, text_of("speak", "hi", headers={"x-correlation-id": bad})).get(timeout=30)

    wait_until(lambda: "heard: hi" in site.log(), 30, "the line")
    [line] = [line for line in site.log().splitlines() if "heard: hi" in line]
    assert "correlation_id=\\x1b[31m\\x0aFAKE ERROR x" in line
    assert "x" * 200 not in line


def test_the_level_keeps_lines_away(json_site: SiteLike) -> None:
    send(json_site, text_of("speak", "hello")).get(timeout=30)

    assert not [e for e in events(json_site) if e["message"] == "not shown"]
