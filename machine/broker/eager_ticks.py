"""
The timetable's marks in one process's memory, beside the queues of `broker.eager`.

It does what ``tick.lua`` does, under the queues' own lock and by their clock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from machine.broker.base import Enqueued
from machine.broker.eager_store import EagerStore
from machine.broker.ticks import Marks, Tick


class EagerTicker:
    """
    Marks in memory; safe from any number of threads. See `Ticker`.

    Args:
        store: The queues.
        lock: What guards them (`EagerBackend.changed`).
    """

    def __init__(self, store: EagerStore, lock: threading.Condition) -> None:
        self._store, self._lock = store, lock
        self._texts: dict[str, dict[str, str]] = {}

    def marks(self, home: str) -> Marks:
        """Return the clock's time, and all marks of a timetable."""
        with self._lock:
            return Marks(self._store.now_ms(), dict(self._texts.get(home, {})))

    def tick(self, ticks: Sequence[Tick]) -> list[Enqueued]:
        """Move entries on, in order, each by itself in one step."""
        with self._lock:
            return [self._tick(tick) for tick in ticks]

    def _tick(self, tick: Tick) -> Enqueued:
        texts = self._texts.setdefault(tick.home, {})
        before = texts.get(tick.name, "")
        if before != tick.before or _last(tick.after) <= _last(before):
            return Enqueued.DUPLICATE
        for message in tick.messages:
            refused = self._store.refusal(message)
            if refused in (Enqueued.FULL, Enqueued.BAD_KEY):
                return refused
        texts[tick.name] = tick.after
        for message in tick.messages:
            self._store.enqueue(message)
        return Enqueued.QUEUED

    def close(self) -> None:
        """Do nothing: there is no connection."""


def _last(mark: str) -> int:
    last = mark.partition(" ")[0]
    return int(last) if last.isdecimal() else 0
