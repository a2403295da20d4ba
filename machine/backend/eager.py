"""
The backend in one process's memory: what eager mode and tests wait on.

It keeps the same bytes under the same ids as the Redis adapter does, with the
same lifetimes, and forgets them when the process ends. It knows nothing of
queues; `broker.eager` writes here under the same lock, so that a move and its
state are one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace

from machine.errors import ResultNotFound, ResultTimeout
from machine.ports.backend import MOST_ATTEMPTS, MOST_HISTORY_BYTES
from machine.ports.clock import Clock
from machine.wire.signature import GroupMeta, TaskState
from machine.wire.states import (
    decode_group,
    decode_state,
    encode_ahead,
    encode_group,
    encode_state,
)
from machine.wire.text import now_text

#: Seconds a state that is not final is kept at least, so that a long queue keeps its tasks.
UNFINISHED_S = 86_400
#: What Machinery takes an expiry of 0 for.
EXPIRE_DEFAULT_S = 3600

_STATE = b'{"TaskUUID":'
_AHEAD = b'{"Ahead":'
_FINAL = (b'"State":"SUCCESS"', b'"State":"FAILURE"')
_CREATED = b'"CreatedAt":"'
_ATTEMPTS = re.compile(rb'"Attempts":\[(.*)\],"CreatedAt":"', re.DOTALL)
_NEXT_ATTEMPT = b'},{"Attempt":'
#: Expired entries are looked for when so many are kept, and again at each doubling.
_SWEEP_FROM = 1024


class EagerBackend:
    """
    A `Backend` in memory; safe from any number of threads and event loops.

    Args:
        clock: Decides when a state expires.
        results_expire_s: Seconds a final state is kept; 0 means 3600.

    Attributes:
        changed: Held while anything is read or written, told when a state
            became final. An `EagerBroker` on this backend shares it.
    """

    def __init__(self, *, clock: Clock, results_expire_s: int = EXPIRE_DEFAULT_S) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._clock = clock
        self._final_ns = (results_expire_s or EXPIRE_DEFAULT_S) * 1_000_000_000
        self._kept: dict[str, tuple[bytes, int]] = {}
        self._sweep_at = _SWEEP_FROM
        self._watchers: set[Callable[[], None]] = set()

    # -- bytes, for the broker -------------------------------------------------------------
    def peek(self, key: str) -> bytes | None:
        """Return what is kept under this key and has not expired. Hold ``changed``."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry[1] <= self._clock.now_ns():
            del self._kept[key]
            return None
        return entry[0]

    def put(self, key: str, encoded: bytes, *, due_ns: int = 0, attempt: bytes = b"") -> None:
        """
        Keep these bytes. Hold ``changed``.

        Args:
            key: A task's or a group's id.
            encoded: A whole document, or a state without its end
                (`wire.encode_state_head`): that gets the creation time which
                is stored, or else now, and the attempts that are stored.
            due_ns: Unix ns before which its task will not start; a state that
                is not final outlives that.
            attempt: The record of a run to add to those that are stored
                (`wire.encode_attempt`), or b"".
        """
        now_ns = self._clock.now_ns()
        final = is_final(encoded)
        whole = _with_created_at(encoded, self.peek(key), now_ns, attempt)
        expires_ns = now_ns + self._final_ns
        if not final and (is_state(whole) or is_ahead(whole)):
            expires_ns = self._unfinished_until(max(now_ns, due_ns))
        self._kept[key] = (whole, expires_ns)
        if len(self._kept) >= self._sweep_at:
            self._kept = {k: entry for k, entry in self._kept.items() if entry[1] > now_ns}
            self._sweep_at = max(_SWEEP_FROM, 2 * len(self._kept))
        if final:
            self.changed.notify_all()
            for tell in self._watchers:
                tell()

    def kept_until_ns(self, key: str) -> int:
        """Return until when the bytes under this key are kept, Unix ns. Hold ``changed``."""
        return self._kept[key][1]

    def touch(self, key: str) -> None:
        """Keep what was sent again at least as long as a new state. Hold ``changed``."""
        encoded, expires_ns = self._kept[key]
        from_now_ns = self._unfinished_until(self._clock.now_ns())
        self._kept[key] = (encoded, max(expires_ns, from_now_ns))

    def _unfinished_until(self, from_ns: int) -> int:
        return from_ns + max(self._final_ns, UNFINISHED_S * 1_000_000_000)

    # -- the port --------------------------------------------------------------------------
    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Return each task's state, ``None`` where none is kept."""
        with self.changed:
            found = [self.peek(uuid) for uuid in uuids]
        return [None if encoded is None else decode_state(encoded) for encoded in found]

    async def aread(self, uuids: Sequence[str]) -> list[TaskState | None]:
        """Do what `read` does; nothing here waits."""
        return self.read(uuids)

    def record(self, state: TaskState) -> None:
        """
        Write a state with its lifetime, keeping the stored creation time and name.

        A stored final state is kept: the first one wins.
        """
        with self.changed:
            kept = self.peek(state.task_uuid)
            if kept is not None and is_final(kept):
                return
            self.put(state.task_uuid, _merged(state, kept, self._clock.now_ns()))

    def record_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """Write a group's meta unless it is there already."""
        entries = [(meta.group_uuid, encode_group(meta))]
        entries += [(state.task_uuid, encode_ahead(state)) for state in ahead]
        with self.changed:
            for key, document in entries:
                if self.peek(key) is None:
                    self.put(key, document, due_ns=due_ns)

    async def arecord_group(
        self, meta: GroupMeta, *, due_ns: int = 0, ahead: Sequence[TaskState] = ()
    ) -> None:
        """Do what `record_group` does; nothing here waits."""
        self.record_group(meta, due_ns=due_ns, ahead=ahead)

    def read_group(self, group_uuid: str) -> GroupMeta | None:
        """Return a group's meta, or ``None``."""
        with self.changed:
            encoded = self.peek(group_uuid)
        return None if encoded is None else decode_group(encoded)

    def completed(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> Iterator[TaskState]:
        """
        Yield each task's final state once, as it becomes final; nothing is polled.

        Raises:
            ResultTimeout: ``timeout_s`` seconds went by for all of them together.
            ResultNotFound: An id has no state, and ``missing_ok`` is false.
        """
        waiting = dict.fromkeys(uuids)
        deadline = None if timeout_s is None else self._clock.monotonic_s() + timeout_s
        while waiting:
            with self.changed:
                done = self._take_final(waiting)
                if not done:
                    self._refuse_missing(waiting, missing_ok=missing_ok)
                    left_s = None if deadline is None else deadline - self._clock.monotonic_s()
                    late = left_s is not None and left_s <= 0
                    # A clock that stands still in a test must not make this wait for ever.
                    if late or not self.changed.wait(left_s):
                        raise ResultTimeout
            for encoded in done:
                yield decode_state(encoded)

    async def acompleted(
        self, uuids: Sequence[str], timeout_s: float | None, *, missing_ok: bool = False
    ) -> AsyncIterator[TaskState]:
        """Do what `completed` does, without blocking the event loop."""
        waiting = dict.fromkeys(uuids)
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell() -> None:
            # Called by whichever thread wrote the state; a loop that has ended waits for nothing.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(news.set)

        deadline = None if timeout_s is None else loop.time() + timeout_s
        with self.changed:
            self._watchers.add(tell)
        try:
            while waiting:
                with self.changed:
                    news.clear()
                    done = self._take_final(waiting)
                    if not done:
                        self._refuse_missing(waiting, missing_ok=missing_ok)
                for encoded in done:
                    yield decode_state(encoded)
                if waiting and not done:
                    await _wait_for(news, deadline)
        finally:
            with self.changed:
                self._watchers.discard(tell)

    def purge_state(self, uuid: str) -> None:
        """Forget a task's state."""
        with self.changed:
            self._kept.pop(uuid, None)

    def purge_group(self, group_uuid: str) -> None:
        """Forget a group's meta; the members' states stay."""
        self.purge_state(group_uuid)

    async def aclose(self) -> None:
        """Close nothing: there is no connection."""

    def close(self) -> None:
        """Do nothing; what is kept can still be read."""

    def _take_final(self, waiting: dict[str, None]) -> list[bytes]:
        found = {uuid: self.peek(uuid) for uuid in waiting}
        done = {uuid: e for uuid, e in found.items() if e is not None and is_final(e)}
        for uuid in done:
            del waiting[uuid]
        return list(done.values())

    def _refuse_missing(self, waiting: dict[str, None], *, missing_ok: bool) -> None:
        gone = [] if missing_ok else [uuid for uuid in waiting if self.peek(uuid) is None]
        if gone:
            message = (
                f"No state is kept for '{gone[0]}': it was never sent, or it expired. "
                "Read results sooner, or raise results_expire_in."
            )
            raise ResultNotFound(message)


async def _wait_for(news: asyncio.Event, deadline: float | None) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await news.wait()
    except TimeoutError:
        raise ResultTimeout from None


def is_state(encoded: bytes) -> bool:
    """Say whether these are the bytes of a state, and not of a group's meta."""
    return encoded.startswith(_STATE)


def is_ahead(encoded: bytes) -> bool:
    """Say whether these are the bytes of a state that was written before its task was sent."""
    return encoded.startswith(_AHEAD)


def is_final(encoded: bytes) -> bool:
    """Say whether these are the bytes of a state that no further change is to come to."""
    # The names before State are strings, whose quotes are escaped: the first match is the field.
    at = encoded.find(b'"State":"')
    return at >= 0 and encoded.startswith(_FINAL, at)


def _with_created_at(encoded: bytes, kept: bytes | None, now_ns: int, attempt: bytes) -> bytes:
    if encoded.endswith(b"}"):
        return encoded
    at = kept.rfind(_CREATED) + len(_CREATED) if kept and _CREATED in kept else 0
    created = kept[at : kept.index(b'"', at)] if kept and at else now_text(now_ns).encode()
    before = _ATTEMPTS.search(kept) if kept else None
    history = b",".join(part for part in (before[1] if before else b"", attempt) if part)
    while len(history) > MOST_HISTORY_BYTES and _NEXT_ATTEMPT in history:  # the oldest go first
        history = history[history.index(_NEXT_ATTEMPT) + 2 :]
    shown = b'"Attempts":[' + history + b"]," if history else b""
    return encoded + shown + _CREATED + created + b'","TTL":0}'


def _merged(state: TaskState, kept: bytes | None, now_ns: int) -> bytes:
    stored = decode_state(kept) if kept is not None else None
    created_at = stored.created_at if stored else state.created_at
    task_name = stored.task_name if stored else ""
    merged = replace(
        state,
        task_name=task_name or state.task_name,
        created_at=created_at or now_text(now_ns),
        attempts=[*(stored.attempts if stored else []), *state.attempts][-MOST_ATTEMPTS:],
    )
    return encode_state(merged)
