"""
Who waits for which task. No I/O: threads and event loops drive it.

A `Watch` is one waiting call. `Interest` gives each state that was read to the
watches that wait for it, and knows which keys must still be looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from machine.errors import MachineError, ResultNotFound
from machine.wire.signature import TaskState
from machine.wire.states import decode_state


class Watch:
    """
    One call that waits for some tasks to end.

    Args:
        uuids: The tasks.
        missing_ok: Whether a task without a state is still to come.
        wake: Called whenever something new is in ``ready`` or ``error``.

    Attributes:
        ready: Final states that nobody has taken yet.
        waiting: Tasks that have not ended.
        unread: Those of them that were not looked at even once.
        is_late: Whether it waits for nothing but this first look any more.
        error: Why there will be no more.
    """

    __slots__ = ("error", "is_late", "missing_ok", "ready", "unread", "waiting", "wake")

    def __init__(self, uuids: Iterable[str], *, missing_ok: bool, wake: Callable[[], None]) -> None:
        self.waiting = set(uuids)
        self.unread = set(self.waiting)
        self.is_late = False
        self.missing_ok = missing_ok
        self.ready: deque[TaskState] = deque()
        self.error: MachineError | None = None
        self.wake = wake

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return not self.waiting or self.error is not None

    @property
    def has_news(self) -> bool:
        """Whether there is something to take, or nothing to wait for."""
        return bool(self.ready) or self.is_over

    def take(self) -> list[TaskState]:
        """Return what is ready, once."""
        taken = list(self.ready)
        self.ready.clear()
        return taken


class Interest:
    """All watches of one connection, by the keys they wait for."""

    def __init__(self) -> None:
        self._watches: dict[str, list[Watch]] = {}

    def add(self, watch: Watch) -> None:
        """Start to look out for what this watch waits for."""
        for uuid in watch.waiting:
            self._watches.setdefault(uuid, []).append(watch)

    def remove(self, watch: Watch) -> None:
        """Forget a watch, ended or not."""
        for uuid in watch.waiting:
            self._drop(uuid, watch)

    def wanted(self, uuids: Sequence[str] = ()) -> list[str]:
        """Return those of these keys that somebody waits for; of all keys when none is named."""
        return [u for u in uuids if u in self._watches] if uuids else list(self._watches)

    def answer(self, uuids: Sequence[str], values: Sequence[bytes | None]) -> None:
        """Give what was read to those who wait for it; a state that is not final wakes nobody."""
        for uuid, value in zip(uuids, values, strict=True):
            watches = self._watches.get(uuid)
            if not watches:
                continue
            for watch in watches:
                watch.unread.discard(uuid)
                if watch.is_late and not watch.unread:
                    watch.wake()
            try:
                state = None if value is None else decode_state(value)
            except MachineError as error:
                self._fail(watches, error)
                continue
            if state is None:
                gone = [watch for watch in watches if not watch.missing_ok]
                self._fail(gone, ResultNotFound(f"No state is kept under '{uuid}'. {_GONE}"))
            elif state.is_completed:
                for watch in self._watches.pop(uuid):
                    watch.waiting.discard(uuid)
                    watch.ready.append(state)
                    watch.wake()

    def fail(self, error: MachineError, uuids: Sequence[str] = ()) -> None:
        """End every watch of these keys; of all keys when none is named."""
        self._fail([w for uuid in self.wanted(uuids) for w in self._watches.get(uuid, ())], error)

    def wake_unread(self) -> None:
        """Wake those who have seen nothing yet: there is nothing to see for now."""
        for watches in self._watches.values():
            for watch in watches:
                if watch.unread:
                    watch.wake()

    def _fail(self, watches: Sequence[Watch], error: MachineError) -> None:
        for watch in list(watches):
            if watch.error is None:
                watch.error = error
                self.remove(watch)
                watch.wake()

    def _drop(self, uuid: str, watch: Watch) -> None:
        watches = self._watches.get(uuid, [])
        if watch in watches:
            watches.remove(watch)
        if not watches:
            self._watches.pop(uuid, None)


_GONE = "It was never sent, or it is older than results_expire_in."
