"""
What clients read: states and groups as JSON documents. Pure.

A document is the same from every replica, so its digest serves as ETag and as
the id of an event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response

from machine.errors import SignatureError, TaskCanceled, TaskExpired, TaskFailed, WireError
from machine.results.group import GroupProgress
from machine.results.task import raise_if_failed
from machine.wire.signature import State, TaskState
from machine.wire.text import to_bytes, value_text

Document = dict[str, Any]
#: Levels that a document adds around a value of a task.
_AROUND: Final = 8


def state_document(state: TaskState) -> Document:
    """
    Return a task's state for clients.

    Raises:
        WireError: A value in it has no place in JSON: somebody else wrote it.
    """
    values = [{"type": kind, "value": value} for kind, value in state.results or ()]
    progress = state.progress
    return {
        "id": state.task_uuid,
        "task": state.task_name,
        "state": str(state.state),
        "ended": state.is_completed,
        "outcome": _outcome(state),
        "result": _one([value for _, value in state.results or ()]),
        "results": values,
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
) -> Document:
    """
    Return a group's progress, and some of its members.

    Args:
        group_uuid: The group's id.
        uuids: Its members' ids.
        states: Theirs, in the same order; ``None`` where none is kept.
        part: Which members to show.
    """
    kept = [state for state in states if state is not None]
    count = GroupProgress(
        total=len(uuids),
        ended=sum(state.is_completed for state in kept),
        failed=sum(state.is_failure for state in kept),
        running=sum(state.state == State.STARTED for state in kept),
    )
    shown = list(zip(uuids, states, strict=True))[part]
    return {
        "id": group_uuid,
        **count._asdict(),
        "done": count.ended == count.total,
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
    return to_bytes(value_text(document, -_AROUND), "the document")


def content_of(document: Document) -> bytes:
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
    document: Document, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response that no cache keeps."""
    return Response(
        content_of(document),
        status,
        {"Cache-Control": "no-store"} | dict(headers or {}),
        media_type="application/json",
    )


def _outcome(state: TaskState) -> str | None:
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
