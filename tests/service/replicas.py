"""
Replicas of the HTTP caller, as processes, and a client for each.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
LISTENING = re.compile(r"listening on (http://\S+)")
Wait = Callable[[Callable[[], Any], float, str], Any]


class Replicas:
    """Replicas of the HTTP caller on one queue, and a client for each."""

    def __init__(self, url: str, queue: str, logs: Path, wait_until: Wait) -> None:
        self.url, self.queue, self.logs, self.wait_until = url, queue, logs, wait_until
        self.processes: list[subprocess.Popen[bytes]] = []
        self._clients = ExitStack()

    def variables(self) -> dict[str, str]:
        """Return what workers and replicas of this queue have in common."""
        return {
            "CONFIG_FILE": os.devnull,
            "BROKER": self.url,
            "DEFAULT_QUEUE": self.queue,
            "REDIS_DELAYED_TASKS_KEY": f"{self.queue}.delayed",
            "TASKS_MODULES": "api_tasks",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "LOG_FORMAT": "text",
        }

    def start(self, *, token: str = "", **variables: str) -> httpx.Client:
        """Start a replica, and return a client of it when it listens."""
        file = self.logs / f"api-{len(self.processes)}.log"
        with file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "caller/api.py"],
                cwd=ROOT,
                env=os.environ | self.variables() | {"API_PORT": "0"} | variables,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        found = self.wait_until(
            lambda: LISTENING.search(file.read_text()) or process.poll() is not None,
            20,
            f"replica {len(self.processes)} listens",
        )
        assert isinstance(found, re.Match), file.read_text()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(base_url=found[1], timeout=30, headers=headers)
        return self._clients.enter_context(client)

    def end(self) -> None:
        """End all replicas as an operator does, which each survives with status 0."""
        self._clients.close()
        for process in self.processes:
            process.terminate()
        try:
            assert [process.wait(15) for process in self.processes] == [0] * len(self.processes)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
