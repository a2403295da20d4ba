"""
JSON text and time text, as Go reads and writes them.

`messages` and `states` build on it. It parses bytes that anyone may have
written, strictly, and writes strings, floats and times as Go spells them.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Final

from machine.errors import SignatureError, WireError

#: Levels of lists and objects inside one value.
DEEPEST: Final = 64
#: What Go writes for a time nobody set.
ZERO_TIME: Final = "0001-01-01T00:00:00Z"
#: Bytes of UTF-8 kept of an error's text.
LONGEST_ERROR: Final = 8192
#: What errors call the types `parse_json` gives.
EXPECTED: Final = {
    str: "a string", int: "an integer", bool: "true or false", list: "an array", dict: "an object",
}  # fmt: skip
#: JSON text of a string, quotes included, all but ``<>&`` and U+2028/9 as Go spells it.
quote: Final = encode_basestring
_SECOND: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_FIRST_NS: Final = (1 - _EPOCH_DAY) * 86_400 * _SECOND
_END_NS: Final = (date.max.toordinal() + 1 - _EPOCH_DAY) * 86_400 * _SECOND
_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d+))?"
    r"(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
#: Searching a pattern that begins with fixed letters takes a third of ``"-0" in text``.
_MINUS_ZERO: Final = re.compile(r"-0[],} \t\r\n]").search
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(raw: bytes, what: str, *, most_bytes: int | None = None) -> Any:
    """
    Return the first JSON value in ``raw``; whatever follows it is ignored, as in Go.

    Refused beyond bad JSON: more than ``most_bytes``, anything but UTF-8, a key
    written twice, NaN and Infinity, ints of more than 4,300 digits, lone
    surrogates, nesting that exhausts the stack. ``-0`` is a float here, so that
    its sign survives; floats too large for 64 bits are left to `check_value`.

    Args:
        raw: From Redis; nothing is known about it.
        what: Names it in errors, e.g. "signature".
        most_bytes: The longest to look at.

    Raises:
        WireError: The bytes are not such a value.
    """
    if most_bytes is not None and len(raw) > most_bytes:
        raise WireError(f"{what} has {len(raw)} bytes; expected {most_bytes} at most")
    try:
        text = raw.decode()
        start = 0 if text[:1] == "{" else len(text) - len(text.lstrip(" \t\r\n"))
        return scan_json(text, start)[0]
    except UnicodeDecodeError as error:
        bad = raw[error.start]
        reason = f"byte 0x{bad:02x} at {error.start}; expected UTF-8"
    except UnicodeEncodeError:
        reason = "a lone surrogate in a string; expected text that UTF-8 can hold"
    except RecursionError:
        reason = "nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"not JSON at character {error.pos}: {error.msg}"
    except WireError as error:
        reason = str(error)
    except ValueError:  # int() of more digits than Python converts
        reason = "an integer of more than 4300 digits"
    raise WireError(f"{what}: {reason}") from None


def scan_json(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at ``start`` and where it ends; raises as json and int() do."""
    signed = _MINUS_ZERO(text, start) is not None
    found, end = (_SIGNED if signed else _PLAIN).raw_decode(text, start)
    if "\\" in text and _SURROGATE.search(text, start):
        # Python's parser accepts half of a surrogate pair; encoding it raises.
        json.dumps(found, ensure_ascii=False).encode()
    return found, end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        twice = next(key for key, after in itertools.pairwise(keys) if key == after)
        raise WireError(f"key {shorten(twice)} appears twice; expected it once")
    return found


def _no_constant(name: str) -> float:
    raise WireError(f"{name} is not a JSON number")


def _signed_int(text: str) -> float:
    return -0.0 if text == "-0" else int(text)


_PLAIN: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
_SIGNED: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_signed_int
)


def match_keys(
    found: Mapping[str, Any], keys: Mapping[str, int], empty: Sequence[Any], at: str
) -> tuple[list[Any], dict[str, Any]]:
    """
    Return an object's values in the order of ``keys``, and what is under other keys.

    Keys match in any case, as in Go, but only once. Absent and null fields have
    their value from ``empty``.

    Args:
        found: The parsed object.
        keys: Lower-case key -> position.
        empty: The value of each position where nothing was written.
        at: Path of the object in errors, e.g. ``signature field OnSuccess[0].``.
    """
    values = list(empty)
    seen: set[int] = set()
    others: dict[str, Any] = {}
    for key, value in found.items():
        place = keys.get(key.lower())
        if place is None:
            others[key] = value
            continue
        if place in seen:
            raise WireError(f"{at}{key} appears twice in different cases; expected it once")
        seen.add(place)
        if value is not None:
            values[place] = value
    return values, others


def check_value(value: Any, at: str, depth: int = 1) -> None:
    """Raise `WireError` where a value holds infinity or is nested over 64 levels."""
    if type(value) is float and not math.isfinite(value):
        raise unexpected(at, value, "a number that fits 64 bits")
    if type(value) is list or type(value) is dict:
        if depth > DEEPEST:
            raise WireError(f"{at} is nested too deeply; expected {DEEPEST} levels at most")
        for item in value.values() if type(value) is dict else value:
            kind = type(item)
            if kind is float or kind is list or kind is dict:
                check_value(item, at, depth + 1)


def unexpected(field: str, value: Any, expected: str) -> WireError:
    """Return an error that names a field, its value and what was expected."""
    return WireError(f"{field} is {shorten(value)}; expected {expected}")


def shorten(value: Any) -> str:
    """Return a parsed value for an error's text: one printable line of at most 80 characters."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + "…")[:80]
    if isinstance(value, dict | list):
        return f"an {'object' if isinstance(value, dict) else 'array'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return "null" if value is None else str(value).lower()


def format_float(value: float) -> str:
    """
    Return a float as Go writes it: shortest digits, exponents below 1e-6 and from 1e21.

    Raises:
        SignatureError: NaN or infinity, which JSON does not have.
    """
    text = float.__repr__(value)
    if "e" not in text:
        if text.endswith(".0"):
            return text[:-2]
        if text[-1].isdigit():
            return text
        raise SignatureError(f"{text} cannot be written as JSON; send a finite number")
    digits, _, power = text.partition("e")
    exponent = int(power)
    if exponent < -6 or exponent >= 21:
        return f"{digits}e{exponent:+d}"
    sign = "-" if digits[0] == "-" else ""
    whole, _, fraction = digits.lstrip("-").partition(".")
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{whole}{fraction}"
    return f"{sign}{whole}{fraction}{'0' * (exponent - len(fraction))}"


def format_value(value: Any, depth: int = 1, *, floats: bool = False) -> str:
    """
    Return any JSON value as Go writes it: no spaces, object keys sorted.

    Args:
        value: As `parse_json` gives it.
        depth: How many lists and objects it stands in, itself included.
        floats: Whether a type beside the value says that its numbers are floats. If none does,
            1.0 keeps its ``.0``: without it a reader would take it for an int.

    Raises:
        SignatureError: It is not a JSON value, or is nested deeper than 64 levels.
    """
    kind = type(value)
    if kind is str:
        return quote(value)
    if kind is int:
        return int.__repr__(value)
    if kind is float:
        text = format_float(value)
        # "-0" needs no point: parse_json takes it for a float, and Go for an int where one is due.
        bare = not floats and text != "-0" and text.lstrip("-").isdigit()
        return f"{text}.0" if bare else text
    if value is None or kind is bool:
        return "null" if value is None else "true" if value else "false"
    if depth > DEEPEST:
        raise SignatureError(f"a value holds itself or is nested deeper than {DEEPEST} levels")
    if kind is list:
        return f"[{','.join([format_value(item, depth + 1, floats=floats) for item in value])}]"
    if kind is dict and all(type(key) is str for key in value):
        items = [f"{quote(key)}:{format_value(value[key], depth + 1)}" for key in sorted(value)]
        return f"{{{','.join(items)}}}"
    raise SignatureError(f"a {kind.__name__} is not a JSON value; see gotypes for what can be sent")


def to_bytes(text: str, what: str) -> bytes:
    """
    Return finished JSON text as UTF-8, with the five characters Go escapes for HTML.

    JSON's own syntax has none of the five, so they occur in strings only and a
    plain replacement is safe.

    Raises:
        SignatureError: A string holds a lone surrogate.
    """
    if "<" in text:
        text = text.replace("<", "\\u003c")
    if ">" in text:
        text = text.replace(">", "\\u003e")
    if "&" in text:
        text = text.replace("&", "\\u0026")
    if text.isascii():
        return text.encode()
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = f"{what} holds the lone surrogate {text[error.start]!a}"
        raise SignatureError(f"{bad}; send text that UTF-8 can hold") from None


def cut_error(text: str, most_bytes: int = LONGEST_ERROR) -> str:
    """Return a failure's text as it may be stored: ``most_bytes`` of UTF-8, no lone surrogates."""
    if len(text) * 4 > most_bytes or not text.isascii():
        data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
        if len(data) > most_bytes:
            data = data[: most_bytes - 3] + "…".encode()
        text = data.decode("utf-8", "ignore")
    return text


def format_time(ns: int) -> str:
    """
    Return Unix nanoseconds as RFC 3339 text in UTC, trailing zeros of the fraction cut.

    Raises:
        SignatureError: Not in the years 1 to 9999.
    """
    seconds, fraction = divmod(ns, _SECOND)
    text = _second_text(seconds)
    return f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else f"{text}Z"


@lru_cache(maxsize=8)
def _second_text(seconds: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
    except OverflowError:
        when = f"{seconds} s since 1970"
        raise SignatureError(f"{when} is not in the years 1 to 9999; choose one that is") from None


def is_time(text: str) -> bool:
    """Say whether this is a time Go can read."""
    return _RFC3339.fullmatch(text) is not None


def parse_time(text: str) -> int:
    """
    Return the Unix nanoseconds of strict RFC 3339 text; negative before 1970.

    Any offset is accepted, and so are years 1 to 9999; digits after the ninth are cut.

    Raises:
        WireError: The text is not such a time.
    """
    match = _RFC3339.fullmatch(text)
    try:
        if match is not None:
            year, month, day, hour, minute, second, fraction, sign, off_h, off_m = match.groups()
            days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
            seconds = days * 86_400 + int(hour) * 3600 + int(minute) * 60 + int(second)
            if sign:
                offset = int(off_h) * 3600 + int(off_m) * 60
                seconds -= offset if sign == "+" else -offset
            ns = seconds * _SECOND + int((fraction or "0")[:9].ljust(9, "0"))
            if _FIRST_NS <= ns < _END_NS:
                return ns
    except ValueError:  # 30 February, year 0
        pass
    raise unexpected("time", text, "RFC 3339 like 2026-11-20T15:15:26.418Z, years 1 to 9999")
