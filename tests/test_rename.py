"""``make rename`` on a copy of the tree: the name is gone, and the copy's own tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*_cache", ".hypothesis", ".env")
#: Where the template's name may stay, and why.
STAYS = {
    "CHANGELOG.md": "what the template did, under its name",
    "LICENSE": "whose copyright it is",
    "docs/customise.md": "tells of renaming",
    "tests/test_rename.py": "this",
    "tests/test_new_task.py": "tells of tools",
    "tools/rename.py": "tells of renaming",
    "tools/new_task.py": "the same",
}
#: Fast tests that look at names, at paths and at what is packaged; none needs a server.
OWN_TESTS = (
    "tests/unit/test_machine.py",
    "tests/unit/periodic/test_cron.py",
    "tests/test_architecture.py",
    "tests/test_template.py",
    "tests/test_settings_documented.py",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the tree, without git and without an environment."""
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=FOREIGN)


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def rename(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(root, "tools/rename.py", *arguments)


def texts(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def name_of(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"])


def test_a_renamed_copy_has_the_old_name_only_where_it_should(copy: Path) -> None:
    # The word as the tool has it: not in WERK_TEST_SERVER, nor in werkzeug.
    old = re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(name_of(copy))}(?![A-Za-z0-9_])")

    done = rename(copy, "zeta-copy")

    left = {name for name, text in texts(copy).items() if old.search(text.decode(errors="replace"))}
    assert (done.returncode, done.stderr) == (0, "")
    assert left <= STAYS.keys()
    assert name_of(copy) == "zeta-copy"
    assert "\nname: zeta-copy\n" in (copy / "docker-compose.yml").read_text()


def test_a_renamed_copy_passes_its_own_tests(copy: Path) -> None:
    assert rename(copy, "zeta-copy").returncode == 0

    tested = run(copy, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *OWN_TESTS)

    assert tested.returncode == 0, tested.stdout[-3000:]


def test_renaming_twice_changes_nothing(copy: Path) -> None:
    rename(copy, "zeta-copy")
    before = texts(copy)

    again = rename(copy, "zeta-copy")

    assert (again.returncode, again.stdout) == (0, "nothing to change\n")
    assert texts(copy) == before


def test_renaming_back_gives_the_tree_as_it_was(copy: Path) -> None:
    before, name = texts(copy), name_of(copy)
    rename(copy, "zeta-copy")

    assert rename(copy, name).returncode == 0
    assert texts(copy) == before


def test_the_queue_changes_only_when_it_is_asked_for(copy: Path) -> None:
    config = copy / "config.yml"
    before = config.read_text()
    name = name_of(copy)

    assert rename(copy, name).returncode == 0
    assert config.read_text() == before
    assert rename(copy, "--queue=acme_tasks", "--", name).returncode == 0
    assert "\ndefault_queue: acme_tasks\n" in config.read_text()


@pytest.mark.parametrize("name", ["", "a", "Acme", "9lives", "a_b", "a--b", "a-", "a b", "a" * 41])
def test_a_name_that_will_not_do_is_refused(copy: Path, name: str) -> None:
    before = texts(copy)

    done = rename(copy, "--", name)

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: NAME is {name!r}; it must be 2 to 40 of")
    assert texts(copy) == before


@pytest.mark.parametrize("name", ["redis", "worker", "task"])
def test_a_word_of_the_project_is_refused(copy: Path, name: str) -> None:
    before = texts(copy)

    done = rename(copy, name)

    assert done.returncode == 2
    assert f"NAME {name!r} is a word of the project already (" in done.stderr
    assert texts(copy) == before


def test_a_queue_that_will_not_do_is_refused(copy: Path) -> None:
    done = rename(copy, "--queue=a b", "--", name_of(copy))

    assert done.returncode == 2
    assert done.stderr.startswith("error: QUEUE is 'a b'; it must be")


def test_bytes_that_are_no_text_are_left_alone(copy: Path) -> None:
    (copy / "logo.bin").write_bytes(b"\xff\xfe " + name_of(copy).encode())
    before = (copy / "logo.bin").read_bytes()

    assert rename(copy, "zeta-copy").returncode == 0
    assert (copy / "logo.bin").read_bytes() == before
