"""
Waiting for results in threads: one tracked connection for the whole process.

The keys are read once on a connection with client-side tracking, and the
server says when one of them changes. Of the threads that wait, one leads: it
reads the connection and serves the others, and hands the lead on when it has
what it came for. So a single waiting thread pays no hand-over at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from machine.backend.interest import Interest, Watch
from machine.connection import Connections, Link, Push, error_of, next_pause_s
from machine.errors import BrokerUnavailable, ResultTimeout
from machine.signature import TaskState

#: Keys in one MGET: a bound on how long the server is busy with it.
MOST_KEYS = 500
#: Where tracking is refused, somebody has to look again: 10 ms, growing to this.
_LOOK_AGAIN_S = 0.25
_FOREVER_S = 3600.0


class Watcher:
    """The process's tracked connection, and the threads that wait on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._condition = threading.Condition()
        self._sending = threading.Lock()
        self._interest = Interest()
        self._link: Link | None = None
        self._asked: deque[list[str]] = deque()
        self._led = False
        self._tracks = True

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool
    ) -> Iterator[TaskState]:
        """Yield each task's final state; see `Backend.completed`."""
        deadline = time.monotonic() + (_FOREVER_S * 24 * 365 if timeout_s is None else timeout_s)
        watch = Watch(uuids, missing_ok=missing_ok, wake=self._notify)
        with self._condition:
            self._interest.add(watch)
        try:
            if watch.waiting:
                self._ask(list(watch.waiting), deadline)
            while True:
                while watch.ready:
                    yield watch.ready.popleft()
                if watch.error:
                    raise watch.error
                if not watch.waiting:
                    return
                self._wait(watch, deadline)
        finally:
            with self._condition:
                self._interest.remove(watch)

    def close(self) -> None:
        """Close the connection; waiting threads open it again."""
        self._reset()

    # -- one of them leads -----------------------------------------------------------------
    def _wait(self, watch: Watch, deadline: float) -> None:
        """Lead, or wait for the leader to bring something or to step down."""
        with self._condition:
            while self._led and not watch.ready and not watch.is_over:
                if not self._condition.wait(self._left_s(deadline)):
                    raise ResultTimeout
            if watch.ready or watch.is_over:
                return
            self._led = True
        try:
            self._lead(watch, deadline)
        finally:
            with self._condition:
                self._led = False
                self._condition.notify_all()

    def _lead(self, watch: Watch, deadline: float) -> None:
        """Read until this watch has something."""
        pause_s, lost_at = 0.01, None
        while not watch.ready and not watch.is_over:
            left_s = self._left_s(deadline)
            if left_s <= 0:
                raise ResultTimeout
            try:
                self._read(left_s if self._tracks else min(left_s, pause_s))
                lost_at = None
            except TimeoutError:
                if deadline <= time.monotonic():
                    raise ResultTimeout from None
                if not self._tracks:
                    pause_s = min(_LOOK_AGAIN_S, pause_s * 1.5)
                    self._ask(self._all(), deadline)
            except BrokerUnavailable:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self._connections.limits.retry_s:
                    raise
                time.sleep(min(pause_s, max(0.0, left_s)))
                pause_s = next_pause_s(pause_s)
                self._ask_again()

    def _left_s(self, deadline: float) -> float:
        """Return the seconds left; a question that was asked may always be answered."""
        left_s = deadline - time.monotonic()
        return max(left_s, self._connections.limits.answer_s) if self._asked else left_s

    def _read(self, timeout_s: float) -> None:
        """Read what is there: answers go to their watches, changed keys are asked for again."""
        link = self._link
        if link is None:
            message = "the connection that waits for results was closed"
            raise BrokerUnavailable(message)
        changed: list[str] = []
        answer = link.receive_push(min(timeout_s, _FOREVER_S))
        while True:
            if isinstance(answer, Push):
                with self._condition:
                    named = [key.decode() for key in answer]
                    changed += self._interest.wanted(named)
            elif isinstance(answer, Exception):
                raise error_of(answer, self._connections.where) from answer
            else:
                with self._condition:
                    self._interest.answer(self._asked.popleft(), answer)
            try:
                answer = link.receive_push(0)
            except TimeoutError:
                break
        if changed:
            self._send(link, list(dict.fromkeys(changed)))

    # -- asking ----------------------------------------------------------------------------
    def _ask(self, uuids: list[str], deadline: float) -> None:
        """Read these keys, on a connection that then reports their changes."""
        pause_s = 0.01
        give_up = min(deadline, time.monotonic() + self._connections.limits.retry_s)
        while True:
            try:
                self._send(self._open(), uuids)
            except BrokerUnavailable:
                self._reset()
                if time.monotonic() + pause_s > give_up:
                    raise
                time.sleep(pause_s)
                pause_s = next_pause_s(pause_s)
            else:
                return

    def _ask_again(self) -> None:
        """Open a new connection and read everything anyone waits for."""
        self._reset()
        try:
            self._send(self._open(), self._all())
        except BrokerUnavailable:
            self._reset()

    def _all(self) -> list[str]:
        with self._condition:
            return self._interest.wanted()

    def _open(self) -> Link:
        with self._sending:
            if self._link is None:
                link = self._connections.link(protocol=3)
                self._tracks = link.track()
                self._link = link
            return self._link

    def _send(self, link: Link, uuids: list[str]) -> None:
        with self._sending:
            if link is not self._link:
                message = "the connection that waits for results was replaced"
                raise BrokerUnavailable(message)
            chunks = [uuids[i : i + MOST_KEYS] for i in range(0, len(uuids), MOST_KEYS)]
            self._asked.extend(chunks)
            link.send([("MGET", *chunk) for chunk in chunks])

    def _reset(self) -> None:
        with self._sending:
            link, self._link = self._link, None
            self._asked.clear()
        if link is not None:
            link.close()

    def _notify(self) -> None:
        self._condition.notify_all()
