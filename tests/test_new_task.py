"""``make new-task`` on a copy: what it writes works, what it refuses changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: In place of the user's own, which may look like anything.
TASKS = '''"""Tasks."""

from __future__ import annotations

import time

from machine import task


@task
def add(*args: int) -> int:
    """Return the sum, after a while."""
    time.sleep(0)
    return sum(args)
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of what a new task touches and is checked with."""
    root = tmp_path / "copy"
    root.mkdir()
    for folder in ("machine", "tools"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests" / "unit").mkdir(parents=True)
    for file in ("pyproject.toml", "config.yml", "README.md"):
        shutil.copy(ROOT / file, root / file)
    (root / "machine" / "tasks.py").write_text(TASKS)
    return root


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def new_task(root: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run(root, "tools/new_task.py", "--", name)


def test_a_new_task_runs_and_passes_every_check(copy: Path) -> None:
    done = new_task(copy, "probe_of_new_task")

    written = ("machine/tasks.py", "tests/unit/tasks/test_probe_of_new_task.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in written)
    for check in (
        ("pytest", "-q", "-p", "no:randomly", written[1]),
        # By the template's rules, which leave alone what a user makes of it.
        (
            "ruff",
            "check",
            "--config",
            "lint.per-file-ignores = {'tests/*' = ['D103', 'INP001', 'S101']}",
            *written,
        ),
        ("ruff", "format", "--check", *written),
        ("mypy", "--strict", *written),
    ):
        checked = run(copy, "-m", *check)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_two_new_tasks_stand_side_by_side(copy: Path) -> None:
    for name in ("probe_of_new_task", "second_probe"):
        assert new_task(copy, name).returncode == 0

    checked = run(copy, "-m", "pytest", "-q", "tests/unit/tasks")

    assert "2 passed" in checked.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("add", "which is in machine/tasks.py already"),
        ("time", "which is in machine/tasks.py already"),
        ("task", "which is in machine/tasks.py already"),
        ("SendMail", "it must be 2 to 40 of a-z, 0-9 and '_'"),
        ("send-mail", "it must be 2 to 40 of a-z, 0-9 and '_'"),
        ("../x", "it must be 2 to 40 of a-z, 0-9 and '_'"),
        ("", "it must be 2 to 40 of a-z, 0-9 and '_'"),
        ("a" * 41, "it must be 2 to 40 of a-z, 0-9 and '_'"),
        ("import", "a word of Python"),
        ("match", "a word of Python"),
        ("print", "a word of Python"),
        ("test_mail", "pytest takes what starts with test_ for a test"),
    ],
)
def test_a_name_that_will_not_do_is_refused(copy: Path, name: str, reason: str) -> None:
    before = (copy / "machine" / "tasks.py").read_text()

    done = new_task(copy, name)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: NAME is {name!r}")
    assert reason in done.stderr
    assert (copy / "machine" / "tasks.py").read_text() == before
    assert not (copy / "tests" / "unit" / "tasks").exists()


def test_a_test_that_is_there_is_not_overwritten(copy: Path) -> None:
    (copy / "tests" / "unit" / "tasks").mkdir()
    (copy / "tests" / "unit" / "tasks" / "test_second_probe.py").write_text("mine\n")

    done = new_task(copy, "second_probe")

    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    assert (copy / "tests" / "unit" / "tasks" / "test_second_probe.py").read_text() == "mine\n"
