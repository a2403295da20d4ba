"""
``/openapi.json``: one path for each task, typed by its annotations. Pure.

The document is made once from the tasks that a replica knows, so that replicas
of one version give the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from caller.web.bodies import WHOLE, ChainBody, ChordBody, GroupBody, PieceBody, SendOptions
from caller.web.problems import KINDS, MEDIA_TYPE
from caller.web.responses import GroupState, ProblemDocument, Result, SentTask, SentWorkflow
from caller.web.task_schema import Schema, TaskSchema, ref
from machine.wire import gotypes

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
        paths[f"/tasks/{name}"] = {"post": _task_operation(name, task)}
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
    scalars = [gotypes.json_schema(one) for one in gotypes.ANNOTATED if one[0] != "["]
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


def _answer(status: int, description: str, schema: Schema | None = None) -> Schema:
    content = {} if schema is None else {"content": _json(schema)}
    return {str(status): {"description": description, **content}}


def _operation(
    tag: str, name: str, summary: str, answers: Schema, problems: Iterable[str] = (), **more: Any
) -> Schema:
    """Return an operation that ends with one of these answers, or with a problem of these kinds."""
    responses = answers | _problems(problems)
    return {"tags": [tag], "operationId": name, "summary": summary, "responses": responses} | more


def _sending(
    tag: str, name: str, summary: str, body: Schema, ended: Schema, sent: Schema
) -> Schema:
    answers = _answer(200, "It ended within the time preferred.", ended)
    return _operation(
        tag,
        name,
        summary,
        answers | _answer(202, "It was sent.", sent),
        ("bad-header", *_SENDING),
        parameters=[_KEY, _PREFER],
        requestBody={"required": tag == "workflows", "content": _json(body)},
    )


def _task_operation(name: str, task: TaskSchema) -> Schema:
    result = {"anyOf": [task.result, {"type": "null"}]} if task.result else {}
    ended = {"allOf": [ref("Result"), {"properties": {"result": result}}]}
    summary = task.doc or f"Send {name}."
    return _sending("tasks", f"send:{name}", summary, task.body(), ended, ref("SentTask"))


def _workflow_paths() -> Schema:
    return {
        f"/{kind}s": {
            "post": _sending(
                "workflows", f"send-{kind}", summary, ref(body), ref("Result"), ref("SentWorkflow")
            )
        }
        for kind, body, summary in (
            (
                "chain",
                "ChainBody",
                "Tasks one after the other; each gets the result before it, appended.",
            ),
            ("group", "GroupBody", "Tasks side by side."),
            (
                "chord",
                "ChordBody",
                "Tasks side by side, and one with all their results after them.",
            ),
        )
    }


def _result_paths() -> Schema:
    state = _answer(200, "What is known of it.", ref("Result"))
    unknown = ("unknown-result", *_ANY)

    def cancel(name: str) -> Schema:
        problems = ("ended", *unknown)
        return _operation("results", name, "Cancel a task.", state, problems, parameters=[_ID])

    read = _operation(
        "results",
        "result",
        "A task's state and result.",
        state | _answer(304, "It is as If-None-Match says."),
        ("bad-query", *unknown),
        parameters=[_ID, _WAIT],
    )
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    events = _operation(
        "results",
        "events",
        "A task's changes as server-sent events, until its end.",
        {"200": {"description": "Events named state, end and gone.", "content": stream}}
        | _answer(204, "The client has seen the last one."),
        unknown,
        parameters=[_ID, {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}],
    )
    return {
        "/results/{id}": {"get": read, "delete": cancel("cancel")},
        "/results/{id}/cancel": {"post": cancel("cancel-by-post")},
        "/results/{id}/events": {"get": events},
    }


def _group_paths() -> Schema:
    part = [
        {"name": name, "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": most}}
        for name, most in (("offset", 999_999_999), ("limit", 1000))
    ]
    group = _answer(200, "Its members.", ref("GroupState"))
    unknown = ("unknown-group", *_ANY)
    read = _operation(
        "results",
        "group",
        "A group's progress, and its members' states.",
        group,
        ("bad-query", *unknown),
        parameters=[_ID, *part],
    )
    summary = "Cancel all members that have not ended."
    cancel = _operation("results", "cancel-group", summary, group, unknown, parameters=[_ID])
    return {"/groups/{id}": {"get": read, "delete": cancel}}


def _service_paths() -> Schema:
    tasks = {"type": "object", "required": ["tasks"], "properties": {"tasks": {"type": "array"}}}
    listed = _answer(200, "All of them.", tasks)
    problems = ("unauthorized", "cross-site", "internal")
    alive = _answer(200, "Yes.", {"type": "object"})
    livez = _operation("service", "livez", "Is the process alive?", alive, security=[])
    readyz = _operation(
        "service", "readyz", "Does Redis answer?", alive, ("unavailable",), security=[]
    )
    return {
        "/tasks": {
            "get": _operation("tasks", "tasks", "The tasks that can be sent.", listed, problems)
        },
        "/livez": {"get": livez},
        "/readyz": {"get": readyz},
    }
