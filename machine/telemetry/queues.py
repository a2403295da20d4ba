"""
The lengths and ages of queues as Prometheus metrics, read from Redis at each scrape.

Every process would show the same values, so one is enough: the HTTP caller.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from machine.config import Config
from machine.config.queues import read_queue_names
from machine.errors import MachineError, WireError
from machine.ports.backend import Backend
from machine.ports.broker import Inspector, QueueCount, Survey
from machine.telemetry.metrics import HELP, SentMetrics
from machine.wire.headers import SENT_HEADER
from machine.wire.messages import decode_signature
from machine.wire.signature import Signature
from machine.wire.text import parse_time

#: The label of delayed tasks, which wait in one set for all queues.
_ALL = "*"
_TASKS, _AGE, _WORKERS = (
    "machinery_queue_tasks",
    "machinery_queue_oldest_task_age_seconds",
    "machinery_workers",
)


def queues_of(config: Config) -> list[str]:
    """Return the queues that the settings name, each once."""
    return list(
        dict.fromkeys(
            [config.default_queue, *read_queue_names(config.worker_queues), *config.allowed_queues]
        )
    )


def exposition(
    sent: SentMetrics, broker: Inspector, backend: Backend | None, queues: Sequence[str]
) -> tuple[bytes, str]:
    """
    Return a caller's counters and the state of the queues: Prometheus' text and its type.

    If Redis does not answer, the second part is missing and the failure is counted.
    Blocks for as long as Redis takes, a few seconds at most.

    Args:
        sent: The counters of this process.
        broker: Reads the queues.
        backend: Reads when the oldest task was sent, where its message does not say
            so; ``None`` = unknown then.
        queues: Their names.
    """
    from prometheus_client import exposition as text  # noqa: PLC0415 - an extra

    try:
        found: Survey | None = broker.survey(queues)
        ages = _ages(found, backend) if found is not None else {}
    except MachineError:
        sent.count_redis_error("survey")
        found, ages = None, {}
    body = text.generate_latest(sent.registry)
    if found is not None:
        body += text.generate_latest(_Gauges(found, ages))
    return body, text.CONTENT_TYPE_LATEST


def _ages(survey: Survey, backend: Backend | None) -> dict[str, float]:
    """Return for how many seconds each queue's next task is ready; left out where unknown."""
    now_ns = time.time_ns()
    heads = {count.queue: _read(count) for count in survey.queues}
    ready = {queue: head for queue, head in heads.items() if head is not None}
    uuids = [head.uuid for head in ready.values()]
    states = backend.read(uuids) if backend is not None and uuids else [None] * len(uuids)
    ages = {count.queue: 0.0 for count in survey.queues if not count.pending}
    for (queue, head), state in zip(ready.items(), states, strict=True):
        since_ns = _sent_ns(head, state.created_at if state is not None else "")
        if since_ns:
            ages[queue] = max(0, now_ns - max(since_ns, head.eta_ns or 0)) / 1e9
    return ages


def _read(count: QueueCount) -> Signature | None:
    try:
        return decode_signature(count.oldest) if count.oldest else None
    except WireError:
        return None  # the worker that claims it will bury it


def _sent_ns(head: Signature, created_at: str) -> int:
    """Return when a message was sent, in Unix nanoseconds; 0 = unknown."""
    sent = head.header(SENT_HEADER)
    if sent.isascii() and sent.isdigit() and len(sent) < 16:
        return int(sent) * 1_000_000
    try:
        return parse_time(created_at) if created_at else 0
    except WireError:
        return 0


class _Gauges:
    """A survey of the queues in the form of a registry of the library."""

    def __init__(self, survey: Survey, ages: dict[str, float]) -> None:
        self._survey, self._ages = survey, ages

    def collect(self) -> Iterator[Any]:
        """Yield the metrics."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - an extra

        tasks = GaugeMetricFamily(_TASKS, HELP[_TASKS], labels=("queue", "state"))
        tasks.add_metric((_ALL, "delayed"), self._survey.delayed)
        for count in self._survey.queues:
            for state in ("pending", "running", "dead"):
                tasks.add_metric((count.queue, state), getattr(count, state))
        yield tasks
        age = GaugeMetricFamily(_AGE, HELP[_AGE], labels=("queue",))
        for queue, seconds in self._ages.items():
            age.add_metric((queue,), seconds)
        yield age
        workers = {worker for count in self._survey.queues for worker in count.workers}
        yield GaugeMetricFamily(_WORKERS, HELP[_WORKERS], value=len(workers))
