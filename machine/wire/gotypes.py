"""
Go Machinery's 29 argument types, and what each is in Python.

Sending turns a Python value into the name of a Go type and a JSON value; receiving
turns these back, with Go's own error texts.

More than 400 lines, because both ways and the schema of a type must agree on one table.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final, NamedTuple, get_args, get_origin

from machine.errors import SignatureError, WireError

_INT_BOUNDS: Final = {
    **{f"int{bits or ''}": (-(1 << (bits or 64) - 1), (1 << (bits or 64) - 1) - 1)
       for bits in (0, 8, 16, 32, 64)},
    **{f"uint{bits or ''}": (0, (1 << (bits or 64)) - 1) for bits in (0, 8, 16, 32, 64)},
}  # fmt: skip
_MIN, _MAX = _INT_BOUNDS["int64"]
_UNSIGNED_MAX: Final = _INT_BOUNDS["uint64"][1]
_FLOATS: Final = ("float32", "float64")
_FLOAT32: Final = struct.Struct("<f")
_BYTES: Final = ("[]byte", "[]uint8")
_SCALARS: Final = ("bool", *_INT_BOUNDS, *_FLOATS, "string")
#: The 14 scalar and 15 slice names Machinery knows; no other may be sent.
TYPES: Final = frozenset((*_SCALARS, *(f"[]{name}" for name in _SCALARS), "[]byte"))
#: What Go calls a dict and a mixed list; only results have these types.
MAP: Final = "map[string]interface {}"
MIXED: Final = "[]interface {}"
_BASE64: Final = re.compile(
    rb"((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)([A-Za-z0-9+/]*)"
)
_DEEPEST: Final = 64
_SHOWN: Final = 200
_SHOWN_DEPTH: Final = 4
_CURES: Final = {
    "NoneType": "leave it out, or send '' or 0", "dict": "send json.dumps(value) as a string",
    "tuple": "send list(value)", "set": "send sorted(value)", "frozenset": "send sorted(value)",
    "datetime": "send value.isoformat()", "date": "send value.isoformat()",
    "Decimal": "send str(value)", "UUID": "send str(value)", "memoryview": "send bytes(value)",
}  # fmt: skip


def infer(value: Any, where: str, *, empty: str = "[]int64") -> tuple[str, Any]:
    """
    Return the Go type and the JSON value of an argument without an annotation.

    bool→bool, int→int64, float→float64, str→string, bytes→[]byte (base64), a
    list of one of the first four→that slice, ints among floats→[]float64.

    Args:
        value: What the user passed.
        where: How errors name it, e.g. ``argument 'x' of task add``.
        empty: Type of an empty list, whose items cannot tell it.

    Raises:
        SignatureError: The value has no Go type, or does not fit it.
    """
    kind = type(value)
    if kind is int and _MIN <= value <= _MAX:
        return "int64", value
    if kind is str:
        return "string", _clean_text(value, where)
    go_type = _slice_type(value, where, empty) if isinstance(value, list) else _scalar_of(value)
    if go_type:
        return go_type, coerce(go_type, value, where)
    cure = _CURES.get(type(value).__name__, "send json.dumps of its fields as a string")
    raise SignatureError(f"{where} is {_a(value)}, which has no type on the wire; {cure}")


def coerce(go_type: str, value: Any, where: str) -> Any:
    """
    Return the JSON value of ``value`` as exactly this Go type.

    Nothing is lost on the way: out of range, a bool for an int, 1.5 for an
    int, an int that no float64 holds, NaN and a lone surrogate are refused.

    Raises:
        SignatureError: The type is unknown or the value does not fit it.
    """
    if go_type in _INT_BOUNDS:
        return _coerce_int(go_type, value, where)
    if go_type in _FLOATS:
        return _coerce_float(go_type, value, where)
    if go_type == "string":
        if isinstance(value, str):
            return _clean_text(value, where)
    elif go_type == "bool":
        if isinstance(value, bool):
            return value
    elif go_type not in TYPES:
        known = f"use {', '.join(_SCALARS)}, or [] before one"
        raise SignatureError(f"{where}: {go_type} is not one of supported types; {known}")
    elif go_type in _BYTES and isinstance(value, bytes | bytearray):
        return b64encode(value).decode("ascii")
    elif isinstance(value, list):
        return _coerce_list(go_type, value, where)
    raise _misfit(go_type, value, where)


def infer_result(value: Any, *, empty: str = "[]int64") -> tuple[str, Any]:
    """
    Return the Go type name and the JSON value of something a task returned.

    As `infer`, but bytes are ``[]uint8`` as Go writes them, an int above int64 is ``uint64``
    (also in a list), a dict is ``map[string]interface {}`` and any other list or a tuple is
    ``[]interface {}``. Go callers can read none of the last two.

    Raises:
        SignatureError: JSON cannot hold it, or it is ``None``.
    """
    where = "the result"
    if isinstance(value, dict):
        return MAP, _as_json(value, where, 1)
    if isinstance(value, list | tuple):
        items = list(value)
        try:
            return infer(items, where, empty=empty)
        except SignatureError:
            whole = all(type(item) is int and 0 <= item <= _UNSIGNED_MAX for item in items)
            return ("[]uint64", items) if whole else (MIXED, _as_json(value, where, 1))
    if isinstance(value, int) and _MAX < value <= _UNSIGNED_MAX:
        return "uint64", int(value)
    go_type, found = infer(value, where)
    return go_type.replace("[]byte", "[]uint8"), found


def from_annotation(annotation: Any) -> str | None:
    """
    Return the Go type of a parameter's annotation, or ``None`` where it says nothing.

    Known are bool, int, float, str, bytes, bytearray, and ``list[…]`` of the first four.
    """
    if get_origin(annotation) is list:
        one = from_annotation(get_args(annotation)[0])
        return f"[]{one}" if one in _SCALARS else None
    return _BY_ANNOTATION.get(annotation) if isinstance(annotation, type) else None


def has_type(go_type: str, value: Any) -> bool:
    """
    Say whether a type checker would let a value through for an annotation of this type.

    Whether it fits the type's bounds is another question; see `coerce`.
    """
    if go_type not in _ANNOTATED:
        one = go_type.removeprefix("[]")
        return isinstance(value, list) and all(has_type(one, item) for item in value)
    expected = _ANNOTATED[go_type].values
    return isinstance(value, expected) and (bool in expected or not isinstance(value, bool))


def json_schema(go_type: str) -> dict[str, Any]:
    """Return the JSON schema of values of a type that `from_annotation` gives; a new dict."""
    if go_type not in _ANNOTATED:
        return {"type": "array", "items": json_schema(go_type.removeprefix("[]"))}
    return dict(_ANNOTATED[go_type].schema)


class _Annotated(NamedTuple):
    """A type that annotations can name: which do, and its values in Python and in JSON."""

    go_type: str
    annotations: tuple[type, ...]
    values: tuple[type, ...]
    schema: dict[str, Any]


_INT64: Final = {"minimum": _MIN, "maximum": _MAX}
_FLOAT64: Final = {"minimum": -1.7e308, "maximum": 1.7e308}
_BASE64_TEXT: Final = {"type": "string", "contentEncoding": "base64"}
#: bool stands before int, which it is a subclass of.
_TABLE: Final = (
    _Annotated("bool", (bool,), (bool,), {"type": "boolean"}),
    _Annotated("int64", (int,), (int,), {"type": "integer", "format": "int64", **_INT64}),
    _Annotated("float64", (float,), (float, int), {"type": "number", **_FLOAT64}),
    _Annotated("string", (str,), (str,), {"type": "string"}),
    _Annotated("[]byte", (bytes, bytearray), (bytes, bytearray, list), _BASE64_TEXT),
)
_BY_ANNOTATION: Final = {one: row.go_type for row in _TABLE for one in row.annotations}
_ANNOTATED: Final = {row.go_type: row for row in _TABLE}
#: The types that an annotation can name, without lists of them.
ANNOTATED: Final = tuple(_ANNOTATED)


def _coerce_int(go_type: str, value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _misfit(go_type, value, where)
    low, high = _INT_BOUNDS[go_type]
    if not low <= value <= high:
        text = f"{where} is {_digits(value)}, out of range for {go_type} ({low} to {high})"
        raise SignatureError(f"{text}; name a type that holds it, or send a string")
    return int(value)


def _coerce_float(go_type: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _misfit(go_type, value, where)
    try:
        number = float(value)
        if go_type == "float32":
            _FLOAT32.pack(number)
    except OverflowError:
        raise SignatureError(f"{where} is {_digits(value)}, too large for {go_type}") from None
    if not math.isfinite(number):
        raise SignatureError(f"{where} is {number}; JSON has no such number, send a finite one")
    if isinstance(value, int) and int(number) != value:
        text = f"{where} is {value}, which no {go_type} holds exactly; send an int64 or a string"
        raise SignatureError(text)
    return number


def _coerce_list(go_type: str, value: list[Any], where: str) -> Any:
    one = "uint8" if go_type == "[]byte" else go_type[2:]
    try:
        items = [coerce(one, item, where) for item in value]
    except SignatureError:  # once more, to say which item it was
        items = [coerce(one, item, f"{where}[{at}]") for at, item in enumerate(value)]
    # Go reads []byte and []uint8 as base64 or as a list, and writes base64.
    return b64encode(bytes(items)).decode("ascii") if go_type in _BYTES else items


def _clean_text(value: str, where: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            text = f"{where} has the lone surrogate {value[error.start]!a} at {error.start}"
            raise SignatureError(f"{text}; send text that UTF-8 can hold, or bytes") from None
    return str.__str__(value)


def _slice_type(value: list[Any], where: str, empty: str) -> str:
    if not value:
        return empty
    found = {_scalar_of(item) for item in value}
    if found == {"int64", "float64"}:
        return "[]float64"
    if len(found) == 1 and (one := found.pop()) in _SCALARS:
        return f"[]{one}"
    holds = " and ".join(sorted({_a(item) for item in value}))
    text = (
        f"{where} is a list that holds {holds:.80}; its items must all be bool, int, float or str"
    )
    raise SignatureError(f"{text}. Send json.dumps(value) as a string")


def _scalar_of(value: Any) -> str | None:
    if type(value) in _BY_ANNOTATION:
        return _BY_ANNOTATION[type(value)]
    return next((name for base, name in _BY_ANNOTATION.items() if isinstance(value, base)), None)


def _as_json(value: Any, where: str, depth: int) -> Any:
    if depth > _DEEPEST:
        text = f"the result holds itself or is nested deeper than {_DEEPEST} levels"
        raise SignatureError(text)
    if value is None:
        return value
    if isinstance(value, list | tuple):
        return [_as_json(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            if not isinstance(key, str):
                text = f"{where} has {_a(key)} as a key ({key!r:.80}); JSON keys are strings"
                raise SignatureError(text)
            found[_clean_text(key, where)] = _as_json(item, f"{where}[{key!r:.80}]", depth + 1)
        return found
    if isinstance(value, bytes | bytearray):
        text = f"{where} is {_a(value)}; inside a dict or a mixed list send base64 text instead"
        raise SignatureError(text)
    if isinstance(value, int) and _MAX < value <= _UNSIGNED_MAX:
        return int(value)
    return infer(value, where)[1]


def _misfit(go_type: str, value: Any, where: str) -> SignatureError:
    one = go_type.removeprefix("[]")
    takes = {"bool": "bool", "string": "str", "float32": "float", "float64": "float"}.get(
        one, "int"
    )
    if one != go_type:
        takes = "bytes, or a list of ints" if go_type in _BYTES else f"a list of {takes}"
    return SignatureError(f"{where} is {_a(value)}; {go_type} takes {takes}")


def _a(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"a{'n' if name[:1].lower() in 'aeio' else ''} {name}"


def _digits(value: Any) -> str:
    # str() of an int of more than 4,300 digits raises.
    wide = isinstance(value, int) and value.bit_length() > 3 * _SHOWN
    return f"an int of {value.bit_length()} bits" if wide else str(value)


def decode(go_type: str, value: Any) -> Any:
    """
    Return the Python value of an argument or a result that came over the wire.

    ``[]byte`` and ``[]uint8`` give bytes, other slices lists (null and ``{}`` are
    empty ones), floats a float even when written ``1``; float32 is rounded to it.

    Raises:
        WireError: The value does not fit the type. The text is Go's own, but for three
            values that Go does not refuse: an int too large for a narrow type (Go wraps
            it), a number for an unsigned slice (Go takes the codes of its digits), and
            true or an object for a slice (Go panics).
    """
    decoder = _DECODERS.get(go_type)
    if decoder is None:
        raise WireError(f"{go_type:.{_SHOWN}} is not one of supported types")
    return decoder(value)


def _int_decoder(name: str, low: int, high: int) -> Callable[[Any], int]:
    def decode_int(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        if type(value) is float and repr(value) == "-0.0":  # what wire makes of "-0"
            return 0
        raise WireError(_int_trouble(name, value))

    return decode_int


def _int_trouble(name: str, value: Any) -> str:
    call = f"strconv.Parse{'Uint' if name[0] == 'u' else 'Int'}"
    if type(value) is float or (type(value) is int and value < 0 and name[0] == "u"):
        return f'{call}: parsing "{_go_text(value)}": invalid syntax'
    if type(value) is not int:
        return f"{_go_text(value)} is not {name}"
    low, high = _INT_BOUNDS["uint64" if name[0] == "u" else "int64"]
    if not low <= value <= high:
        return f'{call}: parsing "{_go_text(value)}": value out of range'
    low, high = _INT_BOUNDS[name]
    return f"{value} is out of range for {name} ({low} to {high})"


def _exact_decoder(name: str, kind: type) -> Callable[[Any], Any]:
    def decode_exact(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise WireError(f"{_go_text(value)} is not {name}")

    return decode_exact


def _float_decoder(name: str, *, narrow: bool) -> Callable[[Any], float]:
    def decode_float(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise WireError(f"{_go_text(value)} is not {name}")
        try:
            number: float = float(value)
            if narrow:
                number = _FLOAT32.unpack(_FLOAT32.pack(number))[0]
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise WireError(f'strconv.ParseFloat: parsing "{_go_text(value)}": value out of range')

    return decode_float


def _slice_decoder(name: str, one: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def decode_slice(value: Any) -> list[Any]:
        if type(value) is list:
            return [one(item) for item in value]
        if value is None or value in ("", {}):
            return []
        if name[0] == "u" and type(value) is str:
            return list(_base64(value))
        if name[0] != "u" and type(value) in (str, int, float):
            # Go indexes the text and meets a byte where it wants an element.
            raise WireError(f"{_go_text(value).encode()[0]} is not {name}")
        raise WireError(f"{_go_text(value)} is not []{name}")

    return decode_slice


def _decode_bytes(value: Any) -> bytes:
    return bytes(_base64(value) if type(value) is str else _BYTE_LIST(value))


def _base64(text: str) -> bytes:
    data = text.encode()
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError:  # wrong, or only broken into lines, which Go allows
        data = data.replace(b"\r", b"").replace(b"\n", b"")
    found = _BASE64.match(data)
    whole, end = (found.end(1), found.end(2)) if found else (0, 0)
    if whole == len(data):
        return binascii.a2b_base64(data)
    if end == len(data) or data[whole - 1 : whole] == b"=":
        end = whole  # a group that is not full, or something after the padding
    elif end == whole + 2 and data[end:] == b"=":
        end = len(data)  # where Go misses the second "="
    raise WireError(f"illegal base64 data at input byte {end}")


def _go_text(value: Any, depth: int = 0) -> str:
    """Return what Go's ``%v`` prints, cut to 200 characters."""
    if isinstance(value, list) and depth < _SHOWN_DEPTH:
        text = "[" + " ".join(_go_text(item, depth + 1) for item in value[:_SHOWN]) + "]"
    elif isinstance(value, dict) and depth < _SHOWN_DEPTH:
        shown = (f"{key}:{_go_text(value[key], depth + 1)}" for key in sorted(value)[:_SHOWN])
        text = "map[" + " ".join(shown) + "]"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list | dict):
        text = "..."
    else:
        text = "<nil>" if value is None else _digits(value)
    return text[:_SHOWN]


_ONE: Final[dict[str, Callable[[Any], Any]]] = {
    **{name: _int_decoder(name, low, high) for name, (low, high) in _INT_BOUNDS.items()},
    "bool": _exact_decoder("bool", bool), "string": _exact_decoder("string", str),
    "float32": _float_decoder("float32", narrow=True),
    "float64": _float_decoder("float64", narrow=False),
}  # fmt: skip
_BYTE_LIST: Final = _slice_decoder("uint8", _ONE["uint8"])
_DECODERS: Final[dict[str, Callable[[Any], Any]]] = {
    **_ONE,
    **{f"[]{name}": _slice_decoder(name, one) for name, one in _ONE.items()},
    "[]byte": _decode_bytes, "[]uint8": _decode_bytes,
}  # fmt: skip
