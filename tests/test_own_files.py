"""
No test of the template and no lint rule judges a user's own files.

A copy gets a `machine/tasks.py`, a package and a test as a user might write
them, against every rule of the house; `make check` and the tests of the house
must still pass there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What a copy of the project leaves out.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist"
)
#: The tests that read the code instead of running it. Each of the others asks about its own room.
HOUSE = [
    "tests/test_architecture.py",
    "tests/test_compose_files.py",
    "tests/test_lua.py",
    "tests/test_settings_documented.py",
    "tests/test_template.py",
]

RUDE = """
import json, os, pickle
import redis
from mail.letters import Letter
try:
    import numpy_like
except ImportError:
    numpy_like = None

KEY = os.environ.get("MAIL_KEY", "")

@task(queue='mail')
def rude(to, copies = 1):
    print("sending", to)
    letter = pickle.loads(pickle.dumps(Letter(to)))
    return json.dumps([letter.to, eval("copies"), redis.__name__, KEY])

def undocumented(a,b,c,d,e,f,g): return [a,b,c,d,e,f,g , undefined_until_it_is_called]
"""
LETTERS = """
import json, os
HOME = os.environ.get('HOME')
class Letter:
  def __init__(self,to): self.to=to
  def send(self): return json.dumps(vars(self)) + 1
"""
#: Among the template's files, so as the template wants it; but it may import a user's package.
CALLER = '''"""Sends letters."""

from mail.letters import Letter

__all__ = ["Letter"]
'''
TEST = """
from machine.tasks import rude
def test_rude(): assert rude.fn("ann")=='["ann", 1, "redis", ""]'
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with a user's files in it."""
    root = tmp_path_factory.mktemp("own") / "copy"
    shutil.copytree(ROOT, root, ignore=NOT_COPIED, symlinks=True)
    tasks = root / "machine" / "tasks.py"
    long = "".join(f"LINE_{number} = {number}\n" for number in range(600))
    tasks.write_text(tasks.read_text(encoding="utf-8") + RUDE + long, encoding="utf-8")
    for name, text in {
        "mail/letters.py": LETTERS,
        "mail/__init__.py": "import json,os\n",
        "tests/unit/tasks/test_rude.py": TEST,
        "caller/letters.py": CALLER,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    pyproject = root / "pyproject.toml"
    pyproject.write_text(
        pyproject.read_text(encoding="utf-8").replace(
            'packages = [\n    "machine",', 'packages = [\n    "mail",\n    "machine",'
        ),
        encoding="utf-8",
    )
    return root


def run(copy: Path, *command: str) -> str:
    """Run a command in the copy; return what it printed where it failed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        cwd=copy,
        env=inherited | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-4000:]


def test_make_check_passes_whatever_a_user_writes(copy: Path) -> None:
    # No environment is built: the tools are this one's.
    said = run(copy, "make", "check", "READY=", "DEV=", f"RUN={sys.executable}")

    assert said == ""


def test_the_tests_of_the_house_pass_whatever_a_user_writes(copy: Path) -> None:
    said = run(
        copy, sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "tests/unit/tasks", *HOUSE
    )

    assert said == ""


@pytest.mark.parametrize("check", [("ruff", "check"), ("ruff", "format", "--check")])
def test_the_same_lines_elsewhere_are_refused(copy: Path, check: tuple[str, ...]) -> None:
    # What passes above passes for its place, and not because nothing is looked at.
    elsewhere = copy / "machine" / "wire" / "rude.py"
    elsewhere.write_text(RUDE, encoding="utf-8")

    said = run(copy, sys.executable, "-m", *check, ".")

    elsewhere.unlink()
    assert "machine/wire/rude.py" in said
