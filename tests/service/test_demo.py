"""``make demo`` shows everything and says so by its exit status."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_demo_shows_everything_and_ends_well(redis_url: str) -> None:
    assert redis_url, "where no server can be started for the tests, none can be for the demo"

    done = run("examples/demo.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert len(re.findall(r"^ok ", done.stdout, re.MULTILINE)) == 17
    assert "the other worker ran it" in done.stdout


@pytest.mark.parametrize("program", ["examples/tour.py", "caller/caller.py"])
def test_a_program_without_a_server_fails(program: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    done = run(program, BROKER=f"redis://127.0.0.1:{port}/0")

    assert done.returncode != 0
    assert "did not answer" in done.stderr


WRONG = """
from machine import task
from machine.tasks import climb, fail, flaky, multiply, nap, say, sleep

@task
def add(*args: int) -> int:
    return 0
"""


def test_a_wrong_result_shows_in_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "wrong_tasks.py").write_text(WRONG)

    done = run(
        "examples/demo.py",
        TASKS_MODULES="wrong_tasks",
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )

    assert done.returncode == 1
    assert "WRONG add(20, 22) in 0.5 s" in done.stdout
    assert "demo FAILED" in done.stdout
