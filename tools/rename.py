"""
Give a copy of the template a name of its own: ``make rename NAME=acme``.

Replaces the present name, which is ``[project] name`` of pyproject.toml, where
it stands as a word. Names of Python and of variables are not touched: a word
joined to more by an underscore is another word. Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[a-z](?:[a-z0-9]|-(?=[a-z0-9])){1,39}")
QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,100}")
QUEUE_LINE = re.compile(r"^default_queue:[^\n]*$", re.MULTILINE)
#: What keeps the template's name, or tells of renaming itself.
KEPT = (
    "CHANGELOG.md",  # what the template did, under its name
    "LICENSE",  # whose copyright it is
    ".env",  # secrets, which may hold any word
    "docs/customise.md",
    "tools/",
    "tests/test_rename.py",
    "tests/test_new_task.py",
)
#: Folders that hold nothing of the project, for a copy without git.
FOREIGN = frozenset({".git", ".venv", "venv", "node_modules", "__pycache__", "build", "dist"})


class RenameError(ValueError):
    """The copy cannot be renamed so; nothing was changed."""


def files(root: Path) -> list[str]:
    """Return the project's files, relative to its root, sorted; locks and KEPT left out."""
    git = shutil.which("git")
    if git and (root / ".git").exists():
        listing = subprocess.run(
            [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        found = listing.stdout.split("\0")
    else:
        found = []
        for folder, folders, names in os.walk(root):
            folders[:] = [
                name for name in folders if name not in FOREIGN and not name.endswith("_cache")
            ]
            found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(
        name
        for name in set(found)
        if name
        and not name.endswith(".lock")
        and not any(name == kept or (kept[-1] == "/" and name.startswith(kept)) for kept in KEPT)
        and (root / name).is_file()
        and not (root / name).is_symlink()
    )


def text_of(path: Path) -> str | None:
    """Return a file's text, line ends as they are; None if it is not text."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None


def word(name: str) -> re.Pattern[str]:
    """Return a pattern of the name where it is a word, or the first part of a hyphened one."""
    return re.compile(rf"(?<![A-Za-z0-9_-]){re.escape(name)}(?![A-Za-z0-9_])")


def present_name(root: Path) -> str:
    """
    Return ``[project] name``.

    Raises:
        RenameError: pyproject.toml is missing, is not TOML, or has no name.
    """
    try:
        name = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(name["name"])
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise RenameError(f"{root / 'pyproject.toml'} has no [project] name: {error!r}") from None


def edits(root: Path, name: str, queue: str | None) -> dict[str, tuple[str, int]]:
    """
    Return file -> (its new text, number of places), for the files that change.

    Raises:
        RenameError: The name or the queue is not valid, or the name is a word
            of the project already.
    """
    if not NAME.fullmatch(name):
        raise RenameError(
            f"NAME is {name!r}; it must be 2 to 40 of a-z, 0-9 and single hyphens, "
            "a letter first, for example acme or acme-mail"
        )
    if queue is not None and not QUEUE.fullmatch(queue):
        raise RenameError(
            f"QUEUE is {queue!r}; it must be 1 to 100 of A-Z, a-z, 0-9, '_', '.' and '-', "
            "for example acme_tasks"
        )
    old = present_name(root)
    changed: dict[str, tuple[str, int]] = {}
    for file in files(root):
        text = text_of(root / file)
        if text is None:
            continue
        if name != old and (taken := word(name).search(word(old).sub("", text))):
            line = text.count("\n", 0, taken.start()) + 1
            raise RenameError(
                f"NAME {name!r} is a word of the project already ({file}:{line}), and nobody "
                f"could tell the two apart later; take a longer one, for example {name}-service"
            )
        new, places = word(old).subn(name, text)
        if file == "config.yml" and queue is not None:
            new = QUEUE_LINE.sub(f"default_queue: {queue}", new)
            places += 1
        if new != text:
            changed[file] = (new, places)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Rename this copy; return 0, or 2 if it cannot be renamed so."""
    parser = argparse.ArgumentParser(prog="make rename", description="Rename this copy.")
    parser.add_argument("name", help="the new name: 2 to 40 of a-z, 0-9 and -")
    parser.add_argument("--queue", help="also make this the default queue in config.yml")
    given = parser.parse_args(arguments)
    try:
        changed = edits(ROOT, given.name, given.queue)
    except RenameError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # pyproject.toml last: as long as it has the old name, the old name can be found.
    for file in sorted(changed, key=lambda file: (file == "pyproject.toml", file)):
        new, places = changed[file]
        (ROOT / file).write_bytes(new.encode())
        print(f"changed   {file} ({places} {'place' if places == 1 else 'places'})")
    print(f"{len(changed)} files changed" if changed else "nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main())
