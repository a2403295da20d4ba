"""``make dev`` on a copy: a change counts, one signal ends all, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from machine import Arg, new_signature
from machine.build import server as build_server
from machine.config import Config
from machine.embedded import available_servers
from machine.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
OLD = "    return sum(args)\n"
#: In place of the user's own tasks, which may import what is not copied.
TASKS = """from __future__ import annotations

from machine import task


@task
def add(*args: int) -> int:
    return sum(args)
"""
#: Shows in /proc/<pid>/environ of whatever is started below a desk.
MARK = "WERK_TEST_DESK"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Desk:
    """A copy of the project, ``tools/dev.py`` in it, and what it says."""

    def __init__(self, root: Path, broker: str) -> None:
        self.root = root
        self.broker = broker
        self.port = int(broker.rpartition(":")[2].partition("/")[0])
        self.api = free_port()
        for folder in ("machine", "worker", "caller", "tools"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
        (root / "machine" / "tasks.py").write_text(TASKS)
        self._environ = os.environ | {
            "PYTHONPATH": str(root),
            "BROKER": broker,
            "API_PORT": str(self.api),
            "WORKER_PROCESSES": "1",
            MARK: str(root),
        }
        self._said: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "tools/dev.py"],
            cwd=self.root,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process.stdout as lines:  # type: ignore[union-attr]
            self._said += lines

    def said(self, what: str) -> int:
        """Return how many lines match."""
        return sum(bool(re.search(what, line)) for line in list(self._said))

    def text(self) -> str:
        return "".join(self._said)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert old in text
        (self.root / file).write_text(text.replace(old, new))

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def living(self) -> list[str]:
        """Return the programs that were started below this desk and still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"{MARK}={self.root}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        # A server writes its title over its variables; what it is known by is its port.
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            found.append("server")
        return found


@pytest.fixture
def desk(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    assert redis_url, "where no server can be started for the tests, none can be for a desk"
    monkeypatch.delenv("WORKER_SHUTDOWN_TIMEOUT_S", raising=False)
    made = Desk(tmp_path / "copy", f"redis://127.0.0.1:{free_port()}/0")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def call(desk: Desk, name: str, *args: int) -> Any:
    """Send a task as another program would, and return its result."""
    signature = new_signature(name, [Arg("int64", arg) for arg in args])
    with build_server(Config(broker=desk.broker), Registry()) as server:
        return server.send_task(signature).get(timeout=30)


def posted(desk: Desk, name: str, *args: int) -> Any:
    """Send a task through the HTTP caller, and return the document of its end."""
    url = f"http://127.0.0.1:{desk.api}/tasks/{name}"
    answer = httpx.post(url, json={"args": args}, headers={"prefer": "wait=30"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def up(desk: Desk, wait_until: Callable[..., Any]) -> Desk:
    """Start the desk and wait until its HTTP caller listens."""
    desk.start()
    wait_until(lambda: desk.said(r"^api +\| .*listening"), 30, "the api listens")
    return desk


def test_a_saved_task_runs_as_it_was_saved(up: Desk, wait_until: Callable[..., Any]) -> None:
    assert call(up, "add", 1, 2) == 3
    up.edit("machine/tasks.py", OLD, "    return sum(args) + 1000\n")
    wait_until(lambda: up.said("worker started") == 2, 30, "the worker starts again")

    assert call(up, "add", 1, 2) == 1003
    wait_until(lambda: up.said(r"^api +\| .*listening") == 2, 30, "the api listens again")
    assert posted(up, "add", 1, 2)["result"] == 1003
    assert up.said(r"machine/tasks\.py changed: worker and api start again") == 1


def test_one_interrupt_ends_everything_it_started(up: Desk, wait_until: Callable[..., Any]) -> None:
    assert call(up, "add", 1, 2) == 3
    running = up.living()

    status = up.end(signal.SIGINT)

    assert status == 0, up.text()
    assert any("worker/worker.py" in line for line in running)
    assert any("caller/api.py" in line for line in running)
    assert "server" in running
    wait_until(lambda: not up.living(), 10, "nothing is left")
    wait_until(lambda: up.said("all stopped"), 10, "it says so")


def test_a_folder_of_one_program_restarts_that_one(
    up: Desk, wait_until: Callable[..., Any]
) -> None:
    up.edit("caller/api.py", "import logging\n", "import logging  # looked at\n")
    wait_until(lambda: up.said("api started") == 2, 30, "the api starts again")
    up.edit("worker/worker.py", "import logging\n", "import logging  # looked at\n")
    wait_until(lambda: up.said("worker started") == 2, 30, "the worker starts again")

    assert up.said("api started") == 2
    assert up.said("caller/api.py changed: api start") == 1
    assert up.said("worker/worker.py changed: worker start") == 1


def test_a_slip_is_shown_and_its_correction_counts(
    up: Desk, wait_until: Callable[..., Any]
) -> None:
    up.edit("machine/tasks.py", OLD, "    return sum(args\n")
    wait_until(lambda: up.said("worker ended with status [1-9]"), 30, "the worker ends")
    wait_until(lambda: up.said("api ended with status [1-9]"), 30, "the api ends")
    assert up.said("SyntaxError")

    up.edit("machine/tasks.py", "    return sum(args\n", "    return sum(args) + 2000\n")

    assert call(up, "add", 1, 2) == 2003


def test_a_change_of_the_settings_counts(up: Desk, wait_until: Callable[..., Any]) -> None:
    (up.root / "config.yml").write_text("log_level: debug\n")
    wait_until(lambda: up.said("worker started") == 2, 30, "the worker starts again")

    assert up.said("config.yml changed: worker and api start again") == 1
    assert call(up, "add", 1, 2) == 3


def test_nothing_outlives_a_desk_that_is_killed(up: Desk, wait_until: Callable[..., Any]) -> None:
    assert len(up.living()) > 3

    up.end(signal.SIGKILL)

    wait_until(lambda: not up.living(), 20, "nothing is left")


def test_a_server_that_answers_is_used_and_left_alone(
    desk: Desk, redis_url: str, wait_until: Callable[..., Any], raw: Any
) -> None:
    desk._environ |= {"BROKER": redis_url, "DEFAULT_QUEUE": f"desk.{desk.api}"}
    desk.start()
    wait_until(lambda: desk.said(r"^api +\| .*listening"), 30, "the api listens")

    assert desk.end(signal.SIGTERM) == 0

    assert not desk.said("what is in it ends with this")
    assert raw.ping()


def test_a_server_that_is_not_ours_to_start_is_asked_for(desk: Desk) -> None:
    secret = desk.broker.replace("redis://", "redis://:hidden@")
    desk._environ["BROKER"] = secret

    done = subprocess.run(
        [sys.executable, "tools/dev.py"],
        cwd=desk.root,
        env=desk._environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "make dev starts a server of its own only for" in done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert available_servers()
