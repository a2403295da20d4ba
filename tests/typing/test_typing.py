from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = Path(__file__).with_name("typed_use.py")

Findings = dict[int, tuple[str, str]]


def expected() -> Findings:
    """Return, for each line that has one, the kind of its comment and what that says."""
    found = {}
    for number, line in enumerate(USE.read_text(encoding="utf-8").splitlines(), 1):
        if comment := re.search(r"# (reveals|refuses) (.+)$", line):
            found[number] = (comment[1], comment[2])
    return found


def said_by_mypy(cache: Path) -> Findings:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--cache-dir", str(cache), "--hide-error-context", str(USE)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found: Findings = {}
    for line in done.stdout.splitlines():
        if reveals := re.match(r'.*typed_use\.py:(\d+): note: Revealed type is "(.+)"$', line):
            bare = re.sub(r"[a-z_.]+\.(?=[A-Za-z])", "", reveals[2])
            found[int(reveals[1])] = ("reveals", bare)
        elif refuses := re.match(r".*typed_use\.py:(\d+): error: .*\[([a-z-]+)\]$", line):
            found[int(refuses[1])] = ("refuses", refuses[2])
        elif ": error:" in line and "typed_use.py" in line:
            pytest.fail(f"mypy says something unexpected: {line}")
    return found


def test_a_type_checker_knows_what_tasks_take_and_return(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wanted = expected()

    said = said_by_mypy(tmp_path_factory.getbasetemp() / "mypy")

    assert len(wanted) > 40
    assert said == wanted
