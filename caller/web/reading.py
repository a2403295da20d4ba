"""
Members of a JSON body, read one by one: each is what it must be, or the request is refused.

Where a member stands is said in its own words: ``members[3].options.queue``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from caller.web.problems import Problem
from machine.errors import WireError
from machine.wire.text import ns_from_text, shown

#: Seconds that a task may wait at most: about 30 years.
LONGEST_WAIT_S: Final = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def refuse(where: str, value: Any, expected: str) -> Problem:
    """Return the refusal of a member, to be raised."""
    return Problem("invalid", f"{where} is {shown(value)}; give {expected}.")


def members(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    """
    Return an object that has no other members than these.

    Raises:
        Problem: It is no object, or has another one.
    """
    if not isinstance(value, dict):
        raise refuse(where, value, "an object")
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name[:80], known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise Problem(
                "invalid", f"{where} has the member {shown(name)}; known: {', '.join(known)}{hint}"
            )
    return value


def array(value: Any, where: str, *, least: int = 0) -> list[Any]:
    """Return an array as it is; refuse anything else, and one of fewer items."""
    if not isinstance(value, list):
        raise refuse(where, value, "an array")
    if len(value) < least:
        raise Problem("invalid", f"{where} is empty; give at least one item.")
    return value


def text(value: Any, where: str, choices: Collection[str] = ()) -> str:
    """Return a text as it is; refuse anything else."""
    if not isinstance(value, str) or (choices and value not in choices):
        raise refuse(where, value, f"one of {', '.join(choices)}" if choices else "a text")
    return value


def flag(value: Any, where: str) -> bool:
    """Return true or false as it is; refuse anything else."""
    if not isinstance(value, bool):
        raise refuse(where, value, "true or false")
    return value


def number(value: Any, where: str, least: float, most: float) -> float:
    """Return a number within bounds; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise refuse(where, value, f"a number from {least:.10g} to {most:.10g}")
    return float(value)


def whole(value: Any, where: str, least: int, most: int) -> int:
    """Return a whole number within bounds, also one written 3.0; refuse anything else."""
    found = number(value, where, least, most)
    if not found.is_integer():
        raise refuse(where, value, f"a whole number from {least} to {most}")
    return int(found)


def moment(value: Any, where: str) -> datetime:
    """Return an RFC 3339 time in UTC; refuse anything else."""
    if not isinstance(value, str):
        raise refuse(where, value, "an RFC 3339 time, like 2026-11-20T15:15:26Z")
    try:
        return _EPOCH + timedelta(microseconds=ns_from_text(value) // 1000)
    except WireError:
        raise refuse(where, value, "an RFC 3339 time, like 2026-11-20T15:15:26Z") from None


def texts(value: Any, where: str, *, most: int, longest: int) -> dict[str, str]:
    """Return an object of texts; refuse anything else, and names that are the machine's own."""
    if not isinstance(value, dict) or len(value) > most:
        raise refuse(where, value, f"an object of at most {most} texts")
    for name, one in value.items():
        if not 0 < len(name) <= longest or not name.isprintable():
            raise refuse(where, name, f"names of 1 to {longest} printable characters")
        if name.lower().startswith("x-"):
            raise refuse(where, name, "names that do not begin with x-, which are the machine's")
        if not isinstance(one, str) or len(one) > longest:
            raise refuse(f"{where}.{name[:80]}", one, f"a text of at most {longest} characters")
    return value
