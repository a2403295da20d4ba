"""docs/acceptance.md: complete, and about tests that are there and not skipped by a slip."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "acceptance.md"
LINES = range(1, 126)
CITED = re.compile(r"`([\w/]+\.py)::([\w:]+)`")


class Row(NamedTuple):
    """One line of the list; ``tests`` are pairs of a path below tests/ and a name."""

    number: int
    behaviour: str
    status: str
    tests: list[tuple[str, str]]
    reason: str


def rows(text: str) -> list[Row]:
    """Return the rows of the page's tables that begin with a number."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            number, behaviour, status, proof = cells
            reason = CITED.sub("", proof).strip(" ,")
            found.append(Row(int(number), behaviour, status, CITED.findall(proof), reason))
    return found


ROWS = rows(PAGE.read_text(encoding="utf-8"))
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))


@cache
def defined_in(path: str) -> frozenset[str]:
    """Return a file's tests as pytest names them, ``Class::test`` where they are in a class."""
    file = TESTS / path
    return names_in(file.read_text(encoding="utf-8")) if file.is_file() else frozenset()


def names_in(source: str) -> frozenset[str]:
    """Return the tests that a module's source defines."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for one in inside:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{prefix}{one.name}")
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def marked() -> list[tuple[int, str, str]]:
    """Return number, file and name of each test that is marked as proof of a line."""
    found = []
    for file in sorted((TESTS / "acceptance").glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                numbers = [
                    argument.value
                    for mark in node.decorator_list
                    if isinstance(mark, ast.Call)
                    and ast.unparse(mark.func) == "pytest.mark.acceptance"
                    for argument in mark.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, int)
                ]
                found += [(n, f"acceptance/{file.name}", node.name) for n in numbers or [0]]
    return found


def test_every_line_of_the_list_has_one_row() -> None:
    assert [row.number for row in ROWS] == list(LINES)


@each_row
def test_a_row_says_what_it_is_about_and_how_it_stands(row: Row) -> None:
    assert row.behaviour != ""
    assert row.status in ("proved", "differs", "not built")


@each_row
def test_a_row_has_tests_or_a_reason_as_its_status_says(row: Row) -> None:
    if row.status == "proved":
        assert (bool(row.tests), row.reason) == (True, "")
    else:
        assert row.reason != ""
        assert row.tests or row.status == "not built"


@each_row
def test_the_tests_that_a_row_names_are_there(row: Row) -> None:
    missing = [f"{path}::{name}" for path, name in row.tests if name not in defined_in(path)]

    assert missing == []


def test_a_gap_is_called_one() -> None:
    silent = [row.number for row in ROWS if row.status == "not built"]

    assert silent == [r.number for r in ROWS if "not built yet" in r.reason.lower()]


def test_a_test_made_for_a_line_stands_in_its_row() -> None:
    cited = {(row.number, path, name) for row in ROWS for path, name in row.tests}

    found = marked()

    assert found != []
    assert [one for one in found if one not in cited] == []


def test_a_row_with_a_name_that_is_not_there_is_found() -> None:
    [row] = rows("| 7 | it works | proved | `test_acceptance.py::test_nobody_wrote` |")

    assert row == Row(7, "it works", "proved", [("test_acceptance.py", "test_nobody_wrote")], "")
    assert row.tests[0][1] not in defined_in(row.tests[0][0])
    assert defined_in("no_such_file.py") == frozenset()
    assert names_in("class TestA:\n def test_b(self): ...\ndef helper(): ...") == {"TestA::test_b"}
