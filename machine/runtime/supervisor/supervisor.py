"""
The worker as a service: starts children, keeps their leases, buries the dead.

It runs no task and imports none, so nothing of yours can stall its heartbeat.
A child that dies is noticed at once and its tasks go back; a worker elsewhere
that goes silent is found by its stamp. One thread, a few loops, signals.
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
from machine.runtime.wakeup import Doorbell

_log = logging.getLogger("machine.worker")
#: Exit status of a child that cannot work whatever happens: a broken tasks module, bad settings.
CANNOT_START = 78
#: A child that lived shorter than this is started again with a growing pause, seconds.
_SHORT_LIFE_S = 1.0
_LONGEST_PAUSE_S = 30.0
#: Seconds between two looks at whether children still live, where no signal tells.
_LOOK_S = 0.5


@dataclass(slots=True)
class Process:
    """A child process: its pid, its crew, the pipe it reports on, the worker ids it has had."""

    pid: int
    crew: Crew
    reports: int
    started_s: float
    worker_ids: list[str]
    unread: bytes = b""


class Supervisor:
    """
    Runs a crew of children until told to stop.

    Args:
        broker: The supervisor's own, made with ``worker=True``.
        queues: What the children consume.
        own_id: The worker id it registers: heir of what must not run again.
        crew: The children; `roll` puts another one in its place.
        reaper: Also asked when a child dies.
        loops: The other duties (heartbeat, promoter, chord sweep).
        beat: Called a few times a second while all is well (a health file).
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        own_id: str,
        crew: Crew,
        reaper: Reaper,
        loops: Sequence[Loop],
        *,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker, self._queues, self._own_id = broker, queues, own_id
        #: The one to be kept up, and the last one that was seen to work.
        self._crew = self._proven = crew
        self._reaper = reaper
        # Between two duties too: each may wait for the server for seconds.
        self._loops = Loops([*loops, reaper], turned=beat)
        self._beat = beat
        self._processes: dict[int, Process] = {}
        self._start_at_s = 0.0
        self._pause_s = 0.0
        self._signals = 0
        self._stopped_at_s: float | None = None
        self._status = 0
        self._unreaped: list[str] = []
        self._doorbell = Doorbell(lambda: broker.waker(queues))

    def worker_ids(self) -> list[str]:
        """Return the worker ids of all children that live."""
        return [
            worker_id for process in self._processes.values() for worker_id in process.worker_ids
        ]

    def process_ids(self) -> list[int]:
        """Return the pids of all children that have not been seen to end."""
        return list(self._processes)

    @property
    def crew(self) -> Crew:
        """Return the crew that is kept up."""
        return self._crew

    def roll(self, crew: Crew) -> None:
        """
        Put another crew in the place of this one; for a loop of ours.

        Its children start at once. As soon as one of them works, those of the crew before take
        no more tasks and end with what they run, however long that takes. If it cannot start,
        the crew before stays.
        """
        if self._crew is not self._proven:
            self._tell(signal.SIGTERM, self._crew)
        self._crew = crew
        self._start_at_s = self._pause_s = 0.0
        self._doorbell.ring()

    def run(self, *, handle_signals: bool = True, greeting: str = "") -> int:
        """
        Work until stopped; return the exit status: 0, 1 when cut short, 78 when it cannot start.

        Raises:
            BrokerRefused: The server answers, and refuses us.
            ConfigError: The server may delete queued tasks.
        """
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGCHLD, lambda *_: self._doorbell.ring())
        _log.info("%s", greeting)  # from here on a signal stops us gently
        self._beat()  # to greet an absent server takes seconds
        self._greet()
        while True:
            now_s = time.monotonic()
            self._look_after_children(now_s)
            if self._stopped_at_s is None:
                self._fill_up(now_s)
            elif not self._processes or self._signals > 1:
                break
            elif now_s > self._stopped_at_s + self._crew.shutdown_s:
                _log.warning("tasks still run after %.0f s; they go back", self._crew.shutdown_s)
                break
            next_s = self._loops.run_due(now_s)
            self._beat()
            self._doorbell.sleep(min(_LOOK_S, next_s - time.monotonic()))
        if handle_signals:  # one more would end the goodbye half way
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        return self._end()

    def stop(self) -> None:
        """Stop gently; a second call stops at once. Safe in a signal handler and another thread."""
        self._signals += 1
        if self._stopped_at_s is None:
            self._stopped_at_s = time.monotonic()
        self._tell(signal.SIGTERM)
        self._doorbell.ring()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()

    def _greet(self) -> None:
        """Register, unless the server is away: then the heartbeat does it later."""
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
    def _fill_up(self, now_s: float) -> None:
        """Start the children that are missing."""
        crew = self._crew
        missing = crew.processes - sum(p.crew is crew for p in self._processes.values())
        for _ in range(missing if now_s >= self._start_at_s else 0):
            reports, out = os.pipe()
            os.set_blocking(reports, False)
            pid = crew.spawn(out)
            os.close(out)
            self._processes[pid] = Process(pid, crew, reports, now_s, [])
            if self._stopped_at_s is not None:  # told to stop meanwhile, before this one was there
                self._tell(signal.SIGTERM)
                return

    def _look_after_children(self, now_s: float) -> None:
        """Read their reports; take what the dead ones held."""
        for process in list(self._processes.values()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            self._read_reports(process)
            if pid:
                del self._processes[pid]
                os.close(process.reports)
                self._unreaped += process.worker_ids
                self._judge(process, os.waitstatus_to_exitcode(status), now_s)
            elif process.worker_ids and process.crew is self._crew is not self._proven:
                self._prove()
        # After a gentle end their claims, if any are left, go back uncounted: see _end.
        while self._unreaped and self._stopped_at_s is None:
            try:
                self._reaper.reap_at_once(self._unreaped[0])
            except BrokerUnavailable:
                return
            except MachineError as error:
                _log.error("cannot take back what a dead child held: %s", error)
            self._unreaped.pop(0)

    def _prove(self) -> None:
        """Relieve the crew before: a child of the new one has its tasks and an id."""
        self._proven = self._crew
        for crew in {process.crew for process in self._processes.values()} - {self._crew}:
            self._tell(signal.SIGTERM, crew)

    def _judge(self, process: Process, code: int, now_s: float) -> None:
        """Decide what a child's end means."""
        pid, lived_s = process.pid, now_s - process.started_s
        if process.crew is not self._crew:
            _log.info("child %d, relieved, ended with status %d", pid, code)
        elif code == CANNOT_START and self._crew is not self._proven:
            _log.error("the changed settings cannot work; those before them stay")
            self._tell(signal.SIGTERM, self._crew)
            self._crew = self._proven
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

    def _tell(self, number: signal.Signals, crew: Crew | None = None) -> None:
        """Send a signal to the children of one crew, or to all."""
        for process in list(self._processes.values()):
            if crew not in (None, process.crew):
                continue
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(process.pid, number)

    # -- the end ---------------------------------------------------------------------------
    def _end(self) -> int:
        """Kill what is left, give its tasks back uncounted, leave the roster."""
        cut_short = self._signals > 1
        left = self._unreaped + self.worker_ids()
        self._tell(signal.SIGKILL)
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
                if claim not in again:  # at most once means that it has had its once
                    self._reaper.fail(claim, quarantined=False)
        self._broker.unregister(worker_id, self._queues)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crew:
    """
    Children of one kind. Other settings make another crew, which takes this one's place.

    Attributes:
        processes: Children to keep running, ≥ 1.
        shutdown_s: Seconds that running tasks get after the first signal.
        spawn: Forks a child that writes its worker ids, a line each, to the given
            descriptor, and returns the child's pid.
        config: The settings it was made of; ``None`` where they never change.
    """

    processes: int
    shutdown_s: float
    spawn: Callable[[int], int]
    config: Config | None = None
