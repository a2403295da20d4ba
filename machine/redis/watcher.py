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
from machine.redis.waiters import Waiter, Waiters
from machine.wire.signature import TaskState

#: Keys in one MGET: a bound on how long the server is busy with it.
MOST_KEYS = 500
#: Where tracking is refused, somebody has to look again: 10 ms, growing to this.
LOOK_AGAIN_S = 0.25
FIRST_PAUSE_S = 0.01
_FOREVER_S = 1e9


class _TrackedLink:
    """One tracked connection and the questions on it; when lost, both go together."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.is_tracking = link.track()
        self.asked: deque[list[str]] = deque()
        #: Monotonic second of the last sign of life, or of the question after it.
        self.heard_at = time.monotonic()


class Watcher:
    """The process's tracked connection, and the threads that wait on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        #: Over the waiters, and who leads. May be taken inside `_using`, never around it.
        self._lock = threading.Lock()
        #: Over the tracked link. TLS cannot be read and written at once.
        self._using = threading.RLock()
        self._waiters = Waiters()
        self._tracked: _TrackedLink | None = None
        self._led = False
        self._followers: dict[Waiter, threading.Condition] = {}
        #: Why no link is tracked just now.
        self._lost: BrokerUnavailable | None = None

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool
    ) -> Iterator[TaskState]:
        """Yield each task's final state; see `Backend.completed`."""
        asked_at = time.monotonic()
        deadline = asked_at + (_FOREVER_S if timeout_s is None else timeout_s)
        news = threading.Condition(self._lock)
        waiter = Waiter(uuids, missing_ok=missing_ok, wake=news.notify)
        if not waiter.waiting:
            return
        with self._lock:
            self._waiters.add(waiter)
        try:
            self._ask(list(dict.fromkeys(uuids)))
            while True:
                with self._lock:
                    states, is_over, error = waiter.take(), waiter.is_over, waiter.error
                yield from states
                if error:
                    raise error
                if is_over:
                    return
                self._wait(waiter, news, deadline, asked_at)
        finally:
            with self._lock:
                self._waiters.remove(waiter)

    def close(self) -> None:
        """Close the connection; waiting threads open it again."""
        self._drop(self._tracked)

    # -- one of them leads -----------------------------------------------------------------
    def _wait(
        self, waiter: Waiter, news: threading.Condition, deadline: float, asked_at: float
    ) -> None:
        """Lead, or wait for the leader to bring something or to step down."""
        with self._lock:
            self._followers[waiter] = news
            try:
                while self._led and not waiter.has_news:
                    news.wait(min(self._left_s(waiter, deadline, asked_at), threading.TIMEOUT_MAX))
                if waiter.has_news:
                    return
                self._led = True
            finally:
                del self._followers[waiter]
                if not self._led:
                    self._offer_lead()  # it may have been offered to us, who do not take it
        try:
            self._lead(waiter, deadline, asked_at)
        finally:
            with self._lock:
                self._led = False
                self._offer_lead()

    def _offer_lead(self) -> None:
        for news in self._followers.values():
            news.notify()
            break

    def _lead(self, waiter: Waiter, deadline: float, asked_at: float) -> None:
        """Read until this waiter has something."""
        pause_s, look_s, lost_at = FIRST_PAUSE_S, FIRST_PAUSE_S, 0.0
        while not waiter.has_news:
            left_s = self._left_s(waiter, deadline, asked_at)
            try:
                tracked = self._open()
                is_read = self._read(
                    tracked, left_s if tracked.is_tracking else min(left_s, look_s)
                )
                pause_s, lost_at = FIRST_PAUSE_S, 0.0
                if not (is_read or tracked.is_tracking or tracked.asked):
                    look_s = min(LOOK_AGAIN_S, look_s * 1.5)
                    self._ask(self._wanted_keys())
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

    def _left_s(self, waiter: Waiter, deadline: float, asked_at: float) -> float:
        """
        Return the seconds left, > 0; a first look may always be waited for.

        Raises:
            ResultTimeout: There are none.
            BrokerUnavailable: There are none, and the server was never reached.
        """
        now = time.monotonic()
        if now >= deadline:
            lost = self._lost if waiter.unread else None
            deadline = asked_at + self._connections.limits.answer_s
            if lost or not waiter.unread or now >= deadline:
                raise lost or ResultTimeout
            waiter.is_late = True
        return deadline - now

    def _lose(self, error: BrokerUnavailable) -> None:
        """Remember why no link is tracked, for those whose time is up."""
        with self._lock:
            self._lost = error
            self._waiters.wake_unread()

    def _fail(self, error: MachineError) -> None:
        """End every wait: each would only find the same, one patience after the other."""
        with self._lock:
            self._waiters.fail(error)

    # -- reading: the leader only ----------------------------------------------------------
    def _open(self) -> _TrackedLink:
        """Return the tracked link; a new one asks for everything that anyone waits for."""
        if self._tracked is not None:
            return self._tracked
        link = self._connections.link(protocol=3)
        try:
            tracked = _TrackedLink(link)
        except BaseException:
            link.close()
            raise
        # First the link, then what is wanted: whoever comes in between asks for himself.
        self._tracked, self._lost = tracked, None
        self._ask(self._wanted_keys())
        return tracked

    def _read(self, tracked: _TrackedLink, timeout_s: float) -> bool:
        """Read what is there or comes in time; say whether anything did."""
        answer_s = self._connections.limits.answer_s
        # Never for long: another thread may have closed this socket just before we look at it.
        is_there = tracked.link.can_read(min(timeout_s, answer_s))
        with self._using:
            if not is_there:
                if tracked.asked and time.monotonic() - tracked.heard_at > answer_s:
                    self._drop(tracked)
                    message = f"Redis at {self._connections.where} did not answer in {answer_s:g} s"
                    raise BrokerUnavailable(message)
                return False
            try:
                changed = self._sort(tracked)
            except BaseException:
                self._drop(tracked)
                raise
            tracked.heard_at = time.monotonic()
        if changed:
            self._ask(list(dict.fromkeys(changed)))
        return True

    def _sort(self, tracked: _TrackedLink) -> list[str]:
        """Give answers to their waiters, and return the wanted keys that have changed."""
        changed: list[str] = []
        is_there = True
        while True:
            try:
                answer = tracked.link.receive_push(is_there=is_there)
            except TimeoutError:
                return changed
            is_there = False
            with self._lock:
                if isinstance(answer, Push):
                    changed += self._waiters.wanted_keys([key.decode() for key in answer])
                elif not isinstance(answer, Exception):
                    self._waiters.answer(tracked.asked.popleft(), answer)
                else:
                    error = error_of(answer, self._connections.where)
                    if isinstance(error, BrokerUnavailable):
                        raise error from answer
                    self._waiters.fail(error, tracked.asked.popleft())

    def _wanted_keys(self) -> list[str]:
        with self._lock:
            return self._waiters.wanted_keys()

    # -- asking: everybody -----------------------------------------------------------------
    def _ask(self, uuids: list[str]) -> None:
        """Have these keys read, if a link is tracked; whoever opens one reads everything."""
        with self._using:
            tracked = self._tracked
            if tracked is None or not uuids:
                return
            if not tracked.asked:
                tracked.heard_at = time.monotonic()
            chunks = [uuids[i : i + MOST_KEYS] for i in range(0, len(uuids), MOST_KEYS)]
            tracked.asked.extend(chunks)
            try:
                tracked.link.send([("MGET", *chunk) for chunk in chunks])
            except BrokerUnavailable:
                self._drop(tracked)  # the leader notices, now or when there is one
            except BaseException:
                self._drop(tracked)
                raise

    def _drop(self, tracked: _TrackedLink | None) -> None:
        with self._using:
            if tracked is not None:
                tracked.link.close()
            if tracked is self._tracked:
                self._tracked = None
