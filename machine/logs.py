"""
Log lines for people on a terminal, and for machines everywhere else.

One line an event, whatever a message contains: control characters are escaped
in text and JSON alike. Arguments of tasks are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(0x80, 0xA0))}
#: Bidirectional controls and line separators: they reorder or break what a person reads.
_ESCAPED |= {
    c: f"\\u{c:04x}" for c in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def escaped(text: str) -> str:
    """Return text without anything that moves a cursor or breaks a line."""
    return text.translate(_ESCAPED)


class TextFormatter(logging.Formatter):
    """``2026-11-20T15:15:26.418Z INFO name[pid] message``; tracebacks follow, indented."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, or more where it has a traceback."""
        who = f"{self._worker}[{record.process}]"
        line = f"{_time(record)} {record.levelname} {who} {escaped(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escaped(part)}" for part in trace)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, worker, pid, message, and a traceback's text."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "worker": self._worker,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=True)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def set_up(level: str, form: str, worker: str, stream: TextIO | None = None) -> None:
    """
    Send the program's log to standard error.

    Args:
        level: debug, info, warning or error.
        form: text, json, or auto: text on a terminal, JSON elsewhere.
        worker: Who speaks, on each line.
        stream: Another place to write to.
    """
    stream = stream or sys.stderr
    is_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter((TextFormatter if is_text else JsonFormatter)(worker))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
