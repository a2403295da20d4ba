"""
Answers: states, groups and what was sent, as JSON documents. Pure.

/openapi.json has the schemas of the typed dicts. A document is the same from
every replica, so its digest serves as ETag and as the id of an event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypedDict

from msgspec import Meta
from starlette.responses import Response

from machine.errors import SignatureError, TaskCanceled, TaskExpired, TaskFailed, WireError
from machine.results.task import raise_if_failed
from machine.wire.signature import State, TaskState
from machine.wire.text import format_value, to_bytes

#: Levels that a document adds around a value of a task.
_AROUND: Final = 8
_Count = Annotated[int, Meta(ge=0)]
Outcome = Literal["succeeded", "failed", "canceled", "expired"]


class ResultValue(TypedDict):
    """One value of a result."""

    type: str
    value: Any


class ResultProgress(TypedDict):
    """What a running task said last."""

    fraction: float
    note: str


class ResultAttempt(TypedDict):
    """A run before the last one."""

    number: _Count
    error: str
    at: str


class Result(TypedDict):
    """A task's state, and its result once it has ended."""

    id: str
    task: str
    state: Annotated[str, Meta(description=", ".join(State))]
    ended: bool
    outcome: Outcome | None
    result: Any
    results: list[ResultValue]
    error: str | None
    progress: ResultProgress | None
    attempts: list[ResultAttempt]
    created_at: str | None


class SentTask(TypedDict):
    """A task that was sent."""

    id: str
    task: str
    state: str
    location: str
    events: str


class WorkflowTask(TypedDict):
    """A task of a workflow that was sent."""

    id: str
    task: str
    location: str


class SentWorkflow(TypedDict):
    """A chain, a group or a chord that was sent."""

    id: str
    location: str
    group: str
    tasks: list[WorkflowTask]


class GroupMember(TypedDict):
    """A member of a group, and its state where one is kept."""

    id: str
    state: Result | None


class GroupState(TypedDict):
    """A group's progress, and some of its members from `offset` on."""

    id: str
    total: _Count
    ended: _Count
    failed: _Count
    running: _Count
    done: bool
    offset: _Count
    members: list[GroupMember]


class ProblemDocument(TypedDict):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: _Count
    detail: str


def state_document(state: TaskState) -> Result:
    """
    Return a task's state for clients.

    Raises:
        WireError: A value in it has no place in JSON: somebody else wrote it.
    """
    progress = state.progress
    return {
        "id": state.task_uuid,
        "task": state.task_name,
        "state": str(state.state),
        "ended": state.is_completed,
        "outcome": _outcome(state),
        "result": _one([value for _, value in state.results or ()]),
        "results": [{"type": kind, "value": value} for kind, value in state.results or ()],
        "error": state.error if state.is_failure else None,
        "progress": None
        if progress is None
        else {"fraction": progress.fraction, "note": progress.note},
        "attempts": [
            {"number": run.number, "error": run.error, "at": run.at} for run in state.attempts
        ],
        "created_at": state.created_at or None,
    }


def group_document(
    group_uuid: str,
    uuids: Sequence[str],
    states: Sequence[TaskState | None],
    part: slice,
) -> GroupState:
    """
    Return a group's progress, and some of its members.

    Args:
        group_uuid: The group's id.
        uuids: Its members' ids.
        states: Theirs, in the same order; ``None`` where none is kept.
        part: Which members to show.
    """
    kept = [state for state in states if state is not None]
    ended = sum(state.is_completed for state in kept)
    shown = list(zip(uuids, states, strict=True))[part]
    return {
        "id": group_uuid,
        "total": len(uuids),
        "ended": ended,
        "failed": sum(state.is_failure for state in kept),
        "running": sum(state.state == State.STARTED for state in kept),
        "done": ended == len(uuids),
        "offset": part.start,
        "members": [
            {"id": uuid, "state": None if state is None else state_document(state)}
            for uuid, state in shown
        ],
    }


def digest(content: bytes) -> str:
    """Return what names a document: 32 hex characters."""
    return hashlib.sha256(content).hexdigest()[:32]


def json_bytes(document: Any) -> bytes:
    """
    Return a document as UTF-8; object keys are sorted.

    Raises:
        SignatureError: A value has no place in JSON.
    """
    return to_bytes(format_value(document, -_AROUND), "the document")


def content_of(document: Mapping[str, Any]) -> bytes:
    """
    Return a document as bytes; equal documents give equal bytes.

    Raises:
        WireError: A value in it has no place in JSON.
    """
    try:
        return json_bytes(document)
    except SignatureError as error:
        raise WireError(str(error)) from None


def reply(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response that no cache keeps."""
    return Response(
        content_of(document),
        status,
        {"Cache-Control": "no-store"} | dict(headers or {}),
        media_type="application/json",
    )


def _outcome(state: TaskState) -> Outcome | None:
    if not state.is_completed:
        return None
    try:
        raise_if_failed(state)
    except TaskCanceled:
        return "canceled"
    except TaskExpired:
        return "expired"
    except TaskFailed:
        return "failed"
    return "succeeded"


def _one(values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    return list(values) if values else None
