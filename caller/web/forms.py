"""
What a task takes and gives, seen from JSON: for checking calls and for describing them.

Made once from a function's signature. JSON has no bytes, and does not tell 1
from 1.0: here values become what the annotation asks for, and nothing else.
"""

from __future__ import annotations

import base64
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final

from machine.errors import SignatureError
from machine.registry.task import Task
from machine.wire import gotypes
from machine.workflow.pieces import TypedSignature

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
#: Floats beyond this may have lost digits on their way.
_EXACT: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class Place:
    """
    One parameter.

    Attributes:
        name: Its name.
        go_type: Type on the wire; ``None`` where values speak for themselves.
        kind: As `inspect` has it.
        default: Its default; `Parameter.empty` where it must be given.
    """

    name: str
    go_type: str | None
    kind: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether a call has to give it."""
        variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return self.default is Parameter.empty and self.kind not in variable

    @property
    def positional(self) -> bool:
        """Whether it may be given by position."""
        return self.kind in _POSITIONAL

    @property
    def named(self) -> bool:
        """Whether it may be given by name."""
        return self.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Form:
    """
    One task's parameters and result.

    Attributes:
        task: The task.
        places: Its parameters, in order.
        result_type: Go type of what it returns, or ``None``.
        returns_nothing: Whether it says that it returns ``None``.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task
        hints = _hints_of(task.fn)
        self.places = [
            Place(p.name, gotypes.from_annotation(hints.get(p.name, Any)), p.kind, p.default)
            for p in _parameters_of(task.fn)
        ]
        self.result_type = gotypes.from_annotation(hints.get("return", Any))
        self.returns_nothing = hints.get("return", Any) is type(None)
        self._by_position = [place for place in self.places if place.positional]
        self._by_name = {place.name: place for place in self.places if place.named}
        self._rest = next((p for p in self.places if p.kind == Parameter.VAR_POSITIONAL), None)

    @property
    def rest(self) -> Place | None:
        """Return the parameter that takes any number of values, if there is one."""
        return self._rest

    @property
    def doc(self) -> str:
        """Return the first paragraph of the function's docstring on one line."""
        return " ".join((inspect.getdoc(self.task.fn) or "").partition("\n\n")[0].split())

    def call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, partial: bool
    ) -> TypedSignature[Any]:
        """
        Return the signature of a call whose values came as JSON.

        Args:
            args: By position.
            kwargs: By name.
            partial: Whether results of other tasks are to be appended.

        Raises:
            SignatureError: The task could not be called so.
        """
        given = [self._taken(value, at) for at, value in enumerate(args)]
        named = {
            name: _from_json(self._by_name[name].go_type, value, f"kwargs.{name}")
            if name in self._by_name
            else value
            for name, value in kwargs.items()
        }
        make = self.task.partial if partial else self.task.s
        try:
            return make(*given, **named)
        except SignatureError:
            raise
        except (TypeError, ValueError) as error:
            raise SignatureError(f"{error}") from None

    def _taken(self, value: Any, at: int) -> Any:
        place = self._by_position[at] if at < len(self._by_position) else self._rest
        return value if place is None else _from_json(place.go_type, value, f"args[{at}]")


def forms_of(tasks: Sequence[Task[Any, Any]]) -> dict[str, Form]:
    """Return the form of each task, sorted by name."""
    return {task.name: Form(task) for task in sorted(tasks, key=lambda task: task.name)}


def _from_json(go_type: str | None, value: Any, where: str) -> Any:
    if go_type == "[]byte" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise SignatureError(f"{where} is no base64, which stands for bytes here.") from None
    one = _READERS.get((go_type or "").removeprefix("[]"))
    if one is None:
        return value
    if go_type is not None and go_type.startswith("[]"):
        return [one(item) for item in value] if isinstance(value, list) else value
    return one(value)


def _whole(value: Any) -> Any:
    """Return 3 for 3.0, which is the same number in JSON."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


def _number(value: Any) -> Any:
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return value


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {"int64": _whole, "float64": _number}


def _parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        # Some functions written in C do not say what they take.
        return [Parameter("args", Parameter.VAR_POSITIONAL)]


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    source = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(source)
    except Exception:  # noqa: BLE001 - annotations may be any expression
        return {}
