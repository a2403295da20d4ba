"""
Streams of task states: one loop in each process reads all followed tasks in one round trip.

Redis announces final states; the loop reads progress twice a second. An event's
id is the digest of its document, so any replica can resume a client's stream
after the event that the client saw last.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from caller.web.responses import content_of, digest, state_document
from machine.errors import MachineError, WireError
from machine.ports.backend import Backend
from machine.wire.signature import TaskState

#: Seconds between two looks at what is followed.
LOOK_S: Final = 0.5
#: Seconds of silence after which a stream sends a comment, so that proxies keep it open.
HEARTBEAT_S: Final = 15.0


class _Mailbox:
    """The latest state of one task, for one stream; states that it did not read are dropped."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.state: TaskState | None = None

    def put(self, state: TaskState | None) -> None:
        if state != self.state:
            self.state = state
            self.news.set()


class Following:
    """
    All streams of this process.

    Args:
        backend: Where the states are.

    Attributes:
        closing: Set when the process shuts down; every stream and every wait ends then.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._boxes: dict[str, set[_Mailbox]] = {}
        self._looker: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()

    async def close(self) -> None:
        """End every stream, and stop looking."""
        self.closing.set()
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.gather(self._looker, return_exceptions=True)

    async def wait(self, uuid: str, timeout_s: float) -> None:
        """Return when the task has ended, the time is up, or the process shuts down."""
        ended = asyncio.create_task(self._ended(uuid, lambda _state: None, timeout_s))
        closing = asyncio.create_task(self.closing.wait())
        try:
            await asyncio.wait({ended, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, closing):
                task.cancel()
            await asyncio.gather(ended, closing, return_exceptions=True)

    async def events(self, uuid: str, state: TaskState | None, seen: str) -> AsyncIterator[bytes]:
        """
        Yield a task's changes as server-sent events, until it has ended.

        Args:
            uuid: The task's id.
            state: As it is now; ``None`` where another task is still to send it.
            seen: Id of the event that the client saw last, or "".
        """
        box = _Mailbox()
        box.put(state)
        self._boxes.setdefault(uuid, set()).add(box)
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look())
        watch = asyncio.create_task(self._ended(uuid, box.put, None))
        closing = asyncio.create_task(self.closing.wait())
        try:
            yield b"retry: 1000\n\n"
            async for event in self._changes(box, closing, seen):
                yield event
        finally:
            self._leave(uuid, box)
            for task in (watch, closing):
                task.cancel()
            await asyncio.gather(watch, closing, return_exceptions=True)

    async def _changes(
        self, box: _Mailbox, closing: asyncio.Task[bool], seen: str
    ) -> AsyncIterator[bytes]:
        was_there = False
        while True:
            if box.news.is_set():
                box.news.clear()
                if box.state is None and was_there:
                    yield b"event: gone\ndata: {}\n\n"
                    return
                if box.state is not None:
                    was_there = True
                    content = content_of(state_document(box.state))
                    last = box.state.is_completed
                    if (name := digest(content)) != seen:
                        yield event_of("end" if last else "state", name, content)
                    seen = name
                    if last:
                        return
            news = asyncio.create_task(box.news.wait())
            try:
                done, _ = await asyncio.wait(
                    {news, closing}, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                news.cancel()
            if closing in done:
                return
            if not done:
                yield b": still here\n\n"

    def _leave(self, uuid: str, box: _Mailbox) -> None:
        boxes = self._boxes.get(uuid, set())
        boxes.discard(box)
        if not boxes:
            self._boxes.pop(uuid, None)

    async def _ended(
        self, uuid: str, put: Callable[[TaskState], None], timeout_s: float | None
    ) -> None:
        """Put a task's final state; while Redis is away, `_look` does it instead."""
        with contextlib.suppress(MachineError):
            async for state in self._backend.acompleted([uuid], timeout_s, missing_ok=True):
                put(state)

    async def _look(self) -> None:
        while self._boxes:
            await asyncio.sleep(LOOK_S)
            uuids = list(self._boxes)
            try:
                await self._read(uuids)
            except WireError:
                # One of them is nonsense that somebody wrote there; the others are not to suffer.
                for uuid in uuids:
                    with contextlib.suppress(MachineError):
                        await self._read([uuid])
            except MachineError:
                continue  # Redis is away; the next look tells

    async def _read(self, uuids: Sequence[str]) -> None:
        for uuid, state in zip(uuids, await self._backend.aread(uuids), strict=True):
            for box in self._boxes.get(uuid, ()):
                box.put(state)


def event_of(kind: str, name: str, content: bytes) -> bytes:
    """Return one server-sent event; a document has no line breaks."""
    return b"event: %b\nid: %b\ndata: %b\n\n" % (kind.encode(), name.encode(), content)
