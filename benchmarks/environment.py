"""
Where a benchmark runs: CPUs, a server of its own, workers as real processes.

Everything started here is ended here, by its process id. It measures nothing itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import redis

from machine import build
from machine.config import Config
from machine.embedded import EmbeddedServer
from machine.redis import keys
from machine.server import Server

HERE = Path(__file__).resolve().parent
_WORKER = HERE.parent / "worker" / "worker.py"
_PATIENCE_S = 30.0


@contextmanager
def on_cpus(count: int) -> Iterator[None]:
    """Bind this process, and what it starts meanwhile, to so many CPUs; 0 leaves all."""
    if not count or not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def can_pin() -> bool:
    """Say whether this system binds processes to CPUs."""
    return hasattr(os, "sched_setaffinity")


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds these processes used so far; 0.0 where the system does not tell."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total_ns += int(task.read_text(encoding="ascii").split()[0])
    return total_ns / 1e9


class Environment:
    """
    A server, a plain client of it, and a caller's `Server`; used as a context manager.

    Args:
        prefer: "valkey", "redis", or ``None`` for the first that is installed.
    """

    def __init__(self, prefer: str | None = None) -> None:
        self.embedded = EmbeddedServer(prefer=prefer)

    def __enter__(self) -> Self:
        self.embedded.start()
        self.url = self.embedded.url
        self.raw: redis.Redis = redis.Redis.from_url(self.url)
        self.config = Config(broker=self.url)
        self.caller: Server = build.connect(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        self.caller.close()
        self.raw.close()
        self.embedded.stop()

    @property
    def version(self) -> str:
        """Return the server's name and version."""
        info: dict[str, Any] = self.raw.info("server")
        return f"{self.embedded.kind} {info.get('valkey_version', info['redis_version'])}"

    @contextmanager
    def process(self, command: Sequence[str], blocked: int) -> Iterator[int]:
        """
        Run a program beside the server, and give its process id once it waits for work.

        Args:
            command: The program and its arguments.
            blocked: How many of its connections then wait in a blocking command.
        """
        variables = {k: v for k, v in os.environ.items() if k.startswith(_KEPT)}
        with tempfile.TemporaryDirectory() as folder:
            # An empty folder: no config.yml and no .env may change what is measured.
            running = subprocess.Popen(command, cwd=folder, env=variables | {"BROKER": self.url})
            try:
                self._wait_for_blocked(running, blocked)
                yield running.pid
            finally:
                running.terminate()
                try:
                    running.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    running.kill()
                    running.wait()

    def _wait_for_blocked(self, running: subprocess.Popen[bytes], count: int) -> None:
        give_up_at = time.monotonic() + _PATIENCE_S
        while int(self.raw.info("clients")["blocked_clients"]) < count:
            if running.poll() is not None:
                sys.exit(f"error: {running.args} ended with status {running.returncode}")
            if time.monotonic() > give_up_at:
                sys.exit(f"error: {running.args} did not begin to wait within {_PATIENCE_S:g} s")
            time.sleep(0.01)  # Redis tells nobody when a client begins to wait

    @contextmanager
    def worker(self, processes: int, queue: str) -> Iterator[list[int]]:
        """Run ``worker/worker.py``, and give the process ids of its children once all wait."""
        command = [sys.executable, str(_WORKER), "-p", str(processes), "-Q", queue, "-l", "warning"]
        with self.process(command, processes) as pid:
            yield _list_children(pid)

    def unfinished(self, queue: str) -> int:
        """Return how many messages are queued or held, in one round trip."""
        with self.raw.pipeline() as pipe:
            pipe.llen(queue)
            pipe.llen(keys.hop(queue))
            for worker_id in self._worker_ids(queue):
                pipe.hlen(keys.held(queue, worker_id))
            return sum(pipe.execute())

    def _worker_ids(self, queue: str) -> list[str]:
        return [name.decode() for name in self.raw.zrange(keys.workers(queue), 0, -1)]


#: Variables that a worker here may see: what it needs to run, and its own settings.
_KEPT = ("PATH", "HOME", "LANG", "PYTHON", "TMPDIR", "WORKER_", "COVERAGE_")


def _list_children(pid: int) -> list[int]:
    """Return a process's children, where the system tells."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return (
        [int(child) for child in file.read_text(encoding="ascii").split()] if file.exists() else []
    )
