"""
A function's parameters: how a call becomes arguments on the wire, and how these become a call.

`inspect` is slow, so it is asked once for each task; sending and running use
what `Parameters` made of its answer.
"""

from __future__ import annotations

import inspect
import math
import reprlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from machine.errors import SignatureError
from machine.wire import gotypes
from machine.wire.signature import Arg

#: Makes an `Arg`; the named tuple's own constructor takes twice as long.
_make = tuple.__new__
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
#: Turns one value into one argument; raises TypeError naming the parameter.
Encode = Callable[[Any], Arg]


@dataclass(frozen=True, slots=True)
class _Slot:
    """One parameter: its name, the encoder of its values, and its default."""

    name: str
    go_type: str | None
    encode: Encode
    default: Any

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty


class Parameters:
    """
    How values get into and out of the parameters of one function.

    Positional parameters become arguments in order. Keyword-only ones follow,
    each with its name in `Arg.name`. ``**kwargs`` cannot be sent.

    Attributes:
        result_type: Go type of the return annotation, or ``None``.
    """

    def __init__(self, function: Callable[..., Any], called: str) -> None:
        self._called = called
        self._signature = signature_of(function)
        hints = hints_of(function)
        self.result_type = gotypes.from_annotation(hints.get("return", Any))
        slots = {
            name: self._slot(parameter, hints.get(name, Any))
            for name, parameter in self._signature.parameters.items()
        }
        kinds = {name: p.kind for name, p in self._signature.parameters.items()}
        self._positional = [slot for slot in slots.values() if kinds[slot.name] in _POSITIONAL]
        self._keyword = {
            slot.name: slot for slot in slots.values() if kinds[slot.name] is Parameter.KEYWORD_ONLY
        }
        self._rest = next(
            (s for s in slots.values() if kinds[s.name] is Parameter.VAR_POSITIONAL), None
        )
        self._encoders = [slot.encode for slot in self._positional]
        self._least_count: float = sum(1 for slot in self._positional if slot.required)
        if any(slot.required for slot in self._keyword.values()):
            self._least_count = math.inf
        self._most_count = len(self._positional)
        self._floats = [i for i, s in enumerate(self._positional) if _is_float(s)]
        self._rest_is_float = self._rest is not None and _is_float(self._rest)
        self._has_floats = self._rest_is_float or bool(self._floats)

    def _slot(self, parameter: Parameter, annotation: Any) -> _Slot:
        go_type = gotypes.from_annotation(annotation)
        where = f"{self._called}() argument {parameter.name!r}"
        return _Slot(parameter.name, go_type, _encoder(go_type, where), parameter.default)

    # -- the caller's side -----------------------------------------------------------------
    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Arg]:
        """
        Return the arguments of this call.

        Raises:
            TypeError: The function could not be called so, or a value cannot be
                sent; the text names the function, the parameter and the cure.
        """
        count = len(args)
        if not kwargs and count >= self._least_count:
            if count <= self._most_count:
                # zip ends with the shorter one: parameters left out at the end are not sent.
                return [enc(value) for enc, value in zip(self._encoders, args)]  # noqa: B905
            if self._rest is not None and not self._most_count:
                encode = self._rest.encode
                return [encode(value) for value in args]
            if self._rest is not None:
                encoders = self._encoders + [self._rest.encode] * (count - self._most_count)
                return [enc(value) for enc, value in zip(encoders, args, strict=True)]
        return self._encode_bound(self._bind(self._signature.bind, args, kwargs))

    def encode_partial(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Arg]:
        """Return the arguments of a call to which results of other tasks will be appended."""
        return self._encode_bound(self._bind(self._signature.bind_partial, args, kwargs))

    def _bind(
        self,
        bind: Callable[..., inspect.BoundArguments],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> dict[str, Any]:
        try:
            return bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self._called}() {error}") from None

    def _encode_bound(self, given: dict[str, Any]) -> list[Arg]:
        rest: Sequence[Any] = given.pop(self._rest.name, ()) if self._rest else ()
        last = max((i for i, s in enumerate(self._positional) if s.name in given), default=-1)
        upto = len(self._positional) if rest else last + 1
        encoded = [
            slot.encode(given.pop(slot.name)) if slot.name in given else self._encode_default(slot)
            for slot in self._positional[:upto]
        ]
        if self._rest is not None:
            encoded.extend(self._rest.encode(value) for value in rest)
        encoded.extend(
            slot.encode(given.pop(name))._replace(name=name)
            for name, slot in self._keyword.items()
            if name in given
        )
        if given:
            extra = ", ".join(sorted(next(iter(given.values()))))
            raise TypeError(
                f"{self._called}() cannot be sent {extra}: **keywords have no place in a message; "
                "name them as parameters."
            )
        return encoded

    def _encode_default(self, slot: _Slot) -> Arg:
        """Return the default of a parameter left out before one that is given."""
        if slot.required:
            raise TypeError(
                f"{self._called}() argument {slot.name!r} is left out before one that is given, "
                "and what is appended later comes last: give it too, or make the later ones "
                "keyword-only."
            )
        try:
            return slot.encode(slot.default)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self._called}() argument {slot.name!r} is left out before one that is given, "
                f"and its default {slot.default!r} cannot be sent: give it a value, or make the "
                "later ones keyword-only."
            ) from None

    # -- the worker's side -----------------------------------------------------------------
    def decode(self, args: Sequence[Arg]) -> tuple[list[Any], dict[str, Any]]:
        """
        Return positional and keyword arguments for a call.

        An argument named like a keyword-only parameter goes to it. The others go
        to the positional parameters in order; what is left goes to ``*args``, or
        without that to the keyword-only parameters that have no value yet, in
        order. If there are too few or too many, the call itself raises.

        Raises:
            WireError: An argument's value is not of its type.
        """
        decode = gotypes.decode
        if not self._keyword:
            values = [decode(kind, value) for kind, value, _ in args]
            return (self._with_floats(values) if self._has_floats else values), {}
        named: dict[str, Any] = {}
        values = []
        for arg in args:
            if arg.name in self._keyword and arg.name not in named:
                named[arg.name] = decode(arg.type, arg.value)
            else:
                values.append(decode(arg.type, arg.value))
        if self._rest is None:
            still_open = [name for name in self._keyword if name not in named]
            surplus = values[self._most_count :][: len(still_open)]
            named.update(zip(still_open, surplus, strict=False))
            del values[self._most_count : self._most_count + len(surplus)]
        for name, value in named.items():
            if _is_float(self._keyword[name]):
                named[name] = _as_float(value)
        return self._with_floats(values), named

    def _with_floats(self, values: list[Any]) -> list[Any]:
        for index in self._floats:
            if index < len(values):
                values[index] = _as_float(values[index])
        if self._rest_is_float:
            values[self._most_count :] = map(_as_float, values[self._most_count :])
        return values


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return what a function takes; ``*args`` where it does not say."""
    try:
        return inspect.signature(function)
    except ValueError:
        # Some functions written in C have no signature.
        return inspect.Signature([Parameter("args", Parameter.VAR_POSITIONAL)])


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's annotations, evaluated; none where one of them cannot be."""
    source = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(source)
    except Exception:  # noqa: BLE001 - annotations may be any expression
        # Without annotations the type of an argument follows from its value.
        return {}


def _is_float(slot: _Slot) -> bool:
    return slot.go_type is not None and slot.go_type.removeprefix("[]").startswith("float")


def _as_float(value: Any) -> Any:
    if type(value) is int:
        return float(value)
    if type(value) is list:
        return [_as_float(item) for item in value]
    return value


def _encoder(go_type: str | None, where: str) -> Encode:
    """Return the encoder of one parameter; plain ints skip the checks they pass."""
    if go_type is None:

        def inferred(value: Any) -> Arg:
            return Arg(*gotypes.infer(value, where))

        return inferred

    if go_type == "int64":

        def integer(value: Any) -> Arg:
            if type(value) is int and -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
                return _make(Arg, ("int64", value, ""))
            return Arg("int64", _coerce("int64", value, where))

        return integer

    def coerced(value: Any) -> Arg:
        return Arg(go_type, _coerce(go_type, value, where))

    return coerced


def _coerce(go_type: str, value: Any, where: str) -> Any:
    try:
        return gotypes.coerce(go_type, value, where)
    except SignatureError as error:
        if gotypes.has_type(go_type, value):
            raise
        # A value of a wrong type is a TypeError, as in any call.
        raise TypeError(f"{error}: {reprlib.repr(value)}") from None
