"""
The timetable's marks in one process's memory, beside the queues of `broker.eager`.

It does what ``tick.lua`` and ``switch.lua`` do, under the queues' own lock and by their clock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from machine.broker.eager_store import EagerStore
from machine.periodic.marks import Mark
from machine.ports.moves import Enqueued
from machine.ports.periodic import Marks, Tick, Ticked


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
        self._off: dict[str, set[str]] = {}

    def marks(self, home: str) -> Marks:
        """Return the clock's time, and all marks of a timetable."""
        with self._lock:
            off = frozenset(self._off.get(home, ()))
            return Marks(self._store.now_ms(), dict(self._texts.get(home, {})), off)

    async def amarks(self, home: str) -> Marks:
        """Do what `marks` does; it waits for nothing but other threads."""
        return self.marks(home)

    def switch(self, home: str, name: str, *, canceled: bool) -> bool:
        """Cancel an entry, or let it go on; say whether it was otherwise before."""
        with self._lock:
            off, texts = self._off.setdefault(home, set()), self._texts.get(home, {})
            if canceled == (name in off):
                return False
            if canceled:
                off.add(name)
                return True
            off.remove(name)
            now_ms = self._store.now_ms()
            mark = Mark.of(texts.get(name, ""))
            if mark is not None and mark.last_ms < now_ms:
                texts[name] = f"{now_ms} {mark.ran_ms}"
            return True

    async def aswitch(self, home: str, name: str, *, canceled: bool) -> bool:
        """Do what `switch` does; it waits for nothing but other threads."""
        return self.switch(home, name, canceled=canceled)

    def tick(self, ticks: Sequence[Tick]) -> list[Ticked]:
        """Move entries on, in order, each by itself in one step."""
        with self._lock:
            return [self._tick(tick) for tick in ticks]

    def _tick(self, tick: Tick) -> Ticked:
        texts = self._texts.setdefault(tick.home, {})
        before = texts.get(tick.name, "")
        if before != tick.before or _last(tick.after) <= _last(before):
            return Ticked.DUPLICATE
        if tick.messages and tick.name in self._off.get(tick.home, ()):
            mark = Mark.of(before)
            texts[tick.name] = f"{_last(tick.after)} {mark.ran_ms if mark else 0}"
            return Ticked.CANCELED
        for message in tick.messages:
            refused = self._store.refusal(message)
            if refused in (Enqueued.FULL, Enqueued.BAD_KEY):
                return Ticked(refused)
        texts[tick.name] = tick.after
        for message in tick.messages:
            self._store.enqueue(message)
        return Ticked.QUEUED

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    def close(self) -> None:
        """Do nothing: there is no connection."""


def _last(mark: str) -> int:
    last = mark.partition(" ")[0]
    return int(last) if last.isdecimal() else 0
