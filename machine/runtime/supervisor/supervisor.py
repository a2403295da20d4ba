"""
The supervisor: starts the children of a worker, renews their leases, takes the claims of dead ones.

It runs no task and imports none, so that none of your code can stall its
heartbeat. It notices a child's death at once, by its process, and a silent
worker on another host by its stamp. It has one thread, so that it can fork, with
periodic loops and signal handlers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from machine.config import Config
from machine.errors import BrokerUnavailable, ConfigError, MachineError
from machine.ports.broker import Broker
from machine.ports.moves import Release
from machine.runtime.loop import Loop, Loops
from machine.runtime.supervisor.reaper import Reaper, may_run_again
from machine.runtime.wakeup import Wakeup

_log = logging.getLogger("machine.worker")
#: Exit status of a child that cannot work whatever happens: a broken tasks module, bad settings.
CANNOT_START = 78
#: After a life shorter than this a child is started again after a pause that grows, seconds.
_SHORT_LIFE_S = 1.0
_LONGEST_PAUSE_S = 30.0
#: Seconds between two checks of the children, where no SIGCHLD tells of an end.
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """
    Children with the same settings. Changed settings make another generation.

    Attributes:
        processes: Children to keep running, ≥ 1.
        shutdown_s: Seconds that running tasks get after the first signal.
        spawn: Forks a child that writes its worker ids, a line each, to the given
            descriptor, and returns the child's pid.
        config: The settings it was made of; ``None`` = they never change.
    """

    processes: int
    shutdown_s: float
    spawn: Callable[[int], int]
    config: Config | None = None


@dataclass(slots=True)
class Process:
    """
    A child process.

    Attributes:
        pid: Its process id.
        generation: Where it belongs.
        reports: The pipe that it writes its worker ids to.
        started_s: Monotonic second of its start.
        worker_ids: All ids it has had; claims may be held under each.
        unread: The beginning of an id whose end has not come.
    """

    pid: int
    generation: Generation
    reports: int
    started_s: float
    worker_ids: list[str]
    unread: bytes = b""


class Supervisor:
    """
    Runs a generation of children until `stop`.

    Args:
        broker: The supervisor's own, made with ``worker=True``.
        queues: What the children consume.
        own_id: The worker id it registers, which claims that must not run again are moved to.
        generation: The first children; `replace_generation` starts others.
        reaper: Runs as a loop, and takes the claims of children that end.
        loops: The other duties (heartbeat, promoter, chord sweep).
        on_turn: Called a few times a second (for the health file).
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        own_id: str,
        generation: Generation,
        reaper: Reaper,
        loops: Sequence[Loop],
        *,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker, self._queues, self._own_id = broker, queues, own_id
        #: The generation to keep running, and the last one of which a child was seen to work.
        self._generation = self._working = generation
        self._reaper = reaper
        # After each loop too: one may wait for the server for seconds.
        self._loops = Loops([*loops, reaper], on_run=on_turn)
        self._on_turn = on_turn
        self._processes: dict[int, Process] = {}
        self._start_at_s = 0.0
        self._pause_s = 0.0
        self._signals = 0
        self._stopped_at_s: float | None = None
        self._status = 0
        #: Worker ids of children that have ended and whose claims are still to be taken.
        self._unreaped: list[str] = []
        self._wakeup = Wakeup(lambda: broker.waker(queues))

    def worker_ids(self) -> list[str]:
        """Return the worker ids of all children that live."""
        return [
            worker_id for process in self._processes.values() for worker_id in process.worker_ids
        ]

    def process_ids(self) -> list[int]:
        """Return the pids of all children that have not been seen to end."""
        return list(self._processes)

    @property
    def generation(self) -> Generation:
        """Return the generation that is kept running."""
        return self._generation

    def replace_generation(self, generation: Generation) -> None:
        """
        Start another generation, which takes the place of this one; for a loop of ours.

        Its children start at once. As soon as one of them works, the older ones claim nothing
        more, and each ends after what it runs, however long that takes. If the new ones cannot
        start, the older ones stay.
        """
        if self._generation is not self._working:
            self._signal(signal.SIGTERM, self._generation)
        self._generation = generation
        self._start_at_s = self._pause_s = 0.0
        self._wakeup.wake()

    def run(self, *, handle_signals: bool = True, banner: str = "") -> int:
        """
        Work until stopped.

        Args:
            handle_signals: Whether SIGTERM and SIGINT stop it; only on the main thread.
            banner: The first line of the log.

        Returns:
            The exit status: 0 = all tasks ended, 1 = cut short, 78 = cannot start.

        Raises:
            BrokerRefused: The server answers, and refuses us.
            ConfigError: The server may delete queued tasks.
        """
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGCHLD, lambda *_: self._wakeup.wake())
        _log.info("%s", banner)  # after the handlers: whoever reads this line may stop us
        self._on_turn()  # to register while the server is away takes seconds
        self._register()
        while True:
            now_s = time.monotonic()
            self._check_children(now_s)
            if self._stopped_at_s is None:
                self._start_missing(now_s)
            elif not self._processes or self._signals > 1:
                break
            elif now_s > self._stopped_at_s + self._generation.shutdown_s:
                _log.warning(
                    "tasks still run after %.0f s; they go back", self._generation.shutdown_s
                )
                break
            next_s = self._loops.run_due(now_s)
            self._on_turn()
            self._wakeup.sleep(min(_LOOK_S, next_s - time.monotonic()))
        if handle_signals:  # another signal must not interrupt the shutdown
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        return self._shut_down()

    def stop(self) -> None:
        """Stop gently; a second call stops at once. Safe in a signal handler and another thread."""
        self._signals += 1
        if self._stopped_at_s is None:
            self._stopped_at_s = time.monotonic()
        self._signal(signal.SIGTERM)
        self._wakeup.wake()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()

    def _register(self) -> None:
        """Register, and check the eviction policy. If the server is away, a heartbeat registers."""
        try:
            self._broker.ping()
            policy = self._broker.eviction_policy()
            self._broker.register(self._own_id, self._queues)
        except BrokerUnavailable as error:
            _log.warning("waiting for Redis: %s", error)
            return
        if policy.startswith("allkeys"):
            raise ConfigError(
                f"Redis may delete queued tasks: its maxmemory-policy is '{policy}'. "
                "Set it to noeviction (CONFIG SET maxmemory-policy noeviction)."
            )
        if policy.startswith("volatile"):
            _log.warning(
                "Redis may delete results before their time: its maxmemory-policy is '%s'; "
                "noeviction is the safe one",
                policy,
            )

    # -- children --------------------------------------------------------------------------
    def _start_missing(self, now_s: float) -> None:
        """Start the children that are missing."""
        generation = self._generation
        missing = generation.processes - sum(
            p.generation is generation for p in self._processes.values()
        )
        for _ in range(missing if now_s >= self._start_at_s else 0):
            reports, out = os.pipe()
            os.set_blocking(reports, False)
            pid = generation.spawn(out)
            os.close(out)
            self._processes[pid] = Process(pid, generation, reports, now_s, [])
            if self._stopped_at_s is not None:  # `stop` came during the fork and missed this child
                self._signal(signal.SIGTERM)
                return

    def _check_children(self, now_s: float) -> None:
        """Read the reports of all children; take the claims of those that have ended."""
        for process in list(self._processes.values()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            self._read_reports(process)
            if pid:
                del self._processes[pid]
                os.close(process.reports)
                self._unreaped += process.worker_ids
                self._handle_end(process, os.waitstatus_to_exitcode(status), now_s)
            elif process.worker_ids and process.generation is self._generation is not self._working:
                self._retire_older()
        # Not while we stop: then their claims go back without counting as a crash, in _shut_down.
        while self._unreaped and self._stopped_at_s is None:
            try:
                self._reaper.reap_at_once(self._unreaped[0])
            except BrokerUnavailable:
                return
            except MachineError as error:
                _log.error("cannot take back what a dead child held: %s", error)
            self._unreaped.pop(0)

    def _retire_older(self) -> None:
        """Stop the older generations: a child of the new one has its tasks and is registered."""
        self._working = self._generation
        for generation in {process.generation for process in self._processes.values()} - {
            self._generation
        }:
            self._signal(signal.SIGTERM, generation)

    def _handle_end(self, process: Process, code: int, now_s: float) -> None:
        """Decide what follows from a child's end: another child, the old settings, or our end."""
        pid, lived_s = process.pid, now_s - process.started_s
        if process.generation is not self._generation:
            _log.info("child %d, relieved, ended with status %d", pid, code)
        elif code == CANNOT_START and self._generation is not self._working:
            _log.error("the changed settings cannot work; those before them stay")
            self._signal(signal.SIGTERM, self._generation)
            self._generation = self._working
        elif code == CANNOT_START:
            self._status = CANNOT_START
            self.stop()
        elif self._stopped_at_s is None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self._pause_s = (
                min(_LONGEST_PAUSE_S, max(0.1, self._pause_s * 2))
                if lived_s < _SHORT_LIFE_S
                else 0.0
            )
            self._start_at_s = now_s + self._pause_s
            _log.warning("child %d %s; another one starts in %.1f s", pid, how, self._pause_s)

    def _read_reports(self, process: Process) -> None:
        try:
            while data := os.read(process.reports, 4096):
                process.unread += data
        except BlockingIOError:
            pass
        *lines, process.unread = process.unread.split(b"\n")
        process.worker_ids += [line.decode() for line in lines if line]

    def _signal(self, number: signal.Signals, generation: Generation | None = None) -> None:
        """Send a signal to the children of one generation, or to all of them."""
        for process in list(self._processes.values()):
            if generation not in (None, process.generation):
                continue
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, number)

    # -- shutdown --------------------------------------------------------------------------
    def _shut_down(self) -> int:
        """
        Kill the children that are left, give back their claims, leave the roster.

        In this order: a child that is dead can settle nothing any more, so that no task
        runs twice. To be stopped is no crash of a task's own, so it is not counted.
        """
        cut_short = self._signals > 1
        left = self._unreaped + self.worker_ids()
        self._signal(signal.SIGKILL)
        for process in self._processes.values():
            os.waitpid(process.pid, 0)
            self._read_reports(process)
            left += [w for w in process.worker_ids if w not in left]
            os.close(process.reports)
        self._processes.clear()
        try:
            for worker_id in left:
                self._release(worker_id)
            self._broker.unregister(self._own_id, self._queues)
        except MachineError as error:
            _log.warning("left without a goodbye: %s; leases will run out", error)
        _log.info("worker quit %s", "abruptly" if cut_short else "gracefully")
        return self._status or (1 if cut_short else 0)

    def _release(self, worker_id: str) -> None:
        for queue in self._queues:
            held = self._broker.held(queue, worker_id)
            again = [claim for claim in held if may_run_again(claim)]
            if again:
                _log.warning("%d tasks go back to '%s'", len(again), queue)
                self._broker.exchange(worker_id, (), [Release(claim=claim) for claim in again], 0)
            for claim in held:
                if claim not in again:  # on_crash is "fail": it must not start a second time
                    self._reaper.fail(claim, quarantined=False)
        self._broker.unregister(worker_id, self._queues)
