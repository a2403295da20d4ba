"""
Periodic duties in one thread.

A `Loop` does one thing every ``period_s`` seconds. `Loops` runs several of
them by turns. While the server is away, a loop is tried again after longer and
longer pauses; it never ends.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from machine.errors import BrokerUnavailable, MachineError

_log = logging.getLogger("machine.worker")
#: The longest pause of a loop whose server is away, seconds.
_MOST_PAUSE_S = 2.0


class Loop(ABC):
    """
    One periodic duty.

    Args:
        name: For the log.
        period_s: Seconds between two runs, > 0.
    """

    def __init__(self, name: str, period_s: float) -> None:
        self.name = name
        self.period_s = period_s

    @abstractmethod
    def run_once(self, now_s: float) -> None:
        """Do the duty once, without sleeping; ``now_s`` is monotonic seconds."""


class Loops:
    """
    Several loops in one thread. The first run of each is due at once.

    Args:
        loops: Run in this order when several are due.
        on_run: Called after each run: a loop may wait for Redis for seconds, and the
            caller has duties in between.
    """

    def __init__(self, loops: Sequence[Loop], *, on_run: Callable[[], None] = lambda: None) -> None:
        self._loops, self._on_run = list(loops), on_run
        self._due_s = dict.fromkeys(range(len(self._loops)), float("-inf"))
        self._failures = dict.fromkeys(range(len(self._loops)), 0)

    def run_due(self, now_s: float) -> float:
        """Run what is due and return the monotonic second when the next is."""
        for i, loop in enumerate(self._loops):
            if self._due_s[i] > now_s:
                continue
            self._due_s[i] = now_s + loop.period_s
            try:
                loop.run_once(now_s)
            except BrokerUnavailable as error:
                self._failures[i] += 1
                if self._failures[i] == 1:
                    _log.warning("%s waits: %s", loop.name, error)
                pause_s = min(_MOST_PAUSE_S, loop.period_s * self._failures[i])
                self._due_s[i] = now_s + max(pause_s, 0.05)
            except MachineError as error:
                _log.error("%s: %s", loop.name, error)
                self._due_s[i] = now_s + max(loop.period_s, 1.0)
            except Exception:  # noqa: BLE001 - a bug in one duty must not end the others
                _log.exception("%s failed", loop.name)
                self._due_s[i] = now_s + max(loop.period_s, 1.0)
            else:
                if self._failures[i]:
                    _log.info("%s goes on", loop.name)
                self._failures[i] = 0
            self._on_run()
        return min(self._due_s.values(), default=now_s + _MOST_PAUSE_S)
