"""One database, and callers and workers of both languages on it; see conftest.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import redis

from tests.interop.callers import PATIENCE_S, Caller, GoCaller, PyCaller

ROOT = Path(__file__).resolve().parents[2]
GO_QUEUE, PY_QUEUE, BOTH_QUEUE = "go_q", "py_q", "both_q"
#: One for all of Python: what is canceled is noted there. Go's workers have their own queue as it.
DEFAULT_QUEUE = "machinery_tasks"
NEVER_MS = 3_600_000
LOG_SHOWN = 4000


class Peer(NamedTuple):
    """A Machinery: its major version and its Redis driver."""

    version: str
    driver: str

    def __str__(self) -> str:
        return f"{self.version}-{self.driver}"


class Crossing:
    """One database, and everybody who works on it."""

    def __init__(
        self,
        program: Path,
        peer: Peer,
        port: int,
        database: int,
        folder: Path,
    ) -> None:
        self.peer = peer
        self.url = f"redis://127.0.0.1:{port}/{database}"
        self.raw = redis.Redis.from_url(self.url)
        self.raw.flushdb()
        self._go = [str(program), "", "-address", f"127.0.0.1:{port}", "-db", str(database)]
        self._go += ["-driver", peer.driver]
        self._folder = folder
        self._logs: list[IO[str]] = []
        self._go_processes: list[subprocess.Popen[str]] = []
        self._py_processes: list[subprocess.Popen[str]] = []
        self._schedulers: list[PyCaller] = []
        self.go = GoCaller(self._start_go("caller"))
        self.py = PyCaller(self.url)

    def caller(self, language: str) -> Caller:
        """Return the caller of a language, "go" or "py"."""
        return self.go if language == "go" else self.py

    def go_scheduler(self) -> GoCaller:
        """Return one more Go caller; what it schedules, it sends by itself."""
        return GoCaller(self._start_go("caller"))

    def py_scheduler(self) -> PyCaller:
        """Return one more Python caller, whose timetable is one with that of all Go callers."""
        self._schedulers.append(PyCaller(self.url, program=Path(self._go[0]).name))
        self._schedulers[-1].server.start_scheduler()
        return self._schedulers[-1]

    # -- workers ---------------------------------------------------------------------------
    def go_worker(
        self, queue: str = GO_QUEUE, *, concurrency: int = 4, moves_delayed: bool = True
    ) -> subprocess.Popen[str]:
        """Start a Go worker, and return when it is about to look for work."""
        more = ["-queue", queue, "-concurrency", str(concurrency)]
        more += [] if moves_delayed else ["-delayed-poll-ms", str(NEVER_MS)]
        worker = self._start_go("worker", *more)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    def py_worker(
        self,
        *queues: str,
        concurrency: int = 4,
        moves_delayed: bool = True,
        **variables: str,
    ) -> subprocess.Popen[str]:
        """Start a Python worker of one process, and return when it can claim."""
        queues = queues or (PY_QUEUE,)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent), str(ROOT)]),
            "BROKER": self.url,
            "QUEUES": ",".join(queues),
            "DEFAULT_QUEUE": DEFAULT_QUEUE,
            "TASKS_MODULES": "interop_tasks",
            "WORKER_PROCESSES": "1",
            "WORKER_CONCURRENCY": str(concurrency),
            "REDIS_DELAYED_TASKS_POLL_PERIOD": "20" if moves_delayed else str(NEVER_MS),
            "WORKER_BLOCK_S": "0.2",
            "LOG_LEVEL": "error",
            **variables,
        }
        before = self._roster(queues)
        command = [sys.executable, str(ROOT / "worker" / "worker.py")]
        worker = self._start(command, environment, self._py_processes)
        # Two more on every queue's roster: the supervisor and its child.
        self.wait_until(
            lambda: self._roster(queues) >= before + 2 * len(queues) or worker.poll() is not None,
            "the Python worker is on the roster",
        )
        return worker

    def both_workers(
        self, *, go: str = GO_QUEUE, py: str = PY_QUEUE, concurrency: int = 4, **variables: str
    ) -> None:
        """Start one worker of each language; the variables are for Python's."""
        self.go_worker(go, concurrency=concurrency)
        self.py_worker(py, concurrency=concurrency, moves_delayed=True, **variables)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """End one of our processes at once."""
        process.kill()
        process.wait()

    def open(self, gate: str) -> None:
        """Let all tasks go on that wait at this gate."""
        self.raw.set(gate, 1)

    # -- waiting ---------------------------------------------------------------------------
    def wait_until(
        self, predicate: Callable[[], object], what: str, timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait for what other processes do; fail saying what was waited for."""
        give_up_at = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() >= give_up_at:
                pytest.fail(f"gave up after {timeout_s:g} s waiting until {what}")
            time.sleep(0.005)

    def wait_for_state(self, state: str, *uuids: str) -> None:
        """Wait until all these tasks are in this state."""
        self.wait_until(
            lambda: all(self.state(uuid) == state for uuid in uuids),
            f"{len(uuids)} tasks are {state}",
        )

    # -- looking ---------------------------------------------------------------------------
    def runs(self, *uuids: str) -> list[int]:
        """Return how often each of these tasks was run, if it is one that counts itself."""
        return [int(n or 0) for n in self.raw.hmget("runs", uuids)]

    def document(self, key: str) -> dict[str, Any]:
        """Return a state or a group's meta as it stands in Redis."""
        value = self.raw.get(key)
        assert value is not None, f"there is no key {key}"
        found: dict[str, Any] = json.loads(value)
        return found

    def state(self, uuid: str) -> str:
        """Return the state's name, "" where none is kept."""
        value = self.raw.get(uuid)
        return str(json.loads(value)["State"]) if value is not None else ""

    # -- ending ----------------------------------------------------------------------------
    def close(self) -> None:
        """End every process and forget the database; fail if one of them came to harm."""
        for caller in (self.py, *self._schedulers):
            caller.close()
        for process in self._py_processes:
            process.terminate()
        for process in self._go_processes:
            self.kill(process)  # a BLPOP would hold a gentle end up for a second
        ended = [self._ended(process) for process in self._py_processes]
        for process in self._go_processes + self._py_processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        self.raw.flushdb()
        self.raw.close()
        logs = []
        for log in self._logs:
            log.seek(0)
            logs.append(log.read())
            log.close()
        for text in filter(None, logs):
            print(text[-LOG_SHOWN:])
        assert [code for code in ended if code not in {0, -9}] == []
        # One such line means a message Machinery cannot take: its worker is stuck from then on.
        assert "Broker failed" not in "".join(logs)
        assert "unmarshal" not in "".join(logs)

    def _ended(self, process: subprocess.Popen[str]) -> int:
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return 1000 + process.wait()

    def _roster(self, queues: Sequence[str]) -> int:
        return sum(self.raw.zcard(f"{{{queue}}}:workers") for queue in queues)

    def _start_go(self, role: str, *more: str) -> subprocess.Popen[str]:
        program, _, *arguments = self._go
        return self._start([program, role, *arguments, *more], {}, self._go_processes)

    def _start(
        self,
        command: list[str],
        environment: dict[str, str],
        processes: list[subprocess.Popen[str]],
    ) -> subprocess.Popen[str]:
        log = (self._folder / f"{len(self._logs)}.log").open("w+", encoding="utf-8")
        self._logs.append(log)
        processes.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=self._folder,
                text=True,
            )
        )
        return processes[-1]
