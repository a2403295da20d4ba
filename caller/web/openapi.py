"""
``/openapi.json``: one path for each task, typed by its annotations. Pure.

The document is made once from the tasks that a replica knows, so that replicas
of one version give the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from caller.web.bodies import WHOLE, ChainBody, ChordBody, GroupBody, PieceBody, SendOptions
from caller.web.problems import KINDS, MEDIA_TYPE
from caller.web.responses import GroupState, ProblemDocument, Result, SentTask, SentWorkflow
from caller.web.task_schema import Schema, TaskSchema, ref
from machine import gotypes

_ID: Final[Schema] = {
    "name": "id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 200},
}  # fmt: skip
_WAIT: Final[Schema] = {
    "name": "wait", "in": "query", "description": "Seconds to wait for the end.",
    "schema": {"type": "number", "minimum": 0, "maximum": 3600},
}  # fmt: skip
_PREFER: Final[Schema] = {
    "name": "Prefer", "in": "header", "description": "wait=5 waits so long for the result.",
    "schema": {"type": "string"}, "example": "wait=5",
}  # fmt: skip
_KEY: Final[Schema] = {
    "name": "Idempotency-Key", "in": "header",
    "description": "The same key with the same body sends once.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}  # fmt: skip
#: What every request may be answered with, and what every one that sends.
_ANY: Final = ("unauthorized", "cross-site", "internal", "unavailable")
_SENDING: Final = (
    *("bad-json", "unknown-task", "duplicate", "too-large", "not-json", "invalid", "queue-full"),
    *_ANY,
)


def openapi(
    tasks: Mapping[str, TaskSchema], queues: Sequence[str], *, title: str, needs_token: bool
) -> Schema:
    """Return the whole document."""
    paths: Schema = {}
    for name, task in tasks.items():
        paths[f"/tasks/{name}"] = {"post": _send_operation(name, task)}
    paths |= _workflow_paths() | _result_paths() | _group_paths() | _service_paths()
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": "Send tasks, follow results."},
        "paths": paths,
        "components": {
            "schemas": _components(list(tasks), queues),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    if needs_token:
        document["security"] = [{"token": []}]
    return document


def _components(names: Sequence[str], queues: Sequence[str]) -> Schema:
    """Return the schemas that others refer to."""
    kinds = (ChainBody, ChordBody, GroupBody, PieceBody, SendOptions)
    answers = (GroupState, ProblemDocument, Result, SentTask, SentWorkflow)
    template = ref("{name}")["$ref"]
    _, found = msgspec.json.schema_components((*kinds, *answers), ref_template=template)
    options = found["SendOptions"]["properties"]
    options["queue"]["enum"] = list(queues)
    for name in WHOLE:
        del options[name]["multipleOf"]
        options[name]["type"] = "integer"
    piece = found["PieceBody"]["properties"]
    piece["name"]["enum"] = list(names)
    call = {name: piece[name] for name in ("name", "args", "kwargs", "options")}
    found["PieceBody"] = {
        "description": "A task, or a workflow in the workflow.",
        "oneOf": [
            _object(call, "name"),
            *(_object({kind: piece[kind]}, kind) for kind in ("chain", "group", "chord")),
        ],
    }
    scalars = [gotypes.json_schema(name) for name in ("bool", "int64", "float64", "string")]
    found["Value"] = {
        "description": "What can be sent: a scalar, or an array of one kind of them.",
        "anyOf": [*scalars, *({"type": "array", "items": one} for one in scalars)],
    }
    return found


def _object(properties: Schema, required: str) -> Schema:
    return {
        "type": "object",
        "required": [required],
        "properties": properties,
        "additionalProperties": False,
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _problems(codes: Iterable[str]) -> Schema:
    """Return the responses of these kinds of problem, those of one status together."""
    titles: dict[int, list[str]] = {}
    for code in codes:
        titles.setdefault(KINDS[code].status, []).append(KINDS[code].title)
    return {
        str(status): {
            "description": "; or: ".join(texts),
            "content": {MEDIA_TYPE: {"schema": ref("ProblemDocument")}},
        }
        for status, texts in sorted(titles.items())
    }


def _send_operation(name: str, task: TaskSchema) -> Schema:
    ended = {"allOf": [ref("Result"), {"properties": {"result": _or_null(task.result)}}]}
    return {
        "summary": task.doc or f"Send {name}.",
        "operationId": f"send:{name}",
        "tags": ["tasks"],
        "parameters": [_KEY, _PREFER],
        "requestBody": {"required": False, "content": _json(task.body())},
        "responses": {
            "200": {"description": "It ended within the time preferred.", "content": _json(ended)},
            "202": {"description": "It was sent.", "content": _json(ref("SentTask"))},
            **_problems(("bad-header", *_SENDING)),
        },
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _workflow_paths() -> Schema:
    found: Schema = {}
    for kind, text in (
        ("chain", "Tasks one after the other; each gets the result before it, appended."),
        ("group", "Tasks side by side."),
        ("chord", "Tasks side by side, and one with all their results after them."),
    ):
        found[f"/{kind}s"] = {
            "post": {
                "summary": text,
                "operationId": f"send-{kind}",
                "tags": ["workflows"],
                "parameters": [_KEY, _PREFER],
                "requestBody": {
                    "required": True,
                    "content": _json(ref(f"{kind.capitalize()}Body")),
                },
                "responses": {
                    "200": {
                        "description": "It ended within the time preferred.",
                        "content": _json(ref("Result")),
                    },
                    "202": {"description": "It was sent.", "content": _json(ref("SentWorkflow"))},
                    **_problems(("bad-header", *_SENDING)),
                },
            }
        }
    return found


def _result_paths() -> Schema:
    state = {"description": "What is known of it.", "content": _json(ref("Result"))}
    canceled = {
        "tags": ["results"],
        "parameters": [_ID],
        "responses": {"200": state, **_problems(("unknown-result", "ended", *_ANY))},
    }
    return {
        "/results/{id}": {
            "get": {
                "summary": "A task's state and result.",
                "operationId": "result",
                "tags": ["results"],
                "parameters": [_ID, _WAIT],
                "responses": {
                    "200": state,
                    "304": {"description": "It is as If-None-Match says."},
                    **_problems(("bad-query", "unknown-result", *_ANY)),
                },
            },
            "delete": {"summary": "Cancel a task.", "operationId": "cancel", **canceled},
        },
        "/results/{id}/cancel": {
            "post": {"summary": "Cancel a task.", "operationId": "cancel-by-post", **canceled}
        },
        "/results/{id}/events": {
            "get": {
                "summary": "A task's changes as server-sent events, until its end.",
                "operationId": "events",
                "tags": ["results"],
                "parameters": [
                    _ID,
                    {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
                ],
                "responses": {
                    "200": {
                        "description": "Events named state, end and gone.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    },
                    "204": {"description": "The client has seen the last one."},
                    **_problems(("unknown-result", *_ANY)),
                },
            }
        },
    }


def _group_paths() -> Schema:
    part = [
        {"name": name, "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": most}}
        for name, most in (("offset", 999_999_999), ("limit", 1000))
    ]
    group = {"description": "Its members.", "content": _json(ref("GroupState"))}
    return {
        "/groups/{id}": {
            "get": {
                "summary": "A group's progress, and its members' states.",
                "operationId": "group",
                "tags": ["results"],
                "parameters": [_ID, *part],
                "responses": {
                    "200": group,
                    **_problems(("bad-query", "unknown-group", *_ANY)),
                },
            },
            "delete": {
                "summary": "Cancel all members that have not ended.",
                "operationId": "cancel-group",
                "tags": ["results"],
                "parameters": [_ID],
                "responses": {"200": group, **_problems(("unknown-group", *_ANY))},
            },
        },
    }


def _service_paths() -> Schema:
    tasks = {"type": "object", "required": ["tasks"], "properties": {"tasks": {"type": "array"}}}
    alive = {"description": "Yes.", "content": _json({"type": "object"})}
    return {
        "/tasks": {
            "get": {
                "summary": "The tasks that can be sent.",
                "operationId": "tasks",
                "tags": ["tasks"],
                "responses": {
                    "200": {"description": "All of them.", "content": _json(tasks)},
                    **_problems(("unauthorized", "cross-site", "internal")),
                },
            }
        },
        "/livez": {
            "get": {
                "summary": "Is the process alive?",
                "operationId": "livez",
                "tags": ["service"],
                "security": [],
                "responses": {"200": alive},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Does Redis answer?",
                "operationId": "readyz",
                "tags": ["service"],
                "security": [],
                "responses": {"200": alive, **_problems(("unavailable",))},
            }
        },
    }
