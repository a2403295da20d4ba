"""
A caller's timetable: what is registered, the schedulers that send it, what is canceled.

An entry is checked when it is registered, so that a mistake shows when the program
starts and not at night. `machine.runtime.supervisor.scheduler` looks at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Unpack

from machine.errors import ConfigError
from machine.periodic.entries import Entry, EntryKind, PeriodicOptions, check_name
from machine.periodic.runs import run_of
from machine.periodic.watermarks import PeriodicState, states
from machine.ports.periodic import PeriodicStore
from machine.registry import Registry
from machine.sending.messages import MessageMaker
from machine.sending.workflows import check_concurrency


class PeriodicTasks:
    """
    The periodic tasks of one server.

    Args:
        registry: Keeps the entries.
        messages: Fills in and checks what is to be sent.
        home: Queue whose keys hold the timetable: the default queue.

    Attributes:
        store: Keeps the watermarks; ``None`` until `build` sets it.
    """

    def __init__(self, registry: Registry, messages: MessageMaker, home: str) -> None:
        self._registry, self._messages, self._home = registry, messages, home
        self._schedulers: list[Any] = []
        self._registered: list[Entry] = []
        self._completed: list[Entry] = []
        self.store: PeriodicStore | None = None

    # -- what is sent ----------------------------------------------------------------------
    def register(
        self,
        kind: EntryKind,
        spec: str | timedelta,
        name: str,
        signatures: Sequence[Any],
        callback: Any = None,
        *,
        send_concurrency: int = 0,
        **options: Unpack[PeriodicOptions],
    ) -> None:
        """
        Check an entry and add it; registering the same again changes nothing.

        Args:
            kind: What the signatures are together.
            spec: When; see `periodic`.
            name: What the timetable knows it by.
            signatures: Templates, or workflows.
            callback: The chord's.
            send_concurrency: See `check_concurrency`.
            options: ``catch_up``, ``overlap`` and ``tz``.

        Raises:
            ConfigError: The specification means no times.
            SignatureError: It cannot be sent, or the name is taken by something else.
        """
        check_concurrency(send_concurrency)
        entry = Entry.of(kind, spec, name, signatures, callback, **options)
        completed = entry.complete(self._messages.complete)
        # Encoded once, for what only shows then: its size, values that JSON cannot hold.
        self._messages.make(run_of(completed, "", 0).signatures, time.time_ns())
        self._registry.add_schedule(entry)

    def timetable(self) -> list[Entry]:
        """Return what is registered, each entry as it will be sent."""
        # A scheduler asks several times a second; entries hardly ever change.
        registered = list(self._registry.schedules.values())
        if registered != self._registered:
            self._completed = complete_entries(self._registry, self._messages)
            self._registered = registered
        return self._completed

    # -- schedulers ------------------------------------------------------------------------
    def add_scheduler(self, factory: Callable[[Any], Any] | None, owner: Any) -> Any:
        """Make a scheduler of ``owner``, to be stopped with the others."""
        if factory is None:
            raise ConfigError(
                "This server cannot make schedulers; make it by machine.connect(), which can."
            )
        made = factory(owner)
        self._schedulers.append(made)
        return made

    def stop_schedulers(self) -> None:
        """Stop every scheduler that was made here."""
        while self._schedulers:
            self._schedulers.pop().stop()

    # -- the store -------------------------------------------------------------------------
    def switch(self, name: str, *, canceled: bool) -> bool:
        """Cancel an entry, or let it go on; say whether it was otherwise before."""
        check_name(name)
        return self._require_store().switch(self._home, name, canceled=canceled)

    async def aswitch(self, name: str, *, canceled: bool) -> bool:
        check_name(name)
        return await self._require_store().aswitch(self._home, name, canceled=canceled)

    def states(self) -> list[PeriodicState]:
        """Return where each entry stands: those registered, then what only the store knows."""
        return states(self.timetable(), *self._require_store().read_watermarks(self._home))

    async def astates(self) -> list[PeriodicState]:
        return states(self.timetable(), *await self._require_store().aread_watermarks(self._home))

    def _require_store(self) -> PeriodicStore:
        if self.store is None:
            raise ConfigError(
                "This server does not know where its timetable is; make it by "
                "machine.connect(), which tells it."
            )
        return self.store

    # -- the end ---------------------------------------------------------------------------
    def close(self) -> None:
        self.stop_schedulers()
        if self.store is not None:
            self.store.close()

    async def aclose(self) -> None:
        if self.store is not None:
            await self.store.aclose()


def complete_entries(registry: Registry, messages: MessageMaker) -> list[Entry]:
    """Return the entries of all tasks, each signature filled in and checked."""
    return [entry.complete(messages.complete) for entry in registry.schedules.values()]
