"""
One trace from a caller's process through the queue into a worker's: spans as both export them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WaitUntil = Callable[..., Any]
OK, BAD = "UNSET", "ERROR"

#: A caller with a span of its own around what it does, given as code.
CALLER = """
import os, sys
import observed_tasks as tasks
from machine import build, chord, group
from machine.config import Config
from opentelemetry import trace

server = build.connect(Config.load(dotenv=None))
with trace.get_tracer("test").start_as_current_span("caller"):
{code}
server.close()
trace.get_tracer_provider().force_flush()
"""


class Spans:
    """What all processes have exported."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def all(self) -> list[dict[str, Any]]:
        lines = [line for f in self.files if f.exists() for line in f.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.all() if span["name"] == name]

    def one(self, name: str, **attributes: str) -> dict[str, Any]:
        found = [
            span
            for span in self.named(name)
            if all(
                span["attributes"].get(key.replace("__", ".")) == value
                for key, value in attributes.items()
            )
        ]
        assert len(found) == 1, (name, attributes, self.all())
        return found[0]


def ids(span: dict[str, Any]) -> tuple[str, str]:
    return span["context"]["trace_id"], span["context"]["span_id"]


class Traced:
    """A worker that traces, and callers that do."""

    def __init__(self, site: Any, tmp_path: Path) -> None:
        self.site = site
        self.caller_file, self.worker_file = tmp_path / "caller.spans", tmp_path / "worker.spans"
        self.spans = Spans(self.caller_file, self.worker_file)
        site.start(
            "-n",
            "w-one",
            TASKS_MODULES="observed_tasks",
            TRACING="true",
            TRACE_FILE=str(self.worker_file),
            LOG_FORMAT="json",
        )

    def call(self, code: str, **variables: str) -> str:
        """Run a caller's code to its end in a process of its own; return what it printed."""
        environ = os.environ | {
            "CONFIG_FILE": os.devnull,
            "BROKER": self.site.url,
            "DEFAULT_QUEUE": self.site.queue,
            "REDIS_DELAYED_TASKS_KEY": f"{self.site.queue}.delayed",
            "TASKS_MODULES": "observed_tasks",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "TRACING": "true",
            "TRACE_FILE": str(self.caller_file),
        }
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        done = subprocess.run(
            [sys.executable, "-c", CALLER.format(code=lines)],
            cwd=ROOT,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def traced(site: Any, tmp_path: Path) -> Traced:
    (tmp_path / "spans").mkdir()
    return Traced(site, tmp_path / "spans")


@pytest.mark.parametrize("send", ["send", "asend"])
def test_a_task_runs_in_the_trace_of_its_caller(
    traced: Traced, wait_until: WaitUntil, send: str
) -> None:
    sending = "tasks.speak.send('hi')" if send == "send" else "__import__('asyncio').run(go())"
    code = (
        "async def go():\n    result = await tasks.speak.asend('hi')\n"
        "    await server.broker.aclose()\n    return result\n"
        f"result = {sending}\nprint(result.uuid, result.get(timeout=30))"
    )
    uuid = traced.call(code).split()[0]
    queue = traced.site.queue
    wait_until(lambda: traced.spans.named(f"process {queue}"), 30, "the span to be exported")

    root, sent = traced.spans.one("caller"), traced.spans.one(f"send {queue}")
    ran = traced.spans.one(f"process {queue}")
    assert (sent["kind"], ran["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CONSUMER")
    assert {span["context"]["trace_id"] for span in (root, sent, ran)} == {ids(root)[0]}
    assert (sent["parent_id"], ran["parent_id"]) == (ids(root)[1], ids(sent)[1])
    assert [link["context"]["span_id"] for link in ran["links"]] == [ids(sent)[1]]
    host, port = traced.site.url.split("/")[2].rpartition("@")[2].split(":")
    both = {
        "messaging.system": "machinery",
        "messaging.destination.name": queue,
        "messaging.message.id": uuid,
        "machinery.task.name": "speak",
        "server.address": host,
        "server.port": int(port),
    }
    names = "messaging.operation.name", "messaging.operation.type"
    assert sent["attributes"] == both | dict.fromkeys(names, "send")
    assert ran["attributes"] == both | dict.fromkeys(names, "process") | {
        "machinery.task.attempt": 1
    }
    assert (sent["status"]["status_code"], ran["status"]["status_code"]) == (OK, OK)


def test_lines_of_the_log_name_the_span_of_their_task(
    traced: Traced, wait_until: WaitUntil
) -> None:
    traced.call("tasks.speak.send('hi').get(timeout=30)")
    queue = traced.site.queue
    wait_until(lambda: traced.spans.named(f"process {queue}"), 30, "the span to be exported")

    lines = [file.read_text().splitlines() for file in traced.site.logs.glob("*.log")]
    [said] = [
        line for text in lines for line in map(json.loads, text) if "heard" in line["message"]
    ]
    assert (said["trace_id"], said["span_id"]) == tuple(
        number.removeprefix("0x") for number in ids(traced.spans.one(f"process {queue}"))
    )


def test_a_failure_marks_its_span_with_the_type_of_the_error(
    traced: Traced, wait_until: WaitUntil
) -> None:
    traced.call("tasks.fail.send('no luck')")
    queue = traced.site.queue
    wait_until(lambda: traced.spans.named(f"process {queue}"), 30, "the span to be exported")

    ran = traced.spans.one(f"process {queue}")
    assert ran["status"] == {"status_code": BAD, "description": "no luck"}
    assert ran["attributes"]["error.type"] == "LookupError"


def test_each_attempt_is_a_child_of_the_one_sending(traced: Traced, wait_until: WaitUntil) -> None:
    traced.call("tasks.second_time.s('x').options(retry_count=1).send().get(timeout=30)")
    queue = traced.site.queue
    wait_until(lambda: len(traced.spans.named(f"process {queue}")) == 2, 30, "both spans")

    first, second = traced.spans.named(f"process {queue}")
    sent = traced.spans.one(f"send {queue}")
    assert [s["attributes"]["machinery.task.attempt"] for s in (first, second)] == [1, 2]
    assert {s["parent_id"] for s in (first, second)} == {ids(sent)[1]}
    assert first["status"]["status_code"] == BAD
    assert second["status"]["status_code"] == OK


def test_each_link_of_a_chain_is_a_child_of_the_one_before(
    traced: Traced, wait_until: WaitUntil
) -> None:
    traced.call("(tasks.speak.s('a') | tasks.aspeak.partial()).send().get(timeout=30)")
    queue = traced.site.queue
    wait_until(lambda: len(traced.spans.named(f"process {queue}")) == 2, 30, "both spans")

    first = traced.spans.one(f"process {queue}", machinery__task__name="speak")
    second = traced.spans.one(f"process {queue}", machinery__task__name="aspeak")
    assert second["parent_id"] == ids(first)[1]
    assert ids(second)[0] == ids(traced.spans.one("caller"))[0]


def test_a_chord_stays_in_one_trace(traced: Traced, wait_until: WaitUntil) -> None:
    traced.call(
        "chord(group(tasks.speak.s('a'), tasks.speak.s('b')), tasks.add.partial())"
        ".send().get(timeout=30)"
    )
    queue = traced.site.queue
    wait_until(lambda: len(traced.spans.named(f"process {queue}")) == 3, 30, "three spans")

    batch = traced.spans.one(f"send {queue}")
    created = traced.spans.named(f"create {queue}")
    last = traced.spans.one(f"process {queue}", machinery__task__name="add")
    members = [s for s in traced.spans.named(f"process {queue}") if ids(s) != ids(last)]
    assert batch["kind"] == "SpanKind.CLIENT"
    assert batch["attributes"]["messaging.batch.message_count"] == 2
    assert {span["parent_id"] for span in created} == {ids(batch)[1]}
    assert {span["parent_id"] for span in members} == {ids(span)[1] for span in created}
    assert last["parent_id"] in {ids(span)[1] for span in members}
    assert {ids(span)[0] for span in traced.spans.all()} == {ids(batch)[0]}


def test_a_task_sent_by_a_task_is_its_grandchild(traced: Traced, wait_until: WaitUntil) -> None:
    traced.call("tasks.relay.send('inner').get(timeout=30)")
    queue = traced.site.queue
    wait_until(lambda: len(traced.spans.named(f"process {queue}")) == 2, 30, "both spans")

    outer = traced.spans.one(f"process {queue}", machinery__task__name="relay")
    between = traced.spans.one(f"send {queue}", machinery__task__name="speak")
    inner = traced.spans.one(f"process {queue}", machinery__task__name="speak")
    assert (between["parent_id"], inner["parent_id"]) == (ids(outer)[1], ids(between)[1])


def test_headers_that_are_no_trace_begin_a_new_one(traced: Traced, wait_until: WaitUntil) -> None:
    headers = {"traceparent": "zz-nonsense", "tracestate": "=,=", "baggage": "%zz"}
    traced.call(
        f"result = tasks.speak.s('x').replace(headers={headers!r}).send()\nresult.get(timeout=30)",
        TRACING="false",
    )
    queue = traced.site.queue
    wait_until(lambda: traced.spans.named(f"process {queue}"), 30, "the span to be exported")

    ran = traced.spans.one(f"process {queue}")
    assert ran["parent_id"] is None
    assert ran["links"] == []


def test_a_given_traceparent_is_the_parent_of_the_sending(
    traced: Traced, wait_until: WaitUntil
) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    header = f"00-{trace_id}-{span_id}-01"
    traced.call(
        "from opentelemetry import context\n"
        "token = context.attach(context.Context())\n"
        f"signature = tasks.speak.s('x').replace(headers={{'traceparent': {header!r}}})\n"
        "signature.send().get(timeout=30)\n"
        "context.detach(token)"
    )
    queue = traced.site.queue
    wait_until(lambda: traced.spans.named(f"process {queue}"), 30, "the span to be exported")

    sent, ran = traced.spans.one(f"send {queue}"), traced.spans.one(f"process {queue}")
    assert (ids(sent)[0], sent["parent_id"]) == (f"0x{trace_id}", f"0x{span_id}")
    assert (ids(ran)[0], ran["parent_id"]) == (f"0x{trace_id}", ids(sent)[1])


def test_a_sending_that_fails_marks_its_span(traced: Traced) -> None:
    traced.call(
        "from machine.errors import QueueFull\n"
        "try:\n    for _ in range(3):\n"
        "        tasks.speak.s('x').options(queue='nobody.here').send()\n"
        "except QueueFull:\n    print('full')\n"
        "server.broker._connections.execute([('DEL', 'nobody.here')])",
        MAX_QUEUE_LENGTH="1",
    )

    failed = [
        s for s in traced.spans.named("send nobody.here") if s["status"]["status_code"] == BAD
    ]
    assert [span["attributes"]["error.type"] for span in failed] == ["QueueFull"]


def test_without_the_package_a_worker_says_what_to_install(site: Any) -> None:
    done = site.run_without("opentelemetry", TRACING="true")

    assert done.returncode == 78
    assert "opentelemetry-api" in done.stderr
