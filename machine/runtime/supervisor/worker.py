"""
A worker as one object: launch it, and quit it. Machinery's Worker.

It joins a supervisor with its loops and its children. `build` makes it, because
only `build` knows how a broker is made from a configuration.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from machine.config import Config
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.runtime.child.child import ChildSettings
from machine.runtime.child.session import new_worker_id
from machine.runtime.chords import Chords, ChordSweep
from machine.runtime.health import PATIENCE_S, HealthFile
from machine.runtime.loop import Loop
from machine.runtime.supervisor.forking import (
    ChildForker,
    Closable,
    WorkerFactories,
    prepare_exporter,
)
from machine.runtime.supervisor.heartbeat import Heartbeat
from machine.runtime.supervisor.metrics import Exporter
from machine.runtime.supervisor.promoter import Promoter
from machine.runtime.supervisor.reaper import Reaper
from machine.runtime.supervisor.reload import Reload
from machine.runtime.supervisor.supervisor import Generation, Supervisor
from machine.runtime.supervisor.timetable import TimetableInbox

#: Seconds between two looks for armed chords.
_SWEEP_S = 1.0


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """
    The settings of a worker. Times in seconds.

    Attributes:
        name: For people.
        processes: Children, ≥ 1.
        child: The settings of each child.
        lease_s: A worker that was silent for so long is dead.
        heartbeat_s: Between two renewals of the leases.
        promote_s: Between two looks for delayed tasks that are due.
        shutdown_s: What running tasks get after the first signal.
        handle_signals: Whether SIGTERM and SIGINT stop it.
        health_file: See `HealthFile`; "" = none.
        metrics_host: Address to serve metrics on.
        metrics_port: Its port; 0 = no metrics.
    """

    name: str
    processes: int
    child: ChildSettings
    lease_s: float
    heartbeat_s: float
    promote_s: float
    shutdown_s: float
    handle_signals: bool
    health_file: str
    metrics_host: str
    metrics_port: int

    @classmethod
    def of(cls, config: Config, name: str = "") -> Self:
        """Return what a configuration means; ``name`` goes before the configured one."""
        return cls(
            name=name or config.worker_name or socket.gethostname(),
            processes=config.process_count,
            child=ChildSettings.of(config),
            lease_s=config.worker_lease_s,
            heartbeat_s=config.heartbeat_s,
            promote_s=config.redis.delayed_tasks_poll_period / 1000,
            shutdown_s=config.worker_shutdown_timeout_s,
            handle_signals=not config.no_unix_signals,
            health_file=config.worker_health_file,
            metrics_host=config.worker_metrics_host,
            metrics_port=config.worker_metrics_port,
        )


@dataclass(frozen=True, kw_only=True)
class LiveReload:
    """
    How a running worker changes its settings.

    Attributes:
        config: The settings it is started with; they can ``reload``.
        make: Returns what a worker with other settings is made of.
        on_change: Called with changed settings before they count, to set up the log.
    """

    config: Config
    make: Callable[[Config], tuple[WorkerFactories, WorkerSettings]]
    on_change: Callable[[Config], None]


class Worker:
    """A supervisor and its children, not started yet."""

    def __init__(
        self,
        factories: WorkerFactories,
        settings: WorkerSettings,
        clock: Clock,
        live: LiveReload | None = None,
    ) -> None:
        self._factories, self._settings = factories, settings
        self._clock, self._live = clock, live
        self._supervisor: Supervisor | None = None
        # `quit` may be called before there is a supervisor: `launch` passes such calls on to it.
        self._quit_lock = threading.Lock()
        self._quit_count = 0
        self._health_file = HealthFile(settings.health_file, PATIENCE_S)

    def launch(self) -> int:
        """
        Work until told to stop; return the exit status.

        The first SIGTERM or SIGINT lets running tasks end, a second one does
        not. 0 = all ended, 1 = cut short, 78 = could not start.
        """
        settings, inbox = self._settings, TimetableInbox()
        opened: list[Closable] = [inbox]
        exporter: Exporter | None = None
        if settings.metrics_port:
            prepare = partial(prepare_exporter, os.getpid(), opened)
            exporter = Exporter(settings.metrics_host, settings.metrics_port, prepare)
        try:
            forker = ChildForker(self._clock, inbox, self._health_file, exporter, opened)
            broker, backend = self._factories.broker(), self._factories.backend()
            scheduler = self._factories.scheduler(backend, inbox)
            opened += (broker, backend, scheduler)
            loops = [scheduler, *self._make_reload(forker), *([exporter] if exporter else [])]
            return self._run_supervisor(forker, broker, backend, loops)
        finally:
            for one in opened:
                one.close()
            if exporter is not None:
                exporter.close()

    def _run_supervisor(
        self, forker: ChildForker, broker: Broker, backend: Backend, more_loops: Sequence[Loop]
    ) -> int:
        settings, own_id = self._settings, new_worker_id()
        queues, rules = settings.child.queues, settings.child.rules
        chords = Chords(broker, backend, rules, self._clock)
        reaper = Reaper(
            broker,
            backend,
            rules,
            self._clock,
            chords,
            queues,
            own_id,
            lease_s=settings.lease_s,
            heartbeat_s=settings.heartbeat_s,
        )
        loops: list[Loop] = [
            Heartbeat(broker, queues, self._list_worker_ids, settings.heartbeat_s, own_id),
            Promoter(broker, settings.promote_s),
            ChordSweep(broker, chords, queues, _SWEEP_S),
            *more_loops,
        ]
        config = self._live.config if self._live else None
        generation = self._make_generation(forker, self._factories, settings, config)
        supervisor = Supervisor(
            broker, queues, own_id, generation, reaper, loops, on_turn=self._update_health
        )
        with self._quit_lock:
            self._supervisor = supervisor
            for _ in range(self._quit_count):
                supervisor.stop()
        listed = ", ".join(map(repr, queues))
        banner = (
            f"worker {settings.name}: {settings.processes} processes x {settings.child.slots} "
            f"tasks on {listed}"
        )
        in_main = threading.current_thread() is threading.main_thread()
        return supervisor.run(handle_signals=settings.handle_signals and in_main, banner=banner)

    def quit(self) -> None:
        """Stop gently, from another thread; a second call stops at once."""
        with self._quit_lock:
            self._quit_count += 1
            if self._supervisor is not None:
                self._supervisor.stop()

    def _list_worker_ids(self) -> list[str]:
        return self._supervisor.worker_ids() if self._supervisor is not None else []

    def _update_health(self) -> None:
        if self._supervisor is not None:
            self._health_file.update(self._supervisor.process_ids())

    def _make_generation(
        self,
        forker: ChildForker,
        factories: WorkerFactories,
        settings: WorkerSettings,
        config: Config | None,
    ) -> Generation:
        # A child may sleep for `block_s` in each turn. Older generations may still run, so the
        # patience never shrinks.
        patience_s = PATIENCE_S + settings.child.block_s
        self._health_file.patience_s = max(self._health_file.patience_s, patience_s)
        return Generation(
            processes=settings.processes,
            shutdown_s=settings.shutdown_s,
            spawn=partial(forker.fork, factories, settings.child),
            config=config,
        )

    def _make_reload(self, forker: ChildForker) -> list[Loop]:
        """Return the loop that applies changed settings; none if they cannot change."""
        live = self._live
        if live is None:
            return []

        def running() -> Config:
            generation = self._supervisor.generation if self._supervisor is not None else None
            return (generation and generation.config) or live.config

        def apply(config: Config) -> None:
            if self._supervisor is not None:
                factories, settings = live.make(config)
                generation = self._make_generation(forker, factories, settings, config)
                self._supervisor.replace_generation(generation)

        return [Reload(live.config, running, apply, live.on_change)]
