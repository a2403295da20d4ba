"""
Start a task: ``make new-task NAME=send_mail``.

Writes a typed function at the end of machine/tasks.py and a test that runs it,
tests/unit/tasks/test_send_mail.py. Both work at once and are there to be changed.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")

TASK = '''

@task
def {name}(text: str) -> str:
    """Return the text with the task's name before it."""
    return f"{name}: {{text}}"
'''
TEST = '''"""The task {name}, sent and run in this process, without a server."""

from __future__ import annotations

from machine import Config, connect
from machine.tasks import {name}


def test_{name}_returns_its_text() -> None:
    with connect(Config(broker="eager")):
        assert {name}.send("hello").get() == "{name}: hello"
'''
NEXT = """added     {name} to machine/tasks.py, and tests/unit/tasks/test_{name}.py
next      1. write what it does: machine/tasks.py
          2. say what you expect: make test ARGS="tests/unit/tasks/test_{name}.py"
          3. send it: from machine.tasks import {name}; {name}.send("hello").get(timeout=30)"""


class TaskError(ValueError):
    """No task can be added so; nothing was changed."""


def names_of(source: str) -> set[str]:
    """
    Return every name a module defines or imports at its top.

    Raises:
        TaskError: The source is not Python.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise TaskError(
            f"machine/tasks.py is not Python: line {error.lineno}: {error.msg}"
        ) from None
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def check(root: Path, name: str, source: str) -> None:
    """
    Refuse a name that cannot be a task's.

    Raises:
        TaskError: It is malformed, means something in Python, or is taken.
    """
    if not NAME.fullmatch(name):
        raise TaskError(
            f"NAME is {name!r}; it must be 2 to 40 of a-z, 0-9 and '_', a letter first, "
            "for example send_mail"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name):
        raise TaskError(f"NAME is {name!r}, a word of Python; take another, for example do_{name}")
    if name.startswith("test_"):
        raise TaskError(f"NAME is {name!r}; pytest takes what starts with test_ for a test")
    if name in names_of(source):
        raise TaskError(f"NAME is {name!r}, which is in machine/tasks.py already; take another")
    taken = root / "tests" / "unit" / "tasks" / f"test_{name}.py"
    if taken.exists():
        raise TaskError(
            f"NAME is {name!r}, but {taken} is there already; remove it or take another"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Add a task to this copy; return 0, or 2 if it cannot be added."""
    parser = argparse.ArgumentParser(prog="make new-task", description="Start a task.")
    parser.add_argument("name", help="the function's name, for example send_mail")
    name = parser.parse_args(arguments).name
    tasks = ROOT / "machine" / "tasks.py"
    test = ROOT / "tests" / "unit" / "tasks" / f"test_{name}.py"
    try:
        source = tasks.read_text(encoding="utf-8")
        check(ROOT, name, source)
    except (OSError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    test.parent.mkdir(parents=True, exist_ok=True)
    test.write_text(TEST.format(name=name), encoding="utf-8")
    tasks.write_text(source.rstrip("\n") + "\n" + TASK.format(name=name), encoding="utf-8")
    print(NEXT.format(name=name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
