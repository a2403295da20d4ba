"""
Bodies of requests: bytes -> JSON -> structs, which say what a body may hold.

The structs check types and bounds, and /openapi.json has their schemas; what
depends on the tasks known is checked in `workflows`. A body is untrusted:
whatever it holds, it is read, or refused with a `Problem`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from caller.web.problems import Problem
from machine.wire.headers import LONGEST_KEY, ON_DUPLICATE, check_unique_key
from machine.wire.limits import MOST_RETRIES
from machine.wire.text import check_value, scan_json, shorten

B = TypeVar("B", bound=Struct)

#: Seconds that a task may wait at most: about 30 years.
LONGEST_WAIT_S: Final = 1_000_000_000
MOST_HEADERS: Final = 60
LONGEST_HEADER: Final = 1024
#: Options that are whole numbers. 3.0 is one in JSON, but none to msgspec's int.
WHOLE: Final = ("retry_count", "retry_timeout", "priority")

_SPACE: Final = " \t\r\n"

_Seconds = Annotated[float, Meta(ge=0, le=LONGEST_WAIT_S, description="Seconds from now.")]
_Time = Annotated[datetime, Meta(tz=True, description="Not to start before.")]
_Expiry = Annotated[
    Annotated[float, Meta(gt=0, le=LONGEST_WAIT_S)] | Annotated[datetime, Meta(tz=True)],
    Meta(description="Not to start from then on: seconds, or a time."),
]
_Retries = Annotated[
    float,
    Meta(ge=0, le=MOST_RETRIES, multiple_of=1, description="Runs allowed after the first failure."),
]
_RetryTimeout = Annotated[
    float,
    Meta(
        ge=0, le=86_400, multiple_of=1, description="Seconds that the growing delays start above."
    ),
]
_Priority = Annotated[
    float, Meta(ge=0, le=255, multiple_of=1, description="For Go's other brokers.")
]
_Immutable = Annotated[bool, Meta(description="Its results are not handed to what follows.")]
_Droppable = Annotated[bool, Meta(description="A worker that does not know it drops it.")]
_Unique = Annotated[
    str, Meta(max_length=LONGEST_KEY, description="A key that one task may have at a time.")
]
_OnDuplicate = Annotated[
    str,
    Meta(
        description="What to do if another has the key.",
        extra_json_schema={"enum": list(ON_DUPLICATE)},
    ),
]
_Headers = Annotated[
    dict[str, Any],
    Meta(
        max_length=MOST_HEADERS,
        description="Travel with the message; names beginning with x- are the machine's.",
        extra_json_schema={
            "propertyNames": {"minLength": 1, "maxLength": LONGEST_HEADER, "pattern": "^(?![xX]-)"},
            "additionalProperties": {"type": "string", "maxLength": LONGEST_HEADER},
        },
    ),
]
#: An argument; what it may be depends on the task.
_Argument = Annotated[Any, Meta(extra_json_schema={"$ref": "#/components/schemas/Value"})]


# The structs' docstrings are read by clients, in /openapi.json.
class SendOptions(Struct, forbid_unknown_fields=True):
    """How a task is sent."""

    # The names are those of `TypedSignature.options`.
    queue: str | UnsetType = UNSET
    countdown: _Seconds | UnsetType = UNSET
    eta: _Time | UnsetType = UNSET
    expires: _Expiry | UnsetType = UNSET
    retry_count: _Retries | UnsetType = UNSET
    retry_timeout: _RetryTimeout | UnsetType = UNSET
    priority: _Priority | UnsetType = UNSET
    immutable: _Immutable | UnsetType = UNSET
    ignore_when_task_not_registered: _Droppable | UnsetType = UNSET
    unique: _Unique | UnsetType = UNSET
    on_duplicate: _OnDuplicate | UnsetType = UNSET
    headers: _Headers | UnsetType = UNSET


class CallBody(Struct, forbid_unknown_fields=True):
    """The call of a task."""

    args: list[_Argument] | UnsetType = UNSET
    kwargs: dict[str, _Argument] | UnsetType = UNSET
    options: SendOptions | UnsetType = UNSET


class PieceBody(CallBody):
    """A task with its name, or one of the three kinds of workflow and nothing beside it."""

    name: str | UnsetType = UNSET
    chain: _Pieces | UnsetType = UNSET
    group: _Pieces | UnsetType = UNSET
    chord: ChordBody | UnsetType = UNSET


_Pieces = Annotated[list[PieceBody], Meta(min_length=1)]


class ChainBody(Struct, forbid_unknown_fields=True):
    """Pieces that run one after the other."""

    steps: _Pieces


class GroupBody(Struct, forbid_unknown_fields=True):
    """Pieces that run side by side."""

    members: _Pieces


class ChordBody(GroupBody):
    """Pieces that run side by side, and one that runs after them with their results."""

    callback: PieceBody


def parse_json(raw: bytes, what: str) -> Any:
    """
    Return the one JSON value in ``raw``, read as strictly as a message from Redis.

    Refused are NaN, a key twice, lone surrogates, floats beyond 64 bits, ints of
    more than 4,300 digits, more than 64 levels, and anything behind the value.

    Raises:
        ValueError: It is none, with the reason.
    """
    try:
        text = raw.decode()
        found, end = scan_json(text, len(text) - len(text.lstrip(_SPACE)))
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


def convert(found: Any, kind: type[B]) -> B:
    """
    Return a body as a struct.

    Args:
        found: As `parse_json` gives it: msgspec's recursion is bounded by its levels.
        kind: The struct.

    Raises:
        Problem: A member is not what it must be; the text says where it stands,
            e.g. ``members[3].options.queue``, and what it is.
    """
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), found, kind) from None


def given(body: Struct) -> dict[str, Any]:
    """Return the members that a body has, by name."""
    every = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in every.items() if value is not UNSET}


def signature_options(options: SendOptions, where: str, queues: Sequence[str]) -> dict[str, Any]:
    """
    Return options as `TypedSignature.options` takes them.

    Args:
        options: From the body.
        where: Where they stand in it.
        queues: Those that may be named.

    Raises:
        Problem: One is not what it must be.
        SignatureError: The key is none.
    """
    found = given(options)
    _check_choice(found, "queue", queues, where)
    _check_choice(found, "on_duplicate", ON_DUPLICATE, where)
    for name in found.keys() & set(WHOLE):
        found[name] = int(found[name])
    if found.get("unique"):
        check_unique_key(found["unique"])
    _check_headers(found.get("headers", {}), f"{where}.headers")
    return found


def refuse(where: str, value: Any, expected: str) -> Problem:
    """Return the refusal of a member, to be raised."""
    return Problem("invalid", f"{where} is {shorten(value)}; give {expected}.")


def _check_choice(found: dict[str, Any], name: str, choices: Collection[str], where: str) -> None:
    if name in found and found[name] not in choices:
        raise refuse(f"{where}.{name}", found[name], f"one of {', '.join(choices)}")


def _check_headers(headers: dict[str, Any], where: str) -> None:
    for name, text in headers.items():
        if not 0 < len(name) <= LONGEST_HEADER or not name.isprintable():
            raise refuse(where, name, f"names of 1 to {LONGEST_HEADER} printable characters")
        if name.lower().startswith("x-"):
            raise refuse(where, name, "names that do not begin with x-, which are the machine's")
        if not isinstance(text, str) or len(text) > LONGEST_HEADER:
            expected = f"a text of at most {LONGEST_HEADER} characters"
            raise refuse(f"{where}.{name[:80]}", text, expected)


# -- msgspec's errors in our words ---------------------------------------------------------------
_ERROR: Final = re.compile(r"(.*?)(?: - at `\$\.?([a-z_.\[\]0-9]*)`)?", re.DOTALL)
_UNKNOWN: Final = "Object contains unknown field `"
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_RFC_3339: Final = "an RFC 3339 time, like 2026-11-20T15:15:26Z"
#: In this order: a longer one before what is part of it.
_WORDS: Final = {
    "`datetime` with a timezone component": _RFC_3339,
    "Invalid RFC3339 encoded datetime": _RFC_3339,
    "Number out of range": "a number that fits 64 bits",
    "`datetime`": _RFC_3339,
    "`float | datetime`": f"a number of seconds, or {_RFC_3339}",
    "`float` that's a multiple of 1": "a whole number",
    "`float`": "a number", "`str`": "a text", "`bool`": "true or false",
    "`array`": "an array", "`object`": "an object",
    # Signs would be escaped in the answer, as Go does it.
    " of length >=": " of at least", " of length <=": " of at most",
    " >=": " of at least", " <=": " of at most", " >": " of more than",
}  # fmt: skip


def _refusal(error: str, found: Any, kind: type[Struct]) -> Problem:
    """Return what msgspec's error says, with the value and in the words of JSON."""
    match = _ERROR.fullmatch(error)
    text, path = (match[1], match[2] or "") if match else (error, "")
    where = path or "the body"
    if text.startswith(_UNKNOWN):
        name, known = text.removeprefix(_UNKNOWN)[:-1], _struct_at(path, kind).__struct_fields__
        close = difflib.get_close_matches(name[:80], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return Problem(
            "invalid", f"{where} has the member {shorten(name)}; known: {', '.join(known)}{hint}"
        )
    if missing := _MISSING.fullmatch(text):
        return Problem("invalid", f"{where} has no member {missing[1]!r}; give it.")
    expected = text.partition(", got ")[0].removeprefix("Expected ")
    expected = re.sub(r"(\d)\.0\b", r"\1", expected)
    for theirs, ours in _WORDS.items():
        expected = expected.replace(theirs, ours)
    return refuse(where, _value_at(path, found), expected)


def _struct_at(path: str, kind: type[Struct]) -> type[Struct]:
    last = path.rpartition(".")[2]
    known: dict[str, type[Struct]] = {"": kind, "options": SendOptions, "chord": ChordBody}
    return known.get(last, PieceBody)


def _value_at(path: str, found: Any) -> Any:
    for name, index in re.findall(r"([a-z_]+)|\[(\d+)\]", path):
        found = found[int(index)] if index else found[name]
    return found
