"""
A worker as one object: launch it, and quit it. Machinery's Worker.

Joins a supervisor with its duties and forks its children. Made by `build`,
which knows how a broker is made from a configuration.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from machine.config import Config
from machine.errors import MachineError
from machine.periodic.entries import Entry
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.registry import Registry
from machine.runtime.child.child import Child, Ways
from machine.runtime.child.instruments import Watch
from machine.runtime.child.session import new_worker_id
from machine.runtime.chords import Chords, ChordSweep
from machine.runtime.health import PATIENCE_S, Pulse, Vitals
from machine.runtime.loop import Loop
from machine.runtime.supervisor.heartbeat import Heartbeat
from machine.runtime.supervisor.metrics import Exporter
from machine.runtime.supervisor.promoter import Promoter
from machine.runtime.supervisor.reaper import Reaper
from machine.runtime.supervisor.reload import Reload
from machine.runtime.supervisor.scheduler import Scheduler
from machine.runtime.supervisor.supervisor import CANNOT_START, Crew, Supervisor
from machine.runtime.supervisor.timetable import TimetableInbox, send_timetable

_log = logging.getLogger("machine.worker")
_PR_SET_PDEATHSIG = 1
_SWEEP_S = 1.0
#: The signals that mean "stop".
_OURS = {signal.SIGTERM, signal.SIGINT}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """
    How a worker gets what it is made of; each is called in the process that uses it.

    Attributes:
        broker: Makes a worker's broker.
        backend: Makes a backend.
        registry: Imports the tasks, and returns them.
        timetable: Returns what of these is periodic.
        scheduler: Makes the supervisor's, of what children report.
        watch: Makes what counts and traces, of the directory to count in ("" = count
            nothing); ``None`` where nothing is counted or traced.
    """

    broker: Callable[[], Broker]
    backend: Callable[[], Backend]
    registry: Callable[[], Registry]
    timetable: Callable[[Registry], list[Entry]]
    scheduler: Callable[[Backend, TimetableInbox], Scheduler]
    watch: Callable[[str], Watch | None] = lambda _directory: None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    What a worker is to be. Times in seconds.

    Attributes:
        name: For people.
        processes: Children, ≥ 1.
        ways: How each child works.
        lease_s: A silent worker is dead after this.
        heartbeat_s: Between two renewals.
        promote_s: Between two looks for delayed tasks that are due.
        shutdown_s: What running tasks get after the first signal.
        handle_signals: Whether SIGTERM and SIGINT are ours.
        health_file: Touched while all is well, says what is wrong otherwise; or "".
        metrics_host: Address to show metrics on.
        metrics_port: Its port; 0 = no metrics.
    """

    name: str
    processes: int
    ways: Ways
    lease_s: float
    heartbeat_s: float
    promote_s: float
    shutdown_s: float
    handle_signals: bool = True
    health_file: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0


@dataclass(frozen=True, kw_only=True)
class Live:
    """
    How a worker takes up other settings while it runs.

    Attributes:
        config: What it is started with; it knows how to ``reload``.
        made: Returns what children with other settings are made of.
        on_change: Called with these, for the log's own settings.
    """

    config: Config
    made: Callable[[Config], tuple[Parts, Plan]]
    on_change: Callable[[Config], None]


class Worker:
    """A supervisor and its children, not started yet."""

    def __init__(self, parts: Parts, plan: Plan, clock: Clock, live: Live | None = None) -> None:
        self._parts, self._plan, self._clock, self._live = parts, plan, clock, live
        self._supervisor: Supervisor | None = None
        #: So that a quit that comes before the supervisor is there is not lost.
        self._stopping = threading.Lock()
        self._quits = 0
        self._open: list[Broker | Backend | Scheduler] = []
        self._exporter: Exporter | None = None
        self._inbox = TimetableInbox()
        self._vitals = Vitals(plan.health_file, PATIENCE_S)

    def launch(self) -> int:
        """
        Work until told to stop; return the exit status.

        The first SIGTERM or SIGINT lets running tasks end, a second one does
        not. 0 = all ended, 1 = cut short, 78 = could not start.
        """
        plan = self._plan
        if plan.metrics_port:
            prepare = partial(self._be_exporter, os.getpid())
            self._exporter = Exporter(plan.metrics_host, plan.metrics_port, prepare)
        try:
            return self._launch(plan)
        finally:
            for one in (*self._open, self._inbox):
                one.close()
            if self._exporter is not None:
                self._exporter.close()

    def _launch(self, plan: Plan) -> int:
        own_id = new_worker_id()
        broker, backend = self._parts.broker(), self._parts.backend()
        scheduler = self._parts.scheduler(backend, self._inbox)
        self._open = [broker, backend, scheduler]
        queues, terms = plan.ways.queues, plan.ways.terms
        chords = Chords(broker, backend, terms, self._clock)
        reaper = Reaper(
            *(broker, backend, terms, self._clock, chords, queues, own_id),
            lease_s=plan.lease_s,
            heartbeat_s=plan.heartbeat_s,
        )
        heartbeat = Heartbeat(broker, queues, self._children, plan.heartbeat_s, own_id)
        loops: list[Loop] = [
            heartbeat,
            Promoter(broker, plan.promote_s),
            ChordSweep(broker, chords, queues, _SWEEP_S),
            scheduler,
            *self._reloads(),
            *([self._exporter] if self._exporter is not None else []),
        ]
        crew = self._crew(self._parts, plan, self._live.config if self._live else None)
        supervisor = Supervisor(*(broker, queues, own_id, crew, reaper, loops), beat=self._beat)
        with self._stopping:
            self._supervisor = supervisor
            for _ in range(self._quits):
                supervisor.stop()
        slots, names = plan.ways.slots, ", ".join(map(repr, queues))
        greeting = f"worker {plan.name}: {plan.processes} processes x {slots} tasks on {names}"
        in_main = threading.current_thread() is threading.main_thread()
        try:
            return supervisor.run(handle_signals=plan.handle_signals and in_main, greeting=greeting)
        finally:
            for one in (*self._open, self._inbox):
                one.close()

    def quit(self) -> None:
        """Stop gently, from another thread; a second call stops at once."""
        with self._stopping:
            self._quits += 1
            if self._supervisor is not None:
                self._supervisor.stop()

    def _children(self) -> list[str]:
        return self._supervisor.worker_ids() if self._supervisor is not None else []

    def _crew(self, parts: Parts, plan: Plan, config: Config | None) -> Crew:
        self._vitals.patience_s = max(self._vitals.patience_s, PATIENCE_S + plan.ways.block_s)
        return Crew(
            processes=plan.processes,
            shutdown_s=plan.shutdown_s,
            spawn=partial(self._spawn, parts, plan.ways),
            config=config,
        )

    def _reloads(self) -> list[Loop]:
        """Return the duty that takes up changed settings, where there is one."""
        live = self._live
        if live is None:
            return []

        def running() -> Config:
            crew = self._supervisor.crew if self._supervisor is not None else None
            return (crew and crew.config) or live.config

        def take_up(config: Config) -> None:
            if self._supervisor is not None:
                self._supervisor.roll(self._crew(*live.made(config), config))

        return [Reload(live.config, running, take_up, live.on_change)]

    def _beat(self) -> None:
        if self._supervisor is not None:
            self._vitals.look(self._supervisor.process_ids())

    def _spawn(self, parts: Parts, ways: Ways, reports: int) -> int:
        """Fork a child. The supervisor has one thread and no open links, so a fork is safe."""
        parent = os.getpid()
        timetable, pulse = self._inbox.open(), Pulse()
        gc.freeze()  # what the children share stays shared
        # Not before the child has handlers of its own: the supervisor's would stop its siblings.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        pid = os.fork()
        if pid == 0:
            status = CANNOT_START
            try:
                _die_with(parent)
                status = self._be_child(parts, ways, reports, timetable, pulse)
            except MachineError as error:
                _log.error("cannot start: %s", error)
            except BaseException:  # noqa: BLE001 - nothing may come back into the supervisor's code
                _log.exception("cannot start")
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # Not sys.exit: threads of tasks that never end must not keep the process.
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        os.close(timetable)
        self._vitals.expect(pid, pulse)
        return pid

    def _be_child(
        self, parts: Parts, ways: Ways, reports: int, timetable: int, pulse: Pulse
    ) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        for inherited in (*self._open, self._inbox):
            inherited.close()  # ours to close, not to speak on: the supervisor still does
        if self._exporter is not None:
            self._exporter.close()
        watch = parts.watch(self._exporter.directory if self._exporter is not None else "")
        registry = parts.registry()
        send_timetable(timetable, parts.timetable(registry))
        child = Child(
            *(parts.broker(), parts.backend(), registry, ways, self._clock),
            on_incarnation=lambda worker_id: _report(reports, worker_id),
            pulse=pulse,
            watch=watch,
        )
        signal.signal(signal.SIGTERM, lambda *_: child.stop())
        child.run()
        if watch is not None:
            watch.close()
        return 0

    def _be_exporter(self, parent: int) -> None:
        _die_with(parent)
        for inherited in (*self._open, self._inbox):
            inherited.close()


def _report(reports: int, worker_id: str) -> None:
    try:
        os.write(reports, f"{worker_id}\n".encode())
    except BrokenPipeError:
        os._exit(1)  # nobody renews our leases any more


def _die_with(parent: int) -> None:
    """Have the kernel kill us when the supervisor dies: nobody would renew our lease then."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:  # pragma: no cover - where there is no prctl
    while os.getppid() == parent:
        time.sleep(0.5)  # without prctl a parent's death can only be asked for
    os._exit(1)
