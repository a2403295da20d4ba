"""
Waiting for results in an event loop: one tracked connection for each loop.

One reader task serves every waiting coroutine. It stays between two waits, so
that the second one finds its connection open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from weakref import WeakKeyDictionary

from machine.backend.interest import Interest, Watch
from machine.backend.redis_watch import MOST_KEYS
from machine.connection import Connections, Push, error_of, next_pause_s
from machine.connection_aio import AsyncLink
from machine.errors import BrokerUnavailable, MachineError, ResultTimeout
from machine.signature import TaskState


class AsyncWatcher:
    """One event loop's tracked connection, and the coroutines that wait on it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._interest = Interest()
        self._link: AsyncLink | None = None
        self._asked: deque[list[str]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool
    ) -> AsyncIterator[TaskState]:
        """Yield each task's final state; see `Backend.completed`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        news = asyncio.Event()
        watch = Watch(uuids, missing_ok=missing_ok, wake=news.set)
        self._interest.add(watch)
        try:
            await self._ask(list(watch.waiting))
            while True:
                while watch.ready:
                    yield watch.ready.popleft()
                if watch.error:
                    raise watch.error
                if not watch.waiting:
                    return
                # Not asyncio.timeout() around it all: it would cancel whoever iterates.
                left_s = None if deadline is None else deadline - loop.time()
                if left_s is not None and self._unanswered(watch):
                    left_s = max(left_s, self._connections.limits.answer_s)
                try:
                    await asyncio.wait_for(news.wait(), left_s)
                except TimeoutError:
                    raise ResultTimeout from None
                news.clear()
        finally:
            self._interest.remove(watch)

    def _unanswered(self, watch: Watch) -> bool:
        """Say whether its keys have not been read once yet: that may always be waited for."""
        asked = {uuid for chunk in self._asked for uuid in chunk}
        return self._link is None or not watch.waiting.isdisjoint(asked)

    async def _ask(self, uuids: list[str]) -> None:
        """Have these keys read; a reader that is not there yet reads everything anyway."""
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_until_lost())
        elif self._link is not None and uuids:
            try:
                await self._send(self._link, uuids)
            except BrokerUnavailable:
                self._link = None  # the reader notices and asks for everything again

    async def _send(self, link: AsyncLink, uuids: list[str]) -> None:
        chunks = [uuids[i : i + MOST_KEYS] for i in range(0, len(uuids), MOST_KEYS)]
        self._asked.extend(chunks)
        await link.send([("MGET", *chunk) for chunk in chunks])

    async def _read_until_lost(self) -> None:
        """Read; open the connection again when it is lost and somebody waits."""
        loop = asyncio.get_running_loop()
        pause_s, lost_at = 0.01, None
        while True:
            link = AsyncLink(self._connections, waits=True, protocol=3)
            try:
                await self._read(link)
            except BrokerUnavailable as error:
                lost_at = lost_at or loop.time()
                if loop.time() - lost_at > self._connections.limits.retry_s:
                    self._fail(error)
            except MachineError as error:
                self._fail(error)
            finally:
                self._link = None
                self._asked.clear()
                await link.close()
            if not self._interest.wanted():
                return
            await asyncio.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def _read(self, link: AsyncLink) -> None:
        await link.send([("CLIENT", "TRACKING", "ON")])
        tracks = not isinstance(await link.receive(), Exception)
        self._link = link
        await self._send(link, self._interest.wanted())
        while True:
            answer = await link.receive(push=True)
            if isinstance(answer, Push):
                changed = self._interest.wanted([key.decode() for key in answer])
                if changed:
                    await self._send(link, changed)
            elif isinstance(answer, Exception):
                raise error_of(answer, self._connections.where) from answer
            else:
                self._interest.answer(self._asked.popleft(), answer)
                if not tracks and not self._asked and self._interest.wanted():
                    await asyncio.sleep(0.05)  # tracking is refused here: somebody has to look
                    await self._send(link, self._interest.wanted())

    def _fail(self, error: MachineError) -> None:
        for watch in self._interest.watches():
            watch.error = error
            self._interest.remove(watch)
            watch.wake()

    async def close(self) -> None:
        """Stop reading and close the connection."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


_watchers: WeakKeyDictionary[
    Connections, WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncWatcher]
]
_watchers = WeakKeyDictionary()


def watcher_of(connections: Connections) -> AsyncWatcher:
    """Return the running event loop's watcher for this server."""
    of_loops = _watchers.setdefault(connections, WeakKeyDictionary())
    return of_loops.setdefault(asyncio.get_running_loop(), AsyncWatcher(connections))
