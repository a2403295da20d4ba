"""
What a task takes and gives, seen from JSON: for checking calls and for describing them.

Made once from a function's signature. JSON has no bytes, and does not tell 1
from 1.0: here values become what the annotation asks for, and nothing else.
"""

from __future__ import annotations

import base64
import inspect
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final

from machine.errors import SignatureError
from machine.registry.parameters import hints_of, signature_of
from machine.registry.task import Task
from machine.wire import gotypes
from machine.workflow.pieces import TypedSignature

Schema = dict[str, Any]

#: What is not annotated may be anything that can be sent.
ANY: Final[Schema] = {"$ref": "#/components/schemas/Value"}

_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
#: Floats beyond this may have lost digits on their way.
_EXACT: Final = 1 << 53
_LARGEST: Final = int(sys.float_info.max)


@dataclass(frozen=True, slots=True)
class TaskParameter:
    """
    One parameter of a task.

    Attributes:
        name: Its name.
        kind: As `inspect` has it.
        default: `Parameter.empty` where it must be given.
        values: The schema of its values; of each one where it takes any number.
    """

    name: str
    kind: Any
    default: Any
    values: Schema

    @property
    def required(self) -> bool:
        """Whether a call has to give it."""
        variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return self.default is Parameter.empty and self.kind not in variable

    def schema(self) -> Schema:
        """Return the schema of its values, with the default if that could be sent."""
        try:
            default = gotypes.infer(self.default, self.name)[1]
        except SignatureError:
            return self.values
        return self.values if "$ref" in self.values else {**self.values, "default": default}


class TaskSchema:
    """
    One task's parameters and result.

    Attributes:
        task: The task.
        parameters: In order.
        rest: The parameter that takes any number of values, if there is one.
        result: The schema of what it returns; ``{}`` where it does not say.
        doc: The first paragraph of its docstring, on one line.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        hints = hints_of(task.fn)
        self.task = task
        self.parameters = [
            TaskParameter(p.name, p.kind, p.default, _schema_of(hints.get(p.name, Any)))
            for p in signature_of(task.fn).parameters.values()
        ]
        returned = hints.get("return", Any)
        self.result = {"type": "null"} if returned is type(None) else _schema_of(returned, {})
        self.doc = " ".join((inspect.getdoc(task.fn) or "").partition("\n\n")[0].split())
        self.rest = next((p for p in self.parameters if p.kind == Parameter.VAR_POSITIONAL), None)
        self._by_position = [p for p in self.parameters if p.kind in _POSITIONAL]
        self._by_name = {p.name: p for p in self.parameters if p.kind in _NAMED}

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
        by_position = itertools.chain(self._by_position, itertools.repeat(self.rest))
        values = [
            _from_json(parameter, value, f"args[{at}]")
            for at, (value, parameter) in enumerate(zip(args, by_position))  # noqa: B905
        ]
        named = {
            name: _from_json(self._by_name.get(name), value, f"kwargs.{name}")
            for name, value in kwargs.items()
        }
        make = self.task.partial if partial else self.task.s
        try:
            return make(*values, **named)
        except SignatureError:
            raise
        except (TypeError, ValueError) as error:
            raise SignatureError(f"{error}") from None

    def body(self) -> Schema:
        """Return the schema of a body that calls it."""
        args: Schema = {"type": "array", "description": "By position."}
        if self._by_position:
            args["prefixItems"] = [parameter.schema() for parameter in self._by_position]
        if self.rest is None:
            args["maxItems"] = len(self._by_position)
        else:
            args["items"] = self.rest.values
        kwargs = {
            "type": "object",
            "properties": {name: p.schema() for name, p in self._by_name.items()},
            "additionalProperties": False,
            "description": "By name.",
        }
        return {
            "type": "object",
            "properties": {"args": args, "kwargs": kwargs, "options": ref("SendOptions")},
            "additionalProperties": False,
        }


def task_schemas(tasks: Iterable[Task[Any, Any]]) -> dict[str, TaskSchema]:
    """Return the schema of each task, sorted by name."""
    return {task.name: TaskSchema(task) for task in sorted(tasks, key=lambda task: task.name)}


def ref(name: str) -> Schema:
    """Return a reference to a component of /openapi.json."""
    return {"$ref": f"#/components/schemas/{name}"}


def _schema_of(annotation: Any, unknown: Schema = ANY) -> Schema:
    go_type = gotypes.from_annotation(annotation)
    return unknown if go_type is None else gotypes.json_schema(go_type)


def _from_json(parameter: TaskParameter | None, value: Any, where: str) -> Any:
    return value if parameter is None else _as_annotated(parameter.values, value, where)


def _as_annotated(schema: Schema, value: Any, where: str) -> Any:
    """Return a number as the schema's type, and base64 as bytes; anything else as it is."""
    kind = schema.get("type")
    if kind == "array" and isinstance(value, list):
        return [_as_annotated(schema["items"], item, where) for item in value]
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value) if abs(value) <= _EXACT else value
    if kind == "number" and type(value) is int and abs(value) <= _LARGEST:
        return float(value)
    if "contentEncoding" in schema and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise SignatureError(f"{where} is no base64, which stands for bytes here.") from None
    return value
