"""
Who waits for which task. No I/O: threads and event loops drive it.

A `Waiter` is one waiting call. `Waiters` gives each state that was read to the
calls that wait for it, and knows which keys must still be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from machine.errors import MachineError, ResultNotFound
from machine.wire.signature import TaskState
from machine.wire.states import decode_state


class Waiter:
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


class Waiters:
    """All waiters of one connection, by the keys they wait for."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[Waiter]] = {}

    def add(self, waiter: Waiter) -> None:
        """Give this waiter what it waits for, from now on."""
        for uuid in waiter.waiting:
            self._by_key.setdefault(uuid, []).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Give this waiter nothing more; it may have ended."""
        for uuid in waiter.waiting:
            self._drop(uuid, waiter)

    def wanted_keys(self, uuids: Sequence[str] = ()) -> list[str]:
        """Return those of these keys that somebody waits for; of all keys when none is named."""
        return [u for u in uuids if u in self._by_key] if uuids else list(self._by_key)

    def answer(self, uuids: Sequence[str], values: Sequence[bytes | None]) -> None:
        """Give what was read to those who wait for it; a state that is not final wakes nobody."""
        for uuid, value in zip(uuids, values, strict=True):
            waiters = self._by_key.get(uuid)
            if not waiters:
                continue
            for waiter in waiters:
                waiter.unread.discard(uuid)
                if waiter.is_late and not waiter.unread:
                    waiter.wake()
            try:
                state = None if value is None else decode_state(value)
            except MachineError as error:
                self._fail(waiters, error)
                continue
            if state is None:
                gone = [waiter for waiter in waiters if not waiter.missing_ok]
                self._fail(gone, ResultNotFound(f"No state is kept under '{uuid}'. {_GONE}"))
            elif state.is_completed:
                for waiter in self._by_key.pop(uuid):
                    waiter.waiting.discard(uuid)
                    waiter.ready.append(state)
                    waiter.wake()

    def fail(self, error: MachineError, uuids: Sequence[str] = ()) -> None:
        """End every wait for these keys; of all keys when none is named."""
        self._fail(
            [w for uuid in self.wanted_keys(uuids) for w in self._by_key.get(uuid, ())], error
        )

    def wake_unread(self) -> None:
        """Wake those who have seen nothing yet: there is nothing to see for now."""
        for waiters in self._by_key.values():
            for waiter in waiters:
                if waiter.unread:
                    waiter.wake()

    def _fail(self, waiters: Sequence[Waiter], error: MachineError) -> None:
        for waiter in list(waiters):
            if waiter.error is None:
                waiter.error = error
                self.remove(waiter)
                waiter.wake()

    def _drop(self, uuid: str, waiter: Waiter) -> None:
        waiters = self._by_key.get(uuid, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._by_key.pop(uuid, None)


_GONE = "It was never sent, or it is older than results_expire_in."
