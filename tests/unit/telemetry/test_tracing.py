"""
Spans in one process, without a server: what is sent in eager mode is traced as elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from machine import build
from machine.config import Config
from machine.execution import Failed, Succeeded, TaskContext
from machine.ports.moves import Claim
from machine.registry import Registry
from machine.runtime.child.instruments import Instruments
from machine.runtime.child.pool import Job
from machine.server import Server
from machine.telemetry.tracing import Tracing
from machine.wire.signature import Arg, Signature, TaskResult


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def eager() -> Iterator[Server]:
    registry = Registry()
    registry.register_tasks({"add": lambda a, b: a + b, "halve": lambda a: a // 0})
    with build.server(Config(broker="eager", tracing=True), registry) as made:
        yield made


def ints(*values: int) -> list[Arg]:
    return [Arg("int64", value) for value in values]


@pytest.mark.usefixtures("exported")
def test_an_eager_task_runs_in_the_trace_of_its_sending(
    exported: InMemorySpanExporter, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("eager")
    last = Signature(name="add", args=ints(10))

    server.send_task(Signature(name="add", args=ints(1, 2), on_success=[last]))

    spans = {span.context.span_id: span for span in exported.get_finished_spans() if span.context}
    names = sorted(span.name for span in spans.values())
    assert names == ["process machinery_tasks", "process machinery_tasks", "send machinery_tasks"]
    depths = sorted(_depth(span, spans) for span in spans.values())
    assert depths == [0, 1, 2]


def _depth(span: Any, spans: dict[int, Any]) -> int:
    depth = 0
    while span.parent is not None:
        span, depth = spans[span.parent.span_id], depth + 1
    return depth


def test_a_run_leaves_the_context_as_it_was(exported: InMemorySpanExporter) -> None:
    tracing = Tracing()
    context = TaskContext(Signature(name="add", uuid="task_1"))
    before = trace.get_current_span()

    traced = tracing.begin(context, "q")
    during = trace.get_current_span()
    tracing.end(traced, context, Succeeded([]))

    assert during is traced.span
    assert trace.get_current_span() is before
    [span] = exported.get_finished_spans()
    assert span.context is not None
    assert context.trace == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


@pytest.mark.usefixtures("exported")
def test_only_a_task_that_is_followed_is_given_other_headers() -> None:
    tracing = Tracing()
    alone = TaskContext(Signature(name="add", headers={"k": "v"}))
    followed = TaskContext(Signature(name="add", on_error=[Signature(name="add")]))

    same = tracing.end(tracing.begin(alone, "q"), alone, Failed("no"))
    other = tracing.end(tracing.begin(followed, "q"), followed, Failed("no"))

    assert same is alone.signature
    assert followed.signature.headers is None
    assert other.headers is not None
    assert followed.trace is not None
    assert other.headers["traceparent"].startswith("00-{}-{}-".format(*followed.trace))


def test_baggage_travels_where_it_fits_into_a_header(exported: InMemorySpanExporter) -> None:
    from opentelemetry import baggage, context

    tracing = Tracing()
    short, long = Signature(name="add"), Signature(name="add")
    for signature, text in ((short, "v"), (long, "v" * 2000)):
        token = context.attach(baggage.set_baggage("k", text))
        with tracing.sending([signature]):
            pass
        context.detach(token)

    assert short.headers is not None
    assert long.headers is not None
    assert short.headers["baggage"] == "k=v"
    assert "baggage" not in long.headers
    assert len(exported.get_finished_spans()) == 2


def test_without_a_set_up_sdk_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer", trace.NoOpTracerProvider().get_tracer)
    tracing = Tracing()
    signature = Signature(name="add", headers={})
    context = TaskContext(signature)

    with tracing.sending([signature]):
        pass
    tracing.end(tracing.begin(context, "q"), context, Succeeded([]))
    tracing.flush()

    assert signature.headers == {}
    assert context.trace is None


class Broken(SpanProcessor):
    """An SDK set up wrongly."""

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 - the SDK gives it
        raise RuntimeError("the disk is full")


def test_what_breaks_in_your_sdk_does_not_harm_a_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    registry = Registry()
    registry.register_tasks({"add": lambda a, b: a + b})
    signature = Signature(name="add", uuid="task_1", args=ints(1, 2))
    job = Job(Claim("1.a", "w", "q", b"", 0), signature, registry.get("add"))

    outcome = Instruments(None, Tracing()).run(job, None)

    assert outcome == Succeeded([TaskResult("int64", 3)])
    assert "the trace of task task_1 is not complete" in caplog.text
