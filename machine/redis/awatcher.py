"""
Waiting for results in an event loop: one tracked connection for each loop.

One reader task serves every waiting coroutine. It stays between two waits, so
that the second one finds its connection open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence

from machine.errors import BrokerUnavailable, MachineError, ResultTimeout
from machine.redis.aio import AsyncLink, of_loop
from machine.redis.connections import Connections, next_pause_s
from machine.redis.errors import error_of
from machine.redis.link import Push
from machine.redis.waiters import Waiter, Waiters
from machine.redis.watcher import FIRST_PAUSE_S, LOOK_AGAIN_S, MOST_KEYS
from machine.wire.signature import TaskState


class AsyncWatcher:
    """One event loop's tracked connection, and the coroutines that wait on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._answer_s = connections.limits.answer_s
        self._waiters = Waiters()
        self._reader: asyncio.Task[None] | None = None
        self._link: AsyncLink | None = None
        self._asked: deque[list[str]] = deque()
        self._asked_anew = asyncio.Event()
        #: Bounds the reader's wait for an answer; without a limit while none is due.
        self._patience: asyncio.Timeout | None = None
        #: Why there is no link just now.
        self._lost: BrokerUnavailable | None = None
        self._is_heard = False

    async def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool
    ) -> AsyncIterator[TaskState]:
        """Yield each task's final state; see `Backend.completed`."""
        asked_at = asyncio.get_running_loop().time()
        deadline = None if timeout_s is None else asked_at + timeout_s
        news = asyncio.Event()
        waiter = Waiter(uuids, missing_ok=missing_ok, wake=news.set)
        if not waiter.waiting:
            return
        self._waiters.add(waiter)
        try:
            await self._ask(list(dict.fromkeys(uuids)))
            while True:
                for state in waiter.take():
                    yield state
                if waiter.ready:
                    continue
                if waiter.error:
                    raise waiter.error
                if not waiter.waiting:
                    return
                left_s = self._left_s(waiter, deadline, asked_at)
                # Not asyncio.timeout() around it all: it would cancel whoever iterates.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), left_s)
                news.clear()
        finally:
            self._waiters.remove(waiter)

    async def close(self) -> None:
        """Stop reading and close the connection; whoever waits gets `BrokerUnavailable`."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        where = self._connections.where
        self._waiters.fail(BrokerUnavailable(f"The connection to Redis at {where} was closed."))

    def _left_s(self, waiter: Waiter, deadline: float | None, asked_at: float) -> float | None:
        """Return the seconds left, > 0, or raise; see `watcher.Watcher`."""
        if deadline is None:
            return None
        now = asyncio.get_running_loop().time()
        if now >= deadline:
            lost = self._lost if waiter.unread else None
            deadline = asked_at + self._answer_s
            if lost or not waiter.unread or now >= deadline:
                raise lost or ResultTimeout
            waiter.is_late = True
        return deadline - now

    # -- asking: every coroutine -----------------------------------------------------------
    async def _ask(self, uuids: list[str]) -> None:
        """Have these keys read; a reader that has no link yet reads everything anyway."""
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_until_lost())
        elif self._link is not None:
            try:
                await self._send(self._link, uuids)
            except BrokerUnavailable:
                self._link = None  # the reader notices and asks for everything again
            except BaseException:
                self._link = None
                raise

    async def _send(self, link: AsyncLink, uuids: list[str]) -> None:
        if not uuids:
            return
        if not self._asked:
            self._be_patient(self._answer_s)
        chunks = [uuids[i : i + MOST_KEYS] for i in range(0, len(uuids), MOST_KEYS)]
        self._asked.extend(chunks)
        self._asked_anew.set()
        await link.send([("MGET", *chunk) for chunk in chunks])

    def _be_patient(self, seconds: float | None) -> None:
        if self._patience is not None and not self._patience.expired():
            when = None if seconds is None else asyncio.get_running_loop().time() + seconds
            self._patience.reschedule(when)

    # -- reading: one task -----------------------------------------------------------------
    async def _read_until_lost(self) -> None:
        """Read; open the connection again when it is lost and somebody waits."""
        loop = asyncio.get_running_loop()
        pause_s, lost_at = FIRST_PAUSE_S, 0.0
        while True:
            link = AsyncLink(self._connections, waits=True, protocol=3)
            self._is_heard = False
            try:
                await self._read(link)
            except BrokerUnavailable as error:
                if self._is_heard:
                    pause_s, lost_at = FIRST_PAUSE_S, 0.0
                lost_at = lost_at or loop.time()
                if loop.time() - lost_at > self._connections.limits.retry_s:
                    self._waiters.fail(error)
                self._lost = error
                self._waiters.wake_unread()
            except MachineError as error:
                self._waiters.fail(error)
            except Exception as error:
                self._waiters.fail(MachineError(f"Waiting for results broke off: {error!r}"))
                raise
            finally:
                self._link = self._patience = None
                self._asked.clear()
                await link.close()
            if not self._waiters.wanted_keys():
                return
            await asyncio.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def _read(self, link: AsyncLink) -> None:
        """Read for ever; raise when the connection is lost, or hangs."""
        limits = self._connections.limits
        try:
            async with asyncio.timeout(limits.connect_s + limits.answer_s):
                is_tracking = await link.track()
            async with asyncio.timeout(None) as self._patience:
                self._link, self._lost = link, None
                await self._send(link, self._waiters.wanted_keys())
                await self._read_on(link, is_tracking=is_tracking)
        except TimeoutError as error:
            message = f"Redis at {self._connections.where} did not answer in {self._answer_s:g} s"
            raise BrokerUnavailable(message) from error

    async def _read_on(self, link: AsyncLink, *, is_tracking: bool) -> None:
        look_s = FIRST_PAUSE_S
        while True:
            answer = await link.receive(push=True)
            self._is_heard = True
            if isinstance(answer, Push):
                changed = self._waiters.wanted_keys([key.decode() for key in answer])
                await self._send(link, changed)
                continue
            asked = self._asked.popleft()
            self._be_patient(self._answer_s if self._asked else None)
            if isinstance(answer, Exception):
                error = error_of(answer, self._connections.where)
                if isinstance(error, BrokerUnavailable):
                    raise error from answer
                self._waiters.fail(error, asked)
            else:
                self._waiters.answer(asked, answer)
            if not is_tracking and not self._asked and self._waiters.wanted_keys():
                look_s = min(LOOK_AGAIN_S, look_s * 1.5)
                await self._look_again(link, look_s)

    async def _look_again(self, link: AsyncLink, pause_s: float) -> None:
        """Where tracking is refused: ask for everything after a pause, unless somebody asks."""
        self._asked_anew.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked_anew.wait(), pause_s)
        if not self._asked:
            await self._send(link, self._waiters.wanted_keys())


def watcher_of(connections: Connections) -> AsyncWatcher:
    """Return the running event loop's watcher for this server."""
    return of_loop(connections, AsyncWatcher)
