"""
Members of a JSON body, read one by one: each is what it must be, or the request is refused.

Where a member stands is said in its own words: ``members[3].options.queue``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from caller.web.problems import Problem
from machine.errors import WireError
from machine.wire.headers import ON_DUPLICATE, unique_key
from machine.wire.limits import MOST_RETRIES
from machine.wire.text import check_value, ns_from_text, scan, shown

#: Seconds that a task may wait at most: about 30 years.
LONGEST_WAIT_S: Final = 1_000_000_000
MOST_HEADERS: Final = 60
LONGEST_HEADER: Final = 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPACE = " \t\r\n"
Schema = dict[str, Any]


def parsed(raw: bytes, what: str) -> Any:
    """
    Return the one JSON value in ``raw``.

    Raises:
        ValueError: It is none, with the reason.
    """
    try:
        text = raw.decode()
        found, end = scan(text, len(text) - len(text.lstrip(_SPACE)))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate in a string; send text that UTF-8 can hold") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    if text[end:].strip(_SPACE):
        raise ValueError(f"something follows the value at character {end}")
    check_value(found, what)
    return found


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


class Option(NamedTuple):
    """One option: its JSON schema, and how it is read."""

    schema: Schema
    read: Callable[[Any, str], Any]


def _seconds() -> Option:
    most = LONGEST_WAIT_S
    return Option(
        {"type": "number", "minimum": 0, "maximum": most, "description": "Seconds from now."},
        lambda value, where: number(value, where, 0, most),
    )


def _whole(most: int, text: str) -> Option:
    return Option(
        {"type": "integer", "minimum": 0, "maximum": most, "description": text},
        lambda value, where: whole(value, where, 0, most),
    )


def _flag(text: str) -> Option:
    return Option({"type": "boolean", "description": text}, flag)


def _expires(value: Any, where: str) -> float | datetime:
    if isinstance(value, str):
        return moment(value, where)
    found = number(value, where, 0, LONGEST_WAIT_S)
    if found < 1e-9:
        raise refuse(where, value, "more than 0 seconds")
    return found


def _headers(value: Any, where: str) -> dict[str, str]:
    return texts(value, where, most=MOST_HEADERS, longest=LONGEST_HEADER)


def _unique(value: Any, where: str) -> str:
    return "" if value == "" else unique_key(text(value, where))


#: What a body may say about a sending; each as `TypedSignature.options` has it.
OPTIONS: Final[Mapping[str, Option]] = {
    "queue": Option({"type": "string"}, text),
    "countdown": _seconds(),
    "eta": Option(
        {"type": "string", "format": "date-time", "description": "Not to start before."},
        moment,
    ),
    "expires": Option(
        {
            "description": "Not to start from then on: seconds, or a time.",
            "oneOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_WAIT_S},
                {"type": "string", "format": "date-time"},
            ],
        },
        _expires,
    ),
    "retry_count": _whole(MOST_RETRIES, "Runs allowed after the first one fails."),
    "retry_timeout": _whole(86_400, "Seconds that the growing delays start above."),
    "priority": _whole(255, "For Go's other brokers."),
    "immutable": _flag("Its results are not handed to what follows."),
    "ignore_when_task_not_registered": _flag("A worker that does not know it drops it."),
    "unique": Option(
        {"type": "string", "maxLength": 256, "description": "A key that one task may have."},
        _unique,
    ),
    "on_duplicate": Option(
        {"type": "string", "enum": list(ON_DUPLICATE), "description": "If another has the key."},
        lambda value, where: text(value, where, ON_DUPLICATE),
    ),
    "headers": Option(
        {
            "type": "object",
            "description": "Travel with the message; names beginning with x- are the machine's.",
            "maxProperties": MOST_HEADERS,
            "propertyNames": {"minLength": 1, "pattern": "^(?![xX]-)"},
            "additionalProperties": {"type": "string", "maxLength": LONGEST_HEADER},
        },
        _headers,
    ),
}
