"""
Tasks for the tests of logs, metrics and traces; with TRACE_FILE, spans go there, a line each.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from machine import current_task, task

_log = logging.getLogger("yours.tasks")


def _trace_to(path: str) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    def line(span: ReadableSpan) -> str:
        return span.to_json(indent=None) + "\n"

    file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - until the process ends
    exporter = ConsoleSpanExporter(out=file, formatter=line)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


if "TRACE_FILE" in os.environ:
    _trace_to(os.environ["TRACE_FILE"])


@task
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@task
def speak(text: str) -> str:
    """Log a line, as your own code would."""
    _log.info("heard: %s", text)
    _log.debug("not shown")
    return text


@task
async def aspeak(text: str) -> str:
    """Log a line on the event loop, and one in a thread."""
    _log.info("heard: %s", text)
    await asyncio.to_thread(_log.info, "in a thread: %s", text)
    return text


@task
def fail(text: str) -> None:
    """Fail for good."""
    raise LookupError(text)


@task
def second_time(text: str) -> str:
    """Fail on the first attempt."""
    if current_task().attempt == 1:
        raise ValueError("not yet")
    return text


@task
def relay(text: str) -> str:
    """Send another task from inside this one."""
    return speak.send(text).uuid


@task
def die(text: str) -> None:
    """Take the process down."""
    os._exit(len(text))
