"""The steps of docs/customise.md, on a copy: a name, a task, its test, and a result."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("machine", "worker", "caller", "tools", "tests/conftest.py", "tests/unit/conftest.py")
FILES = ("Makefile", "pyproject.toml", "config.yml", "README.md", "docker-compose.yml")

#: In place of the user's own tasks, which may import what is not copied.
TASKS = """from __future__ import annotations

from machine import task


@task
def add(*args: int) -> int:
    return sum(args)
"""
#: In place of the page's names, which whoever followed it has used up.
NAME, TASK = "copy-of-somebody", "task_of_somebody"


def step(number: int) -> str:
    """Return the commands of a step of the page, with names of our own."""
    page = (ROOT / "docs" / "customise.md").read_text(encoding="utf-8")
    [text] = re.findall(rf"^{number}\. .*?(?=^\d\. |^## )", page, re.MULTILINE | re.DOTALL)
    commands = "\n".join(
        line.strip()
        for block in re.findall(r"^   ```sh\n(.*?)^   ```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    )
    return re.sub(r"rename NAME=\S+", f"rename NAME={NAME}", commands.replace("send_mail", TASK))


@pytest.fixture
def copy(tmp_path: Path, redis_url: str) -> Path:
    """Return a copy of what the steps touch."""
    assert redis_url, "where no server can be started for the tests, none can be for a copy"
    root = tmp_path / "copy"
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, root / part, ignore=ignored)
        elif (ROOT / part).exists():
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, root / part)
    for file in FILES:
        shutil.copy(ROOT / file, root / file)
    (root / "machine" / "tasks.py").write_text(TASKS)
    (root / ".venv" / "bin").mkdir(parents=True)
    # A link to the program would not find its environment.
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return root


@pytest.fixture
def environ(copy: Path) -> dict[str, str]:
    with socket.socket() as redis, socket.socket() as api:
        redis.bind(("127.0.0.1", 0))
        api.bind(("127.0.0.1", 0))
        ports = redis.getsockname()[1], api.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return inherited | {
        "PYTHONPATH": str(copy),
        "BROKER": f"redis://127.0.0.1:{ports[0]}/0",
        "API_PORT": str(ports[1]),
    }


@pytest.fixture
def typed(copy: Path, environ: dict[str, str]) -> Callable[[str], str]:
    """Type commands into the copy's shell, and return what they printed."""

    def run(commands: str) -> str:
        # The environment is this one: a copy's own would be downloaded.
        shell = f'set -eu; make() {{ command make READY= DEV= "$@"; }}\n{commands}'
        done = subprocess.run(
            ["bash", "-c", shell],
            cwd=copy,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def dev(copy: Path, environ: dict[str, str]) -> Iterator[Callable[[], Path]]:
    """Start ``make dev``'s program in the copy, and return where its lines are."""
    log = copy.parent / "dev.log"
    started: list[subprocess.Popen[bytes]] = []

    def start() -> Path:
        with log.open("wb") as file:
            command = [sys.executable, "tools/dev.py"]
            started.append(subprocess.Popen(command, cwd=copy, env=environ, stdout=file))
        return log

    yield start
    for process in started:
        process.terminate()
        assert process.wait(30) == 0


def test_the_steps_of_the_page_lead_to_a_result_of_ones_own_task(
    copy: Path,
    typed: Callable[[str], str],
    dev: Callable[[], Path],
    wait_until: Callable[..., Any],
) -> None:
    renamed = typed(step(2))
    typed(step(3))
    with (copy / "config.yml").open("a", encoding="utf-8") as settings:
        settings.write("worker_name: somebody\n")
    only_its_own, everything = step(4).splitlines()
    assert everything == "make test"
    arguments = re.search(r'ARGS="(.+)"', only_its_own)
    assert arguments is not None
    tested = typed(f".venv/bin/python -m pytest -q -p no:randomly {arguments[1]}")
    log = dev()
    wait_until(lambda: "listening" in log.read_text(), 30, "everything runs")

    printed = typed(step(6))

    assert "pyproject.toml" in renamed
    assert f'name = "{NAME}"' in (copy / "pyproject.toml").read_text()
    assert "1 passed" in tested
    assert printed == f"{TASK}: hello\n"


def test_the_name_on_the_page_can_be_given_to_a_copy() -> None:
    page = (ROOT / "docs" / "customise.md").read_text(encoding="utf-8")
    [name] = re.findall(r"make rename NAME=(\S+)", page)

    edits = runpy.run_path(str(ROOT / "tools" / "rename.py"))["edits"]

    edits(ROOT, name, None)  # it raises where the name is a word of the project
