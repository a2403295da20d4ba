"""
TaskState, GroupMeta and dead letters as bytes, in both directions.

Scripts extend a state's document without parsing it, so its fields are written
in an order that they know.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, Final, NamedTuple

from machine.errors import WireError
from machine.wire import gotypes
from machine.wire.signature import Attempt, GroupMeta, Progress, TaskResult, TaskState
from machine.wire.text import (
    EXPECTED,
    ZERO_TIME,
    cut_error,
    format_float,
    format_value,
    is_time,
    match_keys,
    parse_json,
    quote,
    to_bytes,
    unexpected,
)

#: `encode_state_head`, then b'"CreatedAt":"<text>"', then this make a whole state.
STATE_TAIL: Final = b',"TTL":0}'
_STATE: Final = (
    "TaskUUID", "TaskName", "State", "Results", "Error", "CreatedAt", "TTL", "Result", "Progress",
    "Attempts",
)  # fmt: skip
_STATE_PLACES: Final = {key.lower(): place for place, key in enumerate(_STATE)}
_STATE_EMPTY: Final = ("", "", "", None, "", "", 0, None, None, None)
_STATE_TYPES: Final = (str, str, str, list, str, str, int, dict, dict, list)
#: Bytes of UTF-8 kept of an earlier attempt's error, and of a note about progress.
_LONGEST_NOTE: Final = 1024
_GROUP: Final = (
    "GroupUUID", "TaskUUIDs", "ChordTriggered", "Lock", "CreatedAt", "TTL", "Nested",
)  # fmt: skip
_GROUP_PLACES: Final = {key.lower(): place for place, key in enumerate(_GROUP)}
_GROUP_EMPTY: Final = ("", (), False, False, "", 0, False)
_GROUP_TYPES: Final = (str, list, bool, bool, str, int, bool)
_LETTER: Final = ("reason", "payload", "payload_base64", "crash_count", "worker_id", "buried_ms")
_LETTER_TYPES: Final = (str, str, str, int, str, int)


class Letter(NamedTuple):
    """What the envelope of a dead letter holds: a `ports.moves.DeadLetter` without its id."""

    reason: str
    payload: bytes
    crash_count: int
    worker_id: str
    buried_ms: int


def encode_state(state: TaskState) -> bytes:
    """
    Return the state's document as Go writes it.

    A creation time that Go cannot read becomes Go's zero time, because Go's callers
    would wait for ever otherwise. The error's text is cut to 8 KiB.

    Raises:
        SignatureError: A result is not a JSON value.
    """
    created_at = state.created_at if is_time(state.created_at) else ZERO_TIME
    attempts = ",".join(map(_attempt_text, state.attempts))
    history = f'"Attempts":[{attempts}],' if attempts else ""
    text = f'{_head(state)}{history}"CreatedAt":"{created_at}","TTL":{state.ttl:d}}}'
    return to_bytes(text, f"the state of {state.task_uuid}")


def encode_ahead(state: TaskState) -> bytes:
    """
    Return the document of a state that is written before its task is sent.

    Go workers fail if a group's member has no state. Go reads this one like any
    other; our scripts know it by its beginning and treat it as absent.
    """
    return b'{"Ahead":true,' + encode_state(state)[1:]


def encode_state_head(state: TaskState) -> bytes:
    """
    Return the state's document up to where its creation time begins.

    Scripts append ``"Attempts":[…],"CreatedAt":"<text>"`` of the stored document,
    and then `STATE_TAIL`. They find the two keys by searching the text, so each
    may occur once: in a string its quotes are escaped, and where a result has
    such a key, one of its letters is.

    Raises:
        SignatureError: A result is not a JSON value.
    """
    return to_bytes(_head(state), f"the state of {state.task_uuid}")


def _head(state: TaskState) -> str:
    results = state.results
    if results is None:
        shown = "null"
    elif len(results) == 1 and type(results[0].value) is int:
        shown = f'[{{"Type":{quote(results[0].type)},"Value":{results[0].value}}}]'
    else:
        items = [_result_text(kind, value) for kind, value in results]
        shown = f"[{','.join(items)}]".replace('"CreatedAt":', '"Created\\u0041t":')
        shown = shown.replace('"Attempts":', '"\\u0041ttempts":')
    error = quote(cut_error(state.error)) if state.error else '""'
    return (
        f'{{"TaskUUID":{quote(state.task_uuid)},"TaskName":{quote(state.task_name)},'
        f'"State":{quote(state.state)},"Results":{shown},"Error":{error},'
        f"{_progress_text(state.progress) if state.progress is not None else ''}"
    )


def _progress_text(progress: Progress) -> str:
    note = quote(cut_error(progress.note, _LONGEST_NOTE))
    return f'"Progress":{{"Fraction":{format_float(progress.fraction)},"Note":{note}}},'


def encode_attempt(attempt: Attempt) -> bytes:
    """Return the bytes of one entry of a state's Attempts."""
    return to_bytes(_attempt_text(attempt), "an attempt")


def _attempt_text(attempt: Attempt) -> str:
    error = quote(cut_error(attempt.error, _LONGEST_NOTE))
    return f'{{"Attempt":{attempt.number:d},"Error":{error},"At":{quote(attempt.at)}}}'


def _result_text(go_type: str, value: Any) -> str:
    return f'{{"Type":{quote(go_type)},"Value":{format_value(value, floats="float" in go_type)}}}'


def decode_state(raw: bytes) -> TaskState:
    """
    Return a state that any version of Machinery or we wrote.

    Keys match in any case, the single ``Result`` that Machinery wrote in 2016 is
    read, unknown fields are ignored, and the creation time stays text.

    Raises:
        WireError: The bytes are not a state.
    """
    values = _fields(parse_json(raw, "state"), "state", _STATE_PLACES, _STATE_EMPTY, _STATE_TYPES)
    uuid, name, state, results, error, created_at, ttl, single, progress, attempts = values
    if not state:
        raise WireError('state field State is "" or absent; expected one like SUCCESS')
    if results is None and single is not None:
        results = [single]
    return TaskState(
        task_uuid=uuid,
        state=state,
        task_name=name,
        results=None if results is None else [_result(item) for item in results],
        error=error,
        created_at=created_at,
        ttl=ttl,
        progress=_progress(progress),
        attempts=[_attempt(item) for item in attempts or ()],
    )


def _progress(found: dict[str, Any] | None) -> Progress | None:
    if found is None:
        return None
    fraction, note = found.get("Fraction"), found.get("Note", "")
    if not isinstance(fraction, int | float) or not isinstance(note, str):
        raise unexpected("state field Progress", found, "a Fraction and a Note")
    return Progress(float(fraction), note)


def _attempt(found: Any) -> Attempt:
    kinds = {"Attempt": int, "Error": str, "At": str}
    if type(found) is not dict or any(type(found.get(k)) is not t for k, t in kinds.items()):
        raise unexpected("state field Attempts", found, "objects of Attempt, Error and At")
    return Attempt(found["Attempt"], found["Error"], found["At"])


def _result(found: Any) -> TaskResult:
    if type(found) is not dict:
        raise unexpected("state field Results", found, "an array of objects")
    if list(found) == ["Type", "Value"]:
        go_type, value = found.values()
    else:
        (go_type, value), _ = match_keys(
            found, {"type": 0, "value": 1}, ("", None), "state field Results."
        )
    if type(go_type) is not str:
        raise unexpected("state field Results.Type", go_type, "a string")
    return TaskResult(go_type, value)


def decode_results(state: TaskState) -> list[Any]:
    """
    Return a state's results as Python values, in order; [] where it has none.

    Dicts and mixed lists, which Go callers cannot read, are returned as they are.

    Raises:
        WireError: A result does not fit its type, or the type is unknown; Go's text.
    """
    return [
        value if kind in (gotypes.MAP, gotypes.MIXED) else gotypes.decode(kind, value)
        for kind, value in state.results or ()
    ]


def encode_group(meta: GroupMeta) -> bytes:
    """
    Return the group's document as Go writes it; an unreadable time becomes the zero time.

    ``Nested`` comes after Go's fields if it is true; Go ignores it.
    """
    created_at = meta.created_at if is_time(meta.created_at) else ZERO_TIME
    text = (
        f'{{"GroupUUID":{quote(meta.group_uuid)},'
        f'"TaskUUIDs":[{",".join(map(quote, meta.task_uuids))}],'
        f'"ChordTriggered":{"true" if meta.chord_triggered else "false"},'
        f'"Lock":{"true" if meta.lock else "false"},'
        f'"CreatedAt":"{created_at}","TTL":{meta.ttl:d}'
        + (',"Nested":true}' if meta.nested else "}")
    )
    return to_bytes(text, f"the meta of {meta.group_uuid}")


def decode_group(raw: bytes) -> GroupMeta:
    """
    Return a group's meta; keys in any case, unknown ones ignored.

    Raises:
        WireError: The bytes are not a group's meta.
    """
    values = _fields(parse_json(raw, "group"), "group", _GROUP_PLACES, _GROUP_EMPTY, _GROUP_TYPES)
    uuid, members, triggered, lock, created_at, ttl, nested = values
    if not uuid:  # a task's state has none of these fields, so it would pass as an empty group
        raise unexpected("group field GroupUUID", uuid, "the group's id")
    for member in members:
        if type(member) is not str:
            raise unexpected("group field TaskUUIDs", member, "an array of strings")
    return GroupMeta(
        group_uuid=uuid,
        task_uuids=list(members),
        chord_triggered=triggered,
        lock=lock,
        created_at=created_at,
        ttl=ttl,
        nested=nested,
    )


def encode_letter(
    *, reason: str, payload: bytes, crash_count: int, worker_id: str, buried_ms: int
) -> bytes:
    """
    Return the envelope of a dead letter: a JSON object from which the payload can be restored.

    The payload is a string in it if it is UTF-8, and base64 if it is not.
    ``buried_ms`` is Unix milliseconds; ``reason`` is cut to 8 KiB.
    """
    try:
        shown = f'"payload":{quote(payload.decode())}'
    except UnicodeDecodeError:
        shown = f'"payload_base64":"{b64encode(payload).decode("ascii")}"'
    text = (
        f'{{"reason":{quote(cut_error(reason))},"crash_count":{crash_count:d},'
        f'"worker_id":{quote(worker_id)},"buried_ms":{buried_ms:d},{shown}}}'
    )
    return to_bytes(text, "a dead letter")


def decode_letter(raw: bytes) -> Letter:
    """
    Open a dead letter's envelope.

    Raises:
        WireError: The bytes are not such an envelope.
    """
    places = {key: place for place, key in enumerate(_LETTER)}
    empty = ("", None, None, 0, "", 0)
    values = _fields(parse_json(raw, "dead letter"), "dead letter", places, empty, _LETTER_TYPES)
    reason, text, encoded, crash_count, worker_id, buried_ms = values
    try:
        payload = b64decode(encoded, validate=True) if encoded is not None else text.encode()
    except (AttributeError, ValueError):
        raise WireError("dead letter has no readable payload; expected text or base64") from None
    return Letter(reason, payload, crash_count, worker_id, buried_ms)


def _fields(
    found: Any, what: str, places: dict[str, int], empty: tuple[Any, ...], types: tuple[type, ...]
) -> list[Any]:
    if type(found) is not dict:
        raise unexpected(what, found, "an object")
    values, _ = match_keys(found, places, empty, f"{what} field ")
    for place, (value, kind) in enumerate(zip(values, types, strict=True)):
        if type(value) is not kind and value is not empty[place]:
            field = next(key for key, at in places.items() if at == place)
            key = next((name for name in found if name.lower() == field), field)
            raise unexpected(f"{what} field {key}", value, EXPECTED[kind])
    return values


#: The error of a task that was canceled; ``: `` and a reason may follow.
CANCELED = "canceled"
#: The beginning of the error of a task that expired before it started.
EXPIRED = "expired: "
