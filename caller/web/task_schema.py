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

from caller.web.bodies import OPTIONS, Schema
from machine.errors import SignatureError
from machine.registry.task import Task
from machine.wire import gotypes
from machine.wire.gotypes import infer
from machine.wire.signature import State
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


_INT64: Final[Schema] = {
    "type": "integer", "format": "int64", "minimum": -(1 << 63), "maximum": (1 << 63) - 1,
}  # fmt: skip
_NUMBER: Final[Schema] = {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308}
_SCALARS: Final[Mapping[str, Schema]] = {
    "bool": {"type": "boolean"},
    "int64": _INT64,
    "float64": _NUMBER,
    "string": {"type": "string"},
}
_BYTES: Final[Schema] = {"type": "string", "contentEncoding": "base64"}
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}


def ref(name: str) -> Schema:
    """Return a reference to one of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def type_schema(go_type: str | None) -> Schema:
    """Return the schema of values of a type on the wire; ``None`` is any that can be sent."""
    if go_type is None:
        return {"$ref": "#/components/schemas/Value"}
    if go_type == "[]byte":
        return dict(_BYTES)
    if go_type.startswith("[]"):
        return {"type": "array", "items": dict(_SCALARS[go_type[2:]])}
    return dict(_SCALARS[go_type])


def _place_schema(place: Place) -> Schema:
    schema = type_schema(place.go_type)
    try:
        # Any object may be a default; only what could be sent is told of.
        default = infer(place.default, place.name)[1]
    except SignatureError:
        return schema
    return schema if "$ref" in schema else {**schema, "default": default}


def call_schema(form: Form, queues: Sequence[str]) -> Schema:
    """Return the schema of a body that calls a task."""
    by_position = [_place_schema(place) for place in form.places if place.positional]
    args: Schema = {"type": "array", "prefixItems": by_position, "description": "By position."}
    if not by_position:
        del args["prefixItems"]
    if form.rest is None:
        args["maxItems"] = len(by_position)
    else:
        args["items"] = type_schema(form.rest.go_type)
    by_name = {place.name: _place_schema(place) for place in form.places if place.named}
    return {
        "type": "object",
        "properties": {
            "args": args,
            "kwargs": {
                "type": "object",
                "properties": by_name,
                "additionalProperties": False,
                "description": "By name.",
            },
            "options": options_schema(queues),
        },
        "additionalProperties": False,
    }


def options_schema(queues: Sequence[str]) -> Schema:
    """Return the schema of the options of a sending."""
    properties = {name: dict(option.schema) for name, option in OPTIONS.items()}
    properties["queue"]["enum"] = list(queues)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def result_schema(form: Form) -> Schema:
    """Return the schema of what a task returns; ``{}`` where it does not say."""
    if form.returns_nothing:
        return {"type": "null"}
    return {} if form.result_type is None else type_schema(form.result_type)


def parameters_of(form: Form) -> list[Schema]:
    """Return what is told of a task's parameters in the list of tasks."""
    return [
        {
            "name": place.name,
            "required": place.required,
            "kind": place.kind.name.lower(),
            "schema": _place_schema(place),
        }
        for place in form.places
    ]


def components(names: Sequence[str], queues: Sequence[str]) -> Schema:
    """Return the schemas that others refer to."""
    return _bodies(names, queues) | _answers()


def _bodies(names: Sequence[str], queues: Sequence[str]) -> Schema:
    pieces = {"type": "array", "minItems": 1, "items": ref("Piece")}
    scalar = [dict(one) for one in _SCALARS.values()]
    chord = {
        "type": "object",
        "required": ["members", "callback"],
        "properties": {"members": pieces, "callback": ref("Piece")},
        "additionalProperties": False,
    }
    return {
        "Value": {
            "description": "What can be sent: a scalar, or an array of one kind of them.",
            "anyOf": [*scalar, *({"type": "array", "items": one} for one in scalar)],
        },
        "Signature": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "enum": list(names)},
                "args": {"type": "array", "items": ref("Value")},
                "kwargs": {"type": "object", "additionalProperties": ref("Value")},
                "options": options_schema(queues),
            },
            "additionalProperties": False,
        },
        "Piece": {
            "description": "A task, or a workflow in the workflow.",
            "oneOf": [
                ref("Signature"),
                *(_only(kind, schema) for kind, schema in _workflows(pieces, chord)),
            ],
        },
        "Chain": _only("steps", pieces),
        "Group": _only("members", pieces),
        "Chord": chord,
    }


def _workflows(pieces: Schema, chord: Schema) -> list[tuple[str, Schema]]:
    return [("chain", pieces), ("group", pieces), ("chord", chord)]


def _only(name: str, schema: Schema) -> Schema:
    return {
        "type": "object",
        "required": [name],
        "properties": {name: schema},
        "additionalProperties": False,
    }


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": dict(properties)}


def _answers() -> Schema:
    text, whole = {"type": "string"}, {"type": "integer", "minimum": 0}
    task = _object({"id": text, "task": text, "location": text})
    progress = _object({"fraction": {"type": "number"}, "note": text})
    attempt = _object({"number": whole, "error": text, "at": text})
    return {
        "Result": _object(
            {
                "id": text,
                "task": text,
                "state": {"type": "string", "description": ", ".join(State)},
                "ended": {"type": "boolean"},
                "outcome": {"enum": ["succeeded", "failed", "canceled", "expired", None]},
                "result": {},
                "results": {"type": "array", "items": _object({"type": text, "value": {}})},
                "error": _MAYBE_TEXT,
                "progress": {"anyOf": [progress, {"type": "null"}]},
                "attempts": {"type": "array", "items": attempt},
                "created_at": _MAYBE_TEXT,
            }
        ),
        "Sent": _object(
            {"id": text, "task": text, "state": text, "location": text, "events": text}
        ),
        "SentWorkflow": _object(
            {
                "id": text,
                "location": text,
                "group": _MAYBE_TEXT,
                "tasks": {"type": "array", "items": task},
            }
        ),
        "GroupState": _object(
            {
                **dict.fromkeys(("total", "ended", "failed", "running", "offset"), whole),
                "id": text,
                "done": {"type": "boolean"},
                "members": {
                    "type": "array",
                    "items": _object(
                        {"id": text, "state": {"anyOf": [ref("Result"), {"type": "null"}]}}
                    ),
                },
            }
        ),
        "Problem": _object({"type": text, "title": text, "status": whole, "detail": text}),
    }
