"""
Formats log lines: as text for people on a terminal, as JSON for machines.

An event is one line whatever its message contains: control characters are
escaped in both forms. Lines written while a task runs, yours included, name the
task. Arguments of tasks are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from machine.execution import TaskContext, running_task
from machine.wire.headers import correlation_id_of

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(0x80, 0xA0))}
#: Bidirectional controls and line separators: they reorder or break what a person reads.
_ESCAPED |= {
    c: f"\\u{c:04x}" for c in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
#: The fields that name the task in which a line was written, in this order; "" = unknown.
FIELDS = (
    "task_id",
    "task",
    "queue",
    "attempt",
    "group_id",
    "correlation_id",
    "trace_id",
    "span_id",
)
_NOTHING = dict.fromkeys(FIELDS, "")


def escape(text: str) -> str:
    """Return text without anything that moves a cursor or breaks a line."""
    return text.translate(_ESCAPED)


def log_extra(context: TaskContext) -> dict[str, TaskContext]:
    """Return the ``extra`` of a log call about a task that has ended."""
    return {"task_context": context}


class TaskFilter(logging.Filter):
    """
    Writes into each record which task it belongs to, as attributes named in `FIELDS`.

    For a handler of your own: call ``handler.addFilter(TaskFilter())``, then a
    format may contain ``%(task_id)s``. Every record passes. The handler must run on
    the thread of the task, as a ``QueueHandler`` does.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; always true."""
        context = getattr(record, "task_context", None) or running_task.get()
        fields = _NOTHING if context is None else _fields(context)
        for name, text in fields.items():  # an extra of the same name in your call counts
            record.__dict__.setdefault(name, text)
        return True


def _fields(context: TaskContext) -> dict[str, str]:
    signature = context.signature
    trace_id, span_id = context.trace or ("", "")
    return {
        "task_id": signature.uuid,
        "task": signature.name,
        "queue": signature.routing_key,
        "attempt": str(context.attempt),
        "group_id": signature.group_uuid,
        "correlation_id": correlation_id_of(signature),
        "trace_id": trace_id,
        "span_id": span_id,
    }


def _known(record: logging.LogRecord) -> Mapping[str, object]:
    """Return the fields that the filter set and that are not empty."""
    said = record.__dict__
    return {name: said[name] for name in FIELDS if said.get(name)}


class TextFormatter(logging.Formatter):
    """
    ``2026-11-20T15:15:26.418Z INFO name[pid] message``; tracebacks follow, indented.

    In a task its fields stand behind the message: ``[task_id=… task=…]``.
    """

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, or more where it has a traceback."""
        who = f"{self._worker}[{record.process}]"
        line = f"{_time(record)} {record.levelname} {who} {escape(record.getMessage())}"
        if known := _known(record):
            line += escape(f" [{' '.join(f'{name}={text}' for name, text in known.items())}]")
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escape(part)}" for part in trace)
        return line


class JsonFormatter(logging.Formatter):
    """
    One JSON object a line: time, level, logger, worker, pid, message.

    Behind them the fields of the task (`FIELDS`; ``attempt`` is a number), and the
    text of a traceback.
    """

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        event: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "worker": self._worker,
            "pid": record.process,
            "message": record.getMessage(),
        }
        event |= _known(record)
        attempt = event.get("attempt")
        if isinstance(attempt, str) and attempt.isdecimal() and len(attempt) < 10:
            event["attempt"] = int(attempt)
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=True, default=str)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def set_up(level: str, form: str, worker: str, stream: TextIO | None = None) -> None:
    """
    Send the program's log to standard error.

    Args:
        level: debug, info, warning or error.
        form: text, json, or auto: text on a terminal, JSON elsewhere.
        worker: The name of the writer, on each line.
        stream: Another place to write to.
    """
    stream = stream or sys.stderr
    is_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.addFilter(TaskFilter())
    handler.setFormatter((TextFormatter if is_text else JsonFormatter)(worker))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
