"""
How entries get into the timetable: ``@periodic`` above a task, or a server's four methods.

What is entered is checked here and now, so that a slip shows at the start and not at night. Who
looks at the clock is the runtime's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from machine.errors import ConfigError, SignatureError
from machine.periodic.entries import Entry, Ways, check_name
from machine.periodic.marks import PeriodicState, states
from machine.periodic.runs import run_of
from machine.registry import Registry
from machine.sending.messages import MessageMaker
from machine.wire.signature import Signature
from machine.workflow.pieces import Piece

if TYPE_CHECKING:
    from machine.config import Config
    from machine.ports.periodic import Ticker


class Scheduling:
    """
    The timetable's side of a server, which is one.

    Workers made by this server see to what is registered here, and so does `start_scheduler`;
    a program that does neither only checks it. Registering the same again changes nothing.

    Args:
        registry: Keeps the entries.
        messages: Fills in and checks what is to be sent.

    Attributes:
        scheduler_factory: Makes a scheduler of the server; set by `build`.
        ticker: Keeps the timetable's marks, for canceling; set by `build`.
        config: The settings.
    """

    config: Config

    def __init__(self, registry: Registry, messages: MessageMaker) -> None:
        self.registry = registry
        self._messages = messages
        self._schedulers: list[Any] = []
        self._entered: list[Entry] = []
        self._whole: list[Entry] = []
        self.scheduler_factory: Callable[[Any], Any] | None = None
        self.ticker: Ticker | None = None

    def register_periodic_task(
        self,
        spec: str | timedelta,
        name: str,
        signature: Signature | Piece[Any],
        **ways: Unpack[Ways],
    ) -> None:
        """
        Send a task at each time of ``spec``, as Machinery's RegisterPeriodicTask does.

        Args:
            spec: When; see `periodic`.
            name: What the timetable knows it by; one entry for each name.
            signature: A template: each run is a copy with an id of its own. A workflow may
                stand here, and wherever the other three take a signature, but for the callback.
            ways: ``catch_up``, ``overlap`` and ``tz``, as for `periodic`.

        Raises:
            ConfigError: The specification means no times.
            SignatureError: It cannot be sent, or the name is taken by something else.
        """
        self._register(Entry.of("task", spec, name, [signature], **ways))

    def register_periodic_chain(
        self,
        spec: str | timedelta,
        name: str,
        *signatures: Signature | Piece[Any],
        **ways: Unpack[Ways],
    ) -> None:
        """Send a chain at each time of ``spec``; see `register_periodic_task`."""
        self._register(Entry.of("chain", spec, name, signatures, **ways))

    def register_periodic_group(
        self,
        spec: str | timedelta,
        name: str,
        send_concurrency: int,
        *signatures: Signature | Piece[Any],
        **ways: Unpack[Ways],
    ) -> None:
        """Send a group at each time of ``spec``; ``send_concurrency`` is only checked."""
        _check_concurrency(send_concurrency)
        self._register(Entry.of("group", spec, name, signatures, **ways))

    def register_periodic_chord(
        self,
        spec: str | timedelta,
        name: str,
        send_concurrency: int,
        callback: Signature,
        *signatures: Signature | Piece[Any],
        **ways: Unpack[Ways],
    ) -> None:
        """Send a group with a callback at each time of ``spec``; see the others."""
        _check_concurrency(send_concurrency)
        self._register(Entry.of("chord", spec, name, signatures, callback, **ways))

    def new_scheduler(self) -> Any:
        """Return a scheduler of what is registered here; ``run_once(now_s)`` is one look."""
        if self.scheduler_factory is None:
            raise ConfigError(
                "This server cannot make schedulers; make it by machine.connect(), which can."
            )
        made = self.scheduler_factory(self)
        self._schedulers.append(made)
        return made

    def start_scheduler(self) -> Any:
        """
        Send what is registered here at its times, from a thread, until `close`.

        Returns:
            The scheduler, which has a ``stop()``.
        """
        return self.new_scheduler().start()

    def stop_schedulers(self) -> None:
        """Stop every scheduler of this server."""
        while self._schedulers:
            self._schedulers.pop().stop()

    def cancel_periodic(self, name: str) -> bool:
        """
        Let nothing be sent for an entry any more, by whichever scheduler, until `resume_periodic`.

        It is kept in the store and so outlives every process. What was sent before still
        runs; the times that pass meanwhile are over and never made up for.

        Args:
            name: The entry's; this program need not know it.

        Returns:
            Whether that changed something; false too if a lost answer had it asked twice.

        Raises:
            SignatureError: No entry can have this name.
        """
        return self._ticker_for(name).switch(self._home, name, canceled=True)

    async def acancel_periodic(self, name: str) -> bool:
        """Do what `cancel_periodic` does, without blocking the event loop."""
        return await self._ticker_for(name).aswitch(self._home, name, canceled=True)

    def resume_periodic(self, name: str) -> bool:
        """
        Let an entry be sent again, from now on: the opposite of `cancel_periodic`.

        An interval counts from this moment. Arguments, answer and errors are the same.
        """
        return self._ticker_for(name).switch(self._home, name, canceled=False)

    async def aresume_periodic(self, name: str) -> bool:
        """Do what `resume_periodic` does, without blocking the event loop."""
        return await self._ticker_for(name).aswitch(self._home, name, canceled=False)

    def periodic_tasks(self) -> list[PeriodicState]:
        """
        Return where each entry stands: those registered here, then what only the store knows.

        Schedulers work by the store's clock, so these times are by that too.
        """
        return states(self.timetable(), *self._needed_ticker().marks(self._home))

    async def aperiodic_tasks(self) -> list[PeriodicState]:
        """Do what `periodic_tasks` does, without blocking the event loop."""
        return states(self.timetable(), *await self._needed_ticker().amarks(self._home))

    def _ticker_for(self, name: str) -> Ticker:
        check_name(name)
        return self._needed_ticker()

    def _needed_ticker(self) -> Ticker:
        if self.ticker is None:
            raise ConfigError(
                "This server does not know where its timetable is; make it by "
                "machine.connect(), which tells it."
            )
        return self.ticker

    @property
    def _home(self) -> str:
        return self.config.default_queue

    def timetable(self) -> list[Entry]:
        """Return what is registered here, each entry as it will be sent."""
        entered = list(self.registry.schedules.values())
        if entered != self._entered:
            self._whole = completed(self.registry, self._messages)
            self._entered = entered
        return self._whole

    def _register(self, entry: Entry) -> None:
        whole = entry.completed(self._messages.complete)
        # Encoded once, for what only shows then: its size, values that JSON cannot hold.
        self._messages.make(run_of(whole, "", 0).signatures, time.time_ns())
        self.registry.add_schedule(entry)


def completed(registry: Registry, messages: MessageMaker) -> list[Entry]:
    """Return the entries of all tasks, each signature filled in and checked."""
    return [entry.completed(messages.complete) for entry in registry.schedules.values()]


def _check_concurrency(send_concurrency: int) -> None:
    if send_concurrency < 0:
        raise SignatureError(
            f"send_concurrency {send_concurrency} is out of bounds; give 0 or more."
        )
