"""
Log lines as text and as JSON, and what they say of the task in which they are written.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from machine.execution import TaskContext, running_task
from machine.telemetry import logs
from machine.wire.signature import Signature

_log = logging.getLogger("yours")


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)


@pytest.fixture
def running() -> Iterator[TaskContext]:
    signature = Signature(
        name="add", uuid="task_1", routing_key="q", group_uuid="group_1", headers={"x-attempt": "3"}
    )
    context = TaskContext(signature)
    token = running_task.set(context)
    yield context
    running_task.reset(token)


def written(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level, form, "w", stream)
    return stream


def event(stream: io.StringIO) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stream.getvalue())
    return found


def test_json_says_all_that_is_known_of_the_task(running: TaskContext) -> None:
    stream = written("json")
    running.trace = ("a" * 32, "b" * 16)

    _log.info("hello")

    found = event(stream)
    assert {name: found[name] for name in logs.FIELDS} == {
        "task_id": "task_1",
        "task": "add",
        "queue": "q",
        "attempt": 3,
        "group_id": "group_1",
        "correlation_id": "group_1",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }


def test_what_is_not_known_is_left_out(running: TaskContext) -> None:
    stream = written("json")
    running.signature.group_uuid = ""

    _log.info("hello")

    assert event(stream).keys() & set(logs.FIELDS) == {
        *("task_id", "task", "queue", "attempt", "correlation_id")
    }


def test_outside_a_task_nothing_is_said_of_one() -> None:
    stream = written("json")

    _log.info("hello")

    assert not event(stream).keys() & set(logs.FIELDS)


@pytest.mark.usefixtures("running")
def test_text_says_it_behind_the_message() -> None:
    stream = written("text")

    _log.info("hello")

    assert stream.getvalue().endswith(
        " hello [task_id=task_1 task=add queue=q attempt=3 group_id=group_1 "
        "correlation_id=group_1]\n"
    )


def test_a_line_about_a_task_that_ended_names_it() -> None:
    stream = written("json")

    _log.info("over", extra=logs.log_extra(TaskContext(Signature(name="add", uuid="task_2"))))

    assert event(stream)["task_id"] == "task_2"


@pytest.mark.usefixtures("running")
def test_extras_of_yours_win_whatever_they_are() -> None:
    stream = written("json")

    _log.info("hello", extra={"task": "mine", "attempt": object, "queue": ["a"]})

    found = event(stream)
    assert (found["task"], found["queue"]) == ("mine", ["a"])
    assert "class 'object'" in found["attempt"]


def test_a_handler_of_yours_can_have_the_fields_too(running: TaskContext) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(logs.TaskFilter())
    handler.setFormatter(logging.Formatter("%(task_id)s/%(trace_id)s/%(message)s"))
    record = logging.LogRecord("own", logging.INFO, __file__, 1, "one", None, None)
    handler.handle(record)
    running_task.set(None)
    handler.handle(logging.LogRecord("own", logging.INFO, __file__, 1, "two", None, None))
    running_task.set(running)

    assert stream.getvalue() == "task_1//one\n//two\n"


@pytest.mark.usefixtures("running")
def test_a_level_that_is_off_costs_no_look_at_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = written("json", "warning")

    def never(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(logs.TaskFilter, "filter", never)

    _log.info("hello")

    assert stream.getvalue() == ""


def test_nothing_in_a_header_can_break_a_line(running: TaskContext) -> None:
    stream = written("text")
    running.signature.headers = {"x-correlation-id": "a\nb\x1b[0m\u2028c"}

    _log.info("hello")

    assert len(stream.getvalue().splitlines()) == 1
    assert "a\\x0ab\\x1b[0m\\u2028c" in stream.getvalue()
