"""
Forks the children of a worker, and the process of its exporter.

A fork copies one thread. The supervisor has only one and leaves its connections
to itself, so the copy is whole: the child closes what it inherited, imports its
tasks and opens connections of its own.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from machine.errors import MachineError
from machine.periodic.entries import Entry
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.registry import Registry
from machine.runtime.child.child import Child, ChildSettings
from machine.runtime.child.instruments import Instruments
from machine.runtime.chords import Chords
from machine.runtime.health import HealthFile, Liveness
from machine.runtime.supervisor.metrics import Exporter
from machine.runtime.supervisor.scheduler import Scheduler
from machine.runtime.supervisor.supervisor import CANNOT_START
from machine.runtime.supervisor.timetable import TimetableInbox, send_timetable

_log = logging.getLogger("machine.worker")
_PR_SET_PDEATHSIG = 1
#: The signals that stop a worker.
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


@dataclass(frozen=True, kw_only=True)
class WorkerFactories:
    """
    Make the parts of a worker; each is called in the process that uses the part.

    Attributes:
        broker: Makes a worker's broker.
        backend: Makes a backend.
        registry: Imports the tasks, and returns them.
        timetable: Returns the entries of the tasks that are periodic.
        scheduler: Makes the supervisor's scheduler, of the entries that children report.
        instruments: Makes what counts and traces tasks, from the directory for its files
            ("" = count nothing); returns ``None`` if nothing is counted or traced.
    """

    broker: Callable[[], Broker]
    backend: Callable[[], Backend]
    registry: Callable[[], Registry]
    timetable: Callable[[Registry], list[Entry]]
    scheduler: Callable[[Backend, TimetableInbox], Scheduler]
    instruments: Callable[[str], Instruments | None] = lambda _directory: None


class Closable(Protocol):
    """Something with connections or descriptors."""

    def close(self) -> None:
        """Close them; a second call does nothing."""
        ...


class ChildForker:
    """
    Forks the children of one worker.

    Args:
        clock: The children's clock.
        inbox: Where they report their timetables.
        health_file: Looks at their marks.
        exporter: Serves their metrics; ``None`` = they count nothing.
        opened: What the supervisor has opened, also later; each child closes its copies.
    """

    def __init__(
        self,
        clock: Clock,
        inbox: TimetableInbox,
        health_file: HealthFile,
        exporter: Exporter | None,
        opened: Sequence[Closable],
    ) -> None:
        self._clock, self._inbox, self._opened = clock, inbox, opened
        self._health_file, self._exporter = health_file, exporter

    def fork(self, factories: WorkerFactories, settings: ChildSettings, reports: int) -> int:
        """
        Fork a child and return its pid.

        Args:
            factories: Make its parts.
            settings: How it works.
            reports: Descriptor that it writes its worker ids to, a line each.
        """
        parent = os.getpid()
        timetable, liveness = self._inbox.open(), Liveness()
        gc.freeze()  # the collector would write to pages that parent and children share
        # Until the child has handlers of its own: the supervisor's would stop its siblings.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        pid = os.fork()
        if pid == 0:
            status = CANNOT_START
            try:
                die_with(parent)
                status = self._run_child(factories, settings, reports, timetable, liveness)
            except MachineError as error:
                _log.error("cannot start: %s", error)
            except BaseException:  # noqa: BLE001 - the child must never return into this code
                _log.exception("cannot start")
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # Not sys.exit: threads of tasks that never end must not keep the process.
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        os.close(timetable)
        self._health_file.watch_child(pid, liveness)
        return pid

    def _run_child(
        self,
        factories: WorkerFactories,
        settings: ChildSettings,
        reports: int,
        timetable: int,
        liveness: Liveness,
    ) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Ctrl-C goes to the whole process group; the supervisor tells its children to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        _close_inherited(self._opened)
        directory = ""
        if self._exporter is not None:
            directory = self._exporter.directory
            self._exporter.close()
        instruments = factories.instruments(directory)  # before tasks make metrics of their own
        registry = factories.registry()
        send_timetable(timetable, factories.timetable(registry))
        broker, backend = factories.broker(), factories.backend()
        child = Child(
            broker,
            Chords(broker, backend, settings.rules, self._clock),
            backend,
            registry,
            settings,
            self._clock,
            on_incarnation=lambda worker_id: _report_id(reports, worker_id),
            liveness=liveness,
            instruments=instruments,
        )
        signal.signal(signal.SIGTERM, lambda *_: child.stop())
        child.run()
        if instruments is not None:
            instruments.close()
        return 0


def prepare_exporter(parent: int, opened: Sequence[Closable]) -> None:
    """Prepare the exporter's process after the fork: it dies with its supervisor."""
    die_with(parent)
    _close_inherited(opened)


def _close_inherited(opened: Sequence[Closable]) -> None:
    # Only this process's copies. To speak on them would mix with what the supervisor says.
    for one in opened:
        one.close()


def _report_id(reports: int, worker_id: str) -> None:
    try:
        os.write(reports, f"{worker_id}\n".encode())
    except BrokenPipeError:
        os._exit(1)  # the supervisor is gone: nobody would renew the lease of this id


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its supervisor dies: nobody renews its lease then."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
    else:
        threading.Thread(target=_poll_parent, args=(parent,), daemon=True).start()


def _poll_parent(parent: int) -> None:  # pragma: no cover - where there is no prctl
    while os.getppid() == parent:
        time.sleep(0.5)  # no call waits for the end of a parent
    os._exit(1)
