"""
``.ci/run``, on stand-ins for what it calls: what it prints last, and how it ends.

What the phases themselves do is their own tests' business; here each of them only
says something, and ends with the status it is told to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAKE = """
case "$1" in
--version | .venv/*) exit 0 ;;
esac
if read -r line; then echo "make reads what is typed: $line"; fi
echo "make $1 at work"
case "$1" in
{failures}
esac
echo "===== 7 passed in 1.00s ====="
"""
GO = '[ "$1" = version ] && exec echo "go version go1.22.1"; echo go1.22.1'


@pytest.fixture
def ci(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the script in a copy where each target named ends with the status given for it."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    programs.mkdir()
    (checkout / ".venv" / "bin").mkdir(parents=True)

    def install(name: str, script: str, folder: Path = programs) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    def run(**statuses: int) -> subprocess.CompletedProcess[str]:
        failures = "\n".join(
            f'{name}) echo "===== 1 failed, 6 passed in 1.00s ====="; exit {status} ;;'
            for name, status in statuses.items()
        )
        install("make", MAKE.format(failures=failures))
        install("go", GO)
        # All that would be installed is there; no engine answers.
        for name in ("redis-server", "openssl", "curl", "uv"):
            install(name, "exit 0")
        install("docker", "exit 1")
        install("python", "exit 0", checkout / ".venv" / "bin")
        return subprocess.run(
            ["bash", ".ci/run"],
            cwd=checkout,
            env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_a_run_ends_with_what_pytest_said(
    ci: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = ci()

    end = done.stdout.splitlines()[-8:]
    assert done.returncode == 0, done.stdout
    assert [line.partition(" ")[2] for line in end if "7 passed" in line] == [
        f"make {target}:===== 7 passed in 1.00s ====="
        for target in ("test", "interop", "k8s", "installs")
    ]
    assert end[-1].startswith("== all passed")


@pytest.mark.parametrize("target", ["test", "interop", "k8s", "installs"])
def test_a_failure_is_the_runs_and_named_at_the_end(
    target: str, ci: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = ci(**{target: 3})

    *before, summary, _, last = done.stdout.splitlines()
    said = [line for line in before if line.endswith(" at work")]
    assert done.returncode == 3, done.stdout
    assert last.startswith(f"== FAILED: make {target}, with status 3")
    assert any("1 failed, 6 passed" in line for line in [*before[-4:], summary])
    # What failed is the last of what is printed, after all that went well beside it.
    assert said[-1] == f"make {target} at work"


def test_nothing_begins_after_a_failure(
    ci: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert "make interop" not in ci(test=2).stdout


def test_the_first_failure_decides(ci: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = ci(interop=4, k8s=4, installs=4)

    assert done.returncode == 4
    assert done.stdout.count("== FAILED: ") == 1
    assert done.stdout.count("1 failed, 6 passed") == 2 * 3
