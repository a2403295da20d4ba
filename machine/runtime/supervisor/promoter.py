"""Moves delayed messages that are due to their queues; every worker does it for all queues."""

from __future__ import annotations

from machine.ports.broker import Upkeep
from machine.runtime.loop import Loop

#: Messages in one script call, which blocks the server for about 1 ms.
_BATCH = 100
#: Batches in one run at most: the heartbeat waits on the same thread.
_MOST_BATCHES = 50


class Promoter(Loop):
    """Moves due messages to the queues they name, earliest first, until none is due."""

    def __init__(self, broker: Upkeep, period_s: float) -> None:
        super().__init__("promoter", period_s)
        self._broker = broker

    def run_once(self, _now_s: float) -> None:
        """Move everything that is due, in batches."""
        for _ in range(_MOST_BATCHES):
            if self._broker.promote(_BATCH) < _BATCH:
                return
