"""
Worker processes that end with their test, and a server to send to them with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from machine import Arg, Signature, new_signature
from machine.build import server as build_server
from machine.config import Config, RedisConfig
from machine.registry import Registry
from machine.results.task import AsyncResult
from machine.server import Server

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 2.0
_TYPES = {str: "string", float: "float64", int: "int64"}


def signature(name: str, *args: Any) -> Signature:
    """Return a signature of a task that is not imported here."""
    return new_signature(name, [Arg(_TYPES[type(arg)], arg) for arg in args])


class Site:
    """One queue, its workers, and a caller."""

    def __init__(self, url: str, queue: str, raw: redis.Redis, logs: Path) -> None:
        self.url, self.queue, self.raw, self.logs = url, queue, raw, logs
        self.workers: list[subprocess.Popen[bytes]] = []
        config = Config(
            broker=url, default_queue=queue, redis=RedisConfig(delayed_tasks_key=f"{queue}.delayed")
        )
        self.server: Server = build_server(config, Registry())

    def run_without(self, package: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a worker to its end where a package cannot be imported."""
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from worker.worker import main\nsys.exit(main([]))"
        )
        own = {"CONFIG_FILE": os.devnull, "BROKER": self.url}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | own | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *flags: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker of one process and one slot, or as the flags say."""
        environ = os.environ | {
            "CONFIG_FILE": os.devnull,  # the copy's own settings are its owner's
            "BROKER": self.url,
            "DEFAULT_QUEUE": self.queue,
            "REDIS_DELAYED_TASKS_KEY": f"{self.queue}.delayed",
            "TASKS_MODULES": "service_tasks",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "WORKER_PROCESSES": "1",
            "WORKER_LEASE_S": str(LEASE_S),
            "WORKER_HEARTBEAT_S": "0.5",
            "WORKER_BLOCK_S": "0.5",
            "LOG_FORMAT": "text",
        }
        with (self.logs / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "worker/worker.py", *flags],
                cwd=ROOT,
                env=environ | variables,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def send(self, name: str, *args: Any) -> AsyncResult[Any]:
        return self.server.send_task(signature(name, *args))

    def runs(self) -> list[tuple[str, int]]:
        """Return (name, process) of every run that has begun, in order."""
        lines = self.raw.lrange(f"{self.queue}.runs", 0, -1)
        return [(line.split()[0].decode(), int(line.split()[1])) for line in lines]

    def log(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in sorted(self.logs.iterdir()))

    def end(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.server.close()
        self.raw.delete(f"{self.queue}.runs", f"{self.queue}.go", f"{self.queue}.delayed")
        ours = [f"{{{self.queue}}}:*", self.queue]
        for pattern in ours:
            for key in self.raw.scan_iter(pattern):
                self.raw.delete(key)


@pytest.fixture
def site(redis_url: str, queue: str, raw: redis.Redis, tmp_path: Path) -> Iterator[Site]:
    made = Site(redis_url, queue, raw, tmp_path)
    yield made
    made.end()


@pytest.fixture
def started(site: Site, wait_until: Callable[..., Any]) -> Callable[[int], list[tuple[str, int]]]:
    """Wait until so many runs have begun, and return them."""

    def wait(count: int) -> list[tuple[str, int]]:
        def enough() -> bool:
            return len(site.runs()) >= count

        wait_until(enough, 30, f"{count} runs to begin")
        return site.runs()

    return wait
