"""JSON schemas of tasks, bodies and answers: what annotations and options say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from caller.web.composing import OPTIONS
from caller.web.forms import Form, Place
from machine.errors import SignatureError
from machine.wire.gotypes import infer
from machine.wire.signature import State

Schema = dict[str, Any]

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
