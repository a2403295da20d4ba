"""
Waiting for results in threads: one tracked connection for the whole process.

The keys are read once on a connection with client-side tracking, and the
server says when one of them changes. Of the threads that wait, one leads: it
opens and reads the connection and serves the others, and hands the lead on
when it has what it came for. So a single waiting thread pays no hand-over.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from machine.errors import BrokerUnavailable, MachineError, ResultTimeout
from machine.redis.connections import Connections, next_pause_s
from machine.redis.errors import error_of
from machine.redis.link import Link, Push
from machine.redis.waiters import Interest, Watch
from machine.wire.signature import TaskState

#: Keys in one MGET: a bound on how long the server is busy with it.
MOST_KEYS = 500
#: Where tracking is refused, somebody has to look again: 10 ms, growing to this.
LOOK_AGAIN_S = 0.25
FIRST_PAUSE_S = 0.01
_FOREVER_S = 1e9


class _Line:
    """One tracked connection and the questions on it; when lost, both go together."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.tracks = link.track()
        self.asked: deque[list[str]] = deque()
        #: Monotonic second of the last sign of life, or of the question after it.
        self.heard_at = time.monotonic()


class Watcher:
    """The process's tracked connection, and the threads that wait on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        #: Over the watches, and who leads. May be taken inside `_using`, never around it.
        self._lock = threading.Lock()
        #: Over the line. TLS cannot be read and written at once.
        self._using = threading.RLock()
        self._interest = Interest()
        self._line: _Line | None = None
        self._led = False
        self._followers: dict[Watch, threading.Condition] = {}
        #: Why there is no line just now.
        self._lost: BrokerUnavailable | None = None

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool
    ) -> Iterator[TaskState]:
        """Yield each task's final state; see `Backend.completed`."""
        asked_at = time.monotonic()
        deadline = asked_at + (_FOREVER_S if timeout_s is None else timeout_s)
        news = threading.Condition(self._lock)
        watch = Watch(uuids, missing_ok=missing_ok, wake=news.notify)
        if not watch.waiting:
            return
        with self._lock:
            self._interest.add(watch)
        try:
            self._ask(list(dict.fromkeys(uuids)))
            while True:
                with self._lock:
                    states, is_over, error = watch.take(), watch.is_over, watch.error
                yield from states
                if error:
                    raise error
                if is_over:
                    return
                self._wait(watch, news, deadline, asked_at)
        finally:
            with self._lock:
                self._interest.remove(watch)

    def close(self) -> None:
        """Close the connection; waiting threads open it again."""
        self._drop(self._line)

    # -- one of them leads -----------------------------------------------------------------
    def _wait(
        self, watch: Watch, news: threading.Condition, deadline: float, asked_at: float
    ) -> None:
        """Lead, or wait for the leader to bring something or to step down."""
        with self._lock:
            self._followers[watch] = news
            try:
                while self._led and not watch.has_news:
                    news.wait(min(self._left_s(watch, deadline, asked_at), threading.TIMEOUT_MAX))
                if watch.has_news:
                    return
                self._led = True
            finally:
                del self._followers[watch]
                if not self._led:
                    self._offer_lead()  # it may have been offered to us, who do not take it
        try:
            self._lead(watch, deadline, asked_at)
        finally:
            with self._lock:
                self._led = False
                self._offer_lead()

    def _offer_lead(self) -> None:
        for news in self._followers.values():
            news.notify()
            break

    def _lead(self, watch: Watch, deadline: float, asked_at: float) -> None:
        """Read until this watch has something."""
        pause_s, look_s, lost_at = FIRST_PAUSE_S, FIRST_PAUSE_S, 0.0
        while not watch.has_news:
            left_s = self._left_s(watch, deadline, asked_at)
            try:
                line = self._opened()
                is_read = self._read(line, left_s if line.tracks else min(left_s, look_s))
                pause_s, lost_at = FIRST_PAUSE_S, 0.0
                if not (is_read or line.tracks or line.asked):
                    look_s = min(LOOK_AGAIN_S, look_s * 1.5)
                    self._ask(self._wanted())
            except BrokerUnavailable as error:
                self._lose(error)
                now = time.monotonic()
                lost_at = lost_at or now
                if now - lost_at > self._connections.limits.retry_s:
                    self._fail(error)
                elif now < deadline:
                    # The server is away, and nothing tells when it is back.
                    time.sleep(min(pause_s, deadline - now))
                    pause_s = next_pause_s(pause_s)
            except MachineError as error:
                self._fail(error)

    def _left_s(self, watch: Watch, deadline: float, asked_at: float) -> float:
        """
        Return the seconds left, > 0; a first look may always be waited for.

        Raises:
            ResultTimeout: There are none.
            BrokerUnavailable: There are none, and the server was never reached.
        """
        now = time.monotonic()
        if now >= deadline:
            lost = self._lost if watch.unread else None
            deadline = asked_at + self._connections.limits.answer_s
            if lost or not watch.unread or now >= deadline:
                raise lost or ResultTimeout
            watch.is_late = True
        return deadline - now

    def _lose(self, error: BrokerUnavailable) -> None:
        """Remember why there is no line, for those whose time is up."""
        with self._lock:
            self._lost = error
            self._interest.wake_unread()

    def _fail(self, error: MachineError) -> None:
        """End every wait: each would only find the same, one patience after the other."""
        with self._lock:
            self._interest.fail(error)

    # -- reading: the leader only ----------------------------------------------------------
    def _opened(self) -> _Line:
        """Return the line; a new one asks for everything that anyone waits for."""
        if self._line is not None:
            return self._line
        link = self._connections.link(protocol=3)
        try:
            line = _Line(link)
        except BaseException:
            link.close()
            raise
        # First the line, then what is wanted: whoever comes in between asks for himself.
        self._line, self._lost = line, None
        self._ask(self._wanted())
        return line

    def _read(self, line: _Line, timeout_s: float) -> bool:
        """Read what is there or comes in time; say whether anything did."""
        answer_s = self._connections.limits.answer_s
        # Never for long: another thread may have closed this socket just before we look at it.
        is_there = line.link.can_read(min(timeout_s, answer_s))
        with self._using:
            if not is_there:
                if line.asked and time.monotonic() - line.heard_at > answer_s:
                    self._drop(line)
                    message = f"Redis at {self._connections.where} did not answer in {answer_s:g} s"
                    raise BrokerUnavailable(message)
                return False
            try:
                changed = self._sort(line)
            except BaseException:
                self._drop(line)
                raise
            line.heard_at = time.monotonic()
        if changed:
            self._ask(list(dict.fromkeys(changed)))
        return True

    def _sort(self, line: _Line) -> list[str]:
        """Give answers to their watches, and return the wanted keys that have changed."""
        changed: list[str] = []
        is_there = True
        while True:
            try:
                answer = line.link.receive_push(is_there=is_there)
            except TimeoutError:
                return changed
            is_there = False
            with self._lock:
                if isinstance(answer, Push):
                    changed += self._interest.wanted([key.decode() for key in answer])
                elif not isinstance(answer, Exception):
                    self._interest.answer(line.asked.popleft(), answer)
                else:
                    error = error_of(answer, self._connections.where)
                    if isinstance(error, BrokerUnavailable):
                        raise error from answer
                    self._interest.fail(error, line.asked.popleft())

    def _wanted(self) -> list[str]:
        with self._lock:
            return self._interest.wanted()

    # -- asking: everybody -----------------------------------------------------------------
    def _ask(self, uuids: list[str]) -> None:
        """Have these keys read, if there is a line; whoever opens one reads everything."""
        with self._using:
            line = self._line
            if line is None or not uuids:
                return
            if not line.asked:
                line.heard_at = time.monotonic()
            chunks = [uuids[i : i + MOST_KEYS] for i in range(0, len(uuids), MOST_KEYS)]
            line.asked.extend(chunks)
            try:
                line.link.send([("MGET", *chunk) for chunk in chunks])
            except BrokerUnavailable:
                self._drop(line)  # the leader notices, now or when there is one
            except BaseException:
                self._drop(line)
                raise

    def _drop(self, line: _Line | None) -> None:
        with self._using:
            if line is not None:
                line.link.close()
            if line is self._line:
                self._line = None
