"""Counting what is in queues in one process's memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from machine.broker.eager_store import EagerStore
from machine.ports.broker import QueueCount, Survey


class EagerSurvey:
    """The part of `EagerBroker` that counts."""

    _lock: threading.Condition
    store: EagerStore

    def survey(self, queues: Sequence[str]) -> Survey:
        """Count what is in these queues; see `Broker.survey`."""
        with self._lock:
            return Survey(len(self.store.delayed), [self._count(queue) for queue in queues])

    def _count(self, queue: str) -> QueueCount:
        line, now_ms = self.store.line(queue), self.store.now_ms()
        return QueueCount(
            queue=queue,
            pending=len(line.ready),
            running=sum(len(held) for held in line.held.values()),
            dead=len(line.dead),
            workers=sorted(name for name, stamp in line.stamps.items() if stamp > now_ms),
            oldest=line.ready[0] if line.ready else b"",
        )
