"""
Prometheus metrics: their names, and the counters of workers and callers.

A worker counts the outcomes of its tasks. The HTTP caller counts what it sends, and
shows the lengths of the queues (see `queues`). The label ``task`` is a registered
name or ``unknown``, and ``queue`` one of a bounded number: otherwise messages could
make new series without end. Needs the extra ``metrics``; imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from machine.errors import BrokerUnavailable, ConfigError
from machine.telemetry import VERSION
from machine.wire.headers import measure_wait_s
from machine.wire.signature import Signature

#: Metric, without the suffix of its kind -> its help text.
HELP = {
    "machinery_tasks_sent": "Tasks sent.",
    "machinery_tasks": "Runs of tasks by what they came to.",
    "machinery_task_duration_seconds": "How long runs took.",
    "machinery_task_wait_seconds": "How long tasks waited, deliberate delays left out.",
    "machinery_tasks_in_progress": "Tasks that run now.",
    "machinery_worker_concurrency": "Tasks that can run at once.",
    "machinery_worker_info": "1 for each worker.",
    "machinery_redis_errors": "Operations that Redis did not answer.",
    "machinery_queue_tasks": "Tasks in Redis; those delayed are counted for all queues, '*'.",
    "machinery_queue_oldest_task_age_seconds": "How long the next task has been ready.",
    "machinery_workers": "Processes of workers that hold a lease, supervisors among them.",
}
#: Upper bounds, seconds. The library's own end at 10, and tasks may take minutes.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
#: Values of the label ``state`` of `machinery_tasks`.
STATES = ("success", "failure", "retry", "canceled")
UNKNOWN, OTHER = "unknown", "other"
#: Where children of one worker write; the library's name for it.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: A caller counts so many queues apart, and all others as `OTHER`.
_MOST_QUEUES = 100


def require() -> None:
    """
    Check that the library is installed.

    Raises:
        ConfigError: It is not.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigError(
            "Metrics are on, and their library is not installed: pip install "
            "'prometheus-client' (the extra [metrics]), or set worker_metrics_port to 0."
        )


class _Series:
    """The series of one task on one queue, looked up once."""

    __slots__ = ("duration", "running", "states", "wait")

    def __init__(self, made: TaskMetrics, queue: str, task: str) -> None:
        self.states = {state: made.ended.labels(queue, task, state) for state in STATES}
        self.duration = made.duration.labels(queue, task)
        self.wait = made.wait.labels(queue, task)
        self.running = made.running.labels(queue)


class TaskMetrics:
    """
    Counts the tasks of one child process, in files.

    The exporter adds up the files of all children of a worker.

    Args:
        directory: Where all children of this worker write.
        slots: Tasks that this process runs at once.
        name: The worker's, for people.

    Make it before tasks are imported: metrics that they define are then served too.
    """

    def __init__(self, directory: str, slots: int, name: str) -> None:
        os.environ[DIRECTORY_VARIABLE] = directory
        from prometheus_client import (  # noqa: PLC0415 - an extra
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            values,
        )

        # The library chooses its kind of value on import, which may have been before the fork,
        # when the variable was not set.
        chosen: Any = values.MultiProcessValue
        values.ValueClass = chosen()
        registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": registry}
        live = made | {"multiprocess_mode": "livesum"}
        both = ("queue", "task")

        def counter(metric: str, *labels: str) -> Any:
            return Counter(metric, HELP[metric], labels, **made)

        def histogram(metric: str) -> Any:
            return Histogram(metric, HELP[metric], both, buckets=DURATION_BUCKETS, **made)

        def gauge(metric: str, *labels: str) -> Any:
            return Gauge(metric, HELP[metric], labels, **live)

        self.ended = counter("machinery_tasks", *both, "state")
        self.duration = histogram("machinery_task_duration_seconds")
        self.wait = histogram("machinery_task_wait_seconds")
        self.running = gauge("machinery_tasks_in_progress", "queue")
        self._errors = counter("machinery_redis_errors", "operation")
        gauge("machinery_worker_concurrency").set(slots)
        live["multiprocess_mode"] = "livemax"
        gauge("machinery_worker_info", "version", "name").labels(VERSION, name).set(1)
        self._series: dict[tuple[str, str], _Series] = {}

    def count_start(self, queue: str, signature: Signature, now_ns: int) -> None:
        """Count a run that begins; ``now_ns`` is Unix nanoseconds."""
        series = self._of(queue, signature.name)
        series.running.inc()
        wait_s = measure_wait_s(signature, now_ns)
        if wait_s is not None:
            series.wait.observe(wait_s)

    def count_end(self, queue: str, task: str, state: str, took_s: float) -> None:
        """Count a run that ended; ``state`` is one of `STATES`."""
        series = self._of(queue, task)
        series.running.dec()
        series.duration.observe(took_s)
        series.states[state].inc()

    def count_unstarted(self, queue: str, task: str, state: str) -> None:
        """Count a task that ended without a run."""
        self._of(queue, task).states[state].inc()

    def count_redis_error(self, operation: str) -> None:
        """Count an operation that Redis did not answer."""
        self._errors.labels(operation).inc()

    def _of(self, queue: str, task: str) -> _Series:
        series = self._series.get((queue, task))
        if series is None:
            series = self._series[queue, task] = _Series(self, queue, task)
        return series


class SentMetrics:
    """
    Counts what a caller sends. Turns the library's ``_created`` series off.

    Args:
        knows: Says whether a task is registered; others are counted as ``unknown``.
    """

    def __init__(self, knows: Callable[[str], bool]) -> None:
        require()
        from prometheus_client import (  # noqa: PLC0415 - an extra
            CollectorRegistry,
            Counter,
            metrics,
        )

        off: Any = metrics.disable_created_metrics
        off()  # the library would add a second series to each, its start time
        self.registry = CollectorRegistry()
        both = ("queue", "task")
        sent, errors = "machinery_tasks_sent", "machinery_redis_errors"
        self._sent = Counter(sent, HELP[sent], both, registry=self.registry)
        self._errors = Counter(errors, HELP[errors], ("operation",), registry=self.registry)
        self._knows = knows
        self._queues: set[str] = set()

    @contextmanager
    def sending(self, signatures: Sequence[Signature]) -> Iterator[None]:
        """Count what is sent, and what Redis did not answer."""
        try:
            yield
        except BrokerUnavailable:
            self.count_redis_error("send")
            raise
        for signature in signatures:
            task = signature.name if self._knows(signature.name) else UNKNOWN
            self._sent.labels(self._queue(signature.routing_key), task).inc()

    def count_redis_error(self, operation: str) -> None:
        """Count an operation that Redis did not answer."""
        self._errors.labels(operation).inc()

    def _queue(self, name: str) -> str:
        if name not in self._queues:
            if len(self._queues) >= _MOST_QUEUES:
                return OTHER
            self._queues.add(name)
        return name
