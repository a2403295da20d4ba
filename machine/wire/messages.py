"""
Signatures as bytes, in both directions.

A message from Redis is untrusted input and is checked here, once. What is
written is what Go Machinery would write, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

from machine.errors import SignatureError, WireError
from machine.wire.gotypes import TYPES
from machine.wire.limits import (
    DELAYED_DEFAULT,
    MOST_ARGS,
    MOST_BYTES,
    MOST_NESTED,
    MOST_NODES,
    find_fault,
    find_name_fault,
)
from machine.wire.signature import JSON, Arg, Signature
from machine.wire.text import (
    EXPECTED,
    check_value,
    format_time,
    format_value,
    match_keys,
    parse_json,
    parse_time,
    quote,
    scan_json,
    shorten,
    to_bytes,
    unexpected,
)

_make: Final = tuple.__new__  # makes an Arg in half the time that its own constructor takes
_KEYS: Final = [
    "UUID", "Name", "RoutingKey", "ETA", "GroupUUID", "GroupTaskCount", "Args", "Headers",
    "Priority", "Immutable", "RetryCount", "RetryTimeout", "OnSuccess", "OnError",
    "ChordCallback", "BrokerMessageGroupId", "SQSReceiptHandle", "StopTaskDeletionOnError",
    "IgnoreWhenTaskNotRegistered",
]  # fmt: skip
_PLACES: Final = {key.lower(): place for place, key in enumerate(_KEYS)}
_EMPTY: Final = (
    "", "", "", None, "", 0, None, None, 0, False, 0, 0, None, None, None, "", "", False, False,
)  # fmt: skip
_TYPES: Final = (
    str, str, str, str, str, int, list, dict, int, bool, int, int, list, list, dict, str, str,
    bool, bool,
)  # fmt: skip
#: The shape of a plain task as Go and we send it: all keys, no ETA, no callbacks.
_USUAL: Final = [
    NoneType if type(empty) is NoneType and key not in ("Args", "Headers") else kind
    for key, kind, empty in zip(_KEYS, _TYPES, _EMPTY, strict=True)
]
#: The end of every message of a task without options.
_PLAIN_END: Final = (
    ',"Priority":0,"Immutable":false,"RetryCount":0,"RetryTimeout":0,"OnSuccess":null,'
    '"OnError":null,"ChordCallback":null,"BrokerMessageGroupId":"","SQSReceiptHandle":"",'
    '"StopTaskDeletionOnError":false,"IgnoreWhenTaskNotRegistered":false}'
)
_PLAIN_TAIL: Final = f',"Headers":{{}}{_PLAIN_END}'
_PLAIN_TAIL_BYTES: Final = _PLAIN_TAIL.encode()
_TEXT: Final = r'"([^"\\\x00-\x1f]*)"'
_PLAIN_HEAD: Final = re.compile(
    rf'\{{"UUID":{_TEXT},"Name":{_TEXT},"RoutingKey":{_TEXT},"ETA":null,"GroupUUID":{_TEXT},'
    r'"GroupTaskCount":(0|[1-9][0-9]{0,17}),"Args":'
)
#: An argument that is an int of up to 18 digits, or a string without escapes.
_PLAIN_ARG: Final = re.compile(
    rf'\{{"Name":{_TEXT},"Type":{_TEXT},"Value":(?:(0|-?[1-9][0-9]{{0,17}})|{_TEXT})\}}'
)
_ARG_HEADS: Final = {kind: f'{{"Name":"","Type":"{kind}","Value":' for kind in TYPES}
_BOOLS: Final = {False: "false", True: "true"}
_ARG_KEYS: Final = ["Name", "Type", "Value"]
_ARG_PLACES: Final = {"name": 0, "type": 1, "value": 2}
_TOO_MANY: Final = (
    f"too many callbacks; expected {MOST_NESTED} below each other and {MOST_NODES} in all at most"
)


def encode_signature(sig: Signature, *, delayed_key: str = DELAYED_DEFAULT) -> bytes:
    """
    Return the message: Go's 19 keys in Go's order and spelling, then the extra ones.

    What `decode_signature` would refuse is refused here as well, so that nobody
    sends what no worker takes. The size alone is left to the caller to check.

    Raises:
        SignatureError: A field is out of bounds, of the wrong type, or holds what
            JSON cannot.
    """
    try:
        return to_bytes(_signature_text(sig, 0, (delayed_key, [MOST_NODES])), "the signature")
    except SignatureError as error:
        raise SignatureError(f"task {shorten(sig.name)}: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"task {shorten(sig.name)}: a field of the signature has the wrong type: {error}"
        raise SignatureError(text) from error


def _signature_text(sig: Signature, depth: int, rules: tuple[str, list[int]]) -> str:
    rules[1][0] -= 1
    if depth > MOST_NESTED or rules[1][0] < 0:
        raise SignatureError(f"{_TOO_MANY}. Send some of them from a task instead")
    args = _args_text(sig.args) if sig.args else "null"
    headers = "null" if sig.headers is None else format_value(sig.headers) if sig.headers else "{}"
    if _has_no_options(sig):
        if bad := _plain_trouble(sig, rules[0]):
            raise SignatureError(bad)
        return (
            f'{{"UUID":{quote(sig.uuid)},"Name":{quote(sig.name)},"RoutingKey":'
            f'{quote(sig.routing_key)},"ETA":null,"GroupUUID":{quote(sig.group_uuid)},'
            f'"GroupTaskCount":{sig.group_task_count:d},"Args":{args},"Headers":{headers}{_PLAIN_END}'
        )
    if bad := find_fault(sig, rules[0], sending=True):
        raise SignatureError(bad)
    on_success = on_error = chord = "null"
    if sig.on_success:
        on_success = _callbacks_text(sig.on_success, depth, rules)
    if sig.on_error:
        on_error = _callbacks_text(sig.on_error, depth, rules)
    if sig.chord_callback is not None:
        chord = _signature_text(sig.chord_callback, depth + 1, rules)
    eta = "null" if sig.eta_ns is None else f'"{format_time(sig.eta_ns)}"'
    return (
        f'{{"UUID":{quote(sig.uuid)},"Name":{quote(sig.name)},'
        f'"RoutingKey":{quote(sig.routing_key)},"ETA":{eta},'
        f'"GroupUUID":{quote(sig.group_uuid)},"GroupTaskCount":{sig.group_task_count:d},'
        f'"Args":{args},"Headers":{headers},"Priority":{sig.priority:d},'
        f'"Immutable":{_BOOLS[sig.immutable]},"RetryCount":{sig.retry_count:d},'
        f'"RetryTimeout":{sig.retry_timeout:d},"OnSuccess":{on_success},"OnError":{on_error},'
        f'"ChordCallback":{chord},"BrokerMessageGroupId":{quote(sig.broker_message_group_id)},'
        f'"SQSReceiptHandle":{quote(sig.sqs_receipt_handle)},'
        f'"StopTaskDeletionOnError":{_BOOLS[sig.stop_task_deletion_on_error]},'
        f'"IgnoreWhenTaskNotRegistered":{_BOOLS[sig.ignore_when_task_not_registered]}'
        f"{_extra_text(sig.extra) if sig.extra else ''}}}"
    )


def _has_no_options(sig: Signature) -> bool:
    return sig.eta_ns is None and not (
        sig.headers or sig.retry_count or sig.on_success or sig.on_error
        or sig.chord_callback is not None or sig.immutable or sig.ignore_when_task_not_registered
        or sig.priority or sig.retry_timeout or sig.extra or sig.broker_message_group_id
        or sig.sqs_receipt_handle or sig.stop_task_deletion_on_error
    )  # fmt: skip


def _plain_trouble(sig: Signature, delayed_key: str) -> str:
    if sig.group_uuid or sig.group_task_count:
        return find_fault(sig, delayed_key)
    return find_name_fault(sig.name, sig.routing_key, sig.uuid, delayed_key)


def _args_text(args: Sequence[Arg]) -> str:
    if len(args) > MOST_ARGS:
        raise SignatureError(f"{len(args)} arguments; at most {MOST_ARGS} fit, send lists instead")
    items = []
    for kind, value, name in args:
        # Most values are ints and texts; format_value would test more types before them.
        if type(value) is int:
            text = int.__repr__(value)
        elif type(value) is str:
            text = quote(value)
        else:
            text = format_value(value, floats="float" in kind)
        head = _ARG_HEADS.get(kind) if name == "" else None
        head = head or f'{{"Name":{quote(name)},"Type":{quote(kind)},"Value":'
        items.append(f"{head}{text}}}")
    return f"[{','.join(items)}]"


def _callbacks_text(
    callbacks: Sequence[Signature], depth: int, rules: tuple[str, list[int]]
) -> str:
    return f"[{','.join([_signature_text(item, depth + 1, rules) for item in callbacks])}]"


def _extra_text(extra: Mapping[str, JSON]) -> str:
    for key in extra:
        if key.lower() in _PLACES:
            raise SignatureError(
                f"extra field {shorten(key)} is one of the 19 fields; set that one"
            )
    return "".join([f",{quote(key)}:{format_value(value)}" for key, value in extra.items()])


def decode_signature(
    raw: bytes,
    *,
    most_bytes: int = MOST_BYTES,
    latest_eta_ns: int | None = None,
    delayed_key: str = DELAYED_DEFAULT,
) -> Signature:
    """
    Return the signature in bytes that anyone may have written.

    As tolerant as Go where that does no harm: any case of keys, absent and null
    fields, unknown fields (kept in ``extra``), bytes after the object. Strict about
    sizes, types, ranges, ids and names.

    Args:
        raw: One element of a queue.
        most_bytes: The longest message to look at.
        latest_eta_ns: Refuse an ETA after this Unix time in nanoseconds.
        delayed_key: Name of the set of delayed tasks, which no id may have.

    Raises:
        WireError: With the field, its value and what was expected.
    """
    if len(raw) <= most_bytes and raw.endswith(_PLAIN_TAIL_BYTES):
        plain = _plain_signature(raw, delayed_key)
        if plain is not None:
            return plain
    found = parse_json(raw, "signature", most_bytes=most_bytes)
    return _signature(found, "", 0, (latest_eta_ns, delayed_key, [MOST_NODES]))


def _plain_signature(raw: bytes, delayed_key: str) -> Signature | None:
    """
    Read a message of a task without options in half the time; ``None`` if it is not one.

    Head, arguments and tail are matched as whole JSON tokens one behind the other, so
    `parse_json` would read the same from whatever passes here.
    """
    try:
        text = raw.decode()
        head = _PLAIN_HEAD.match(text)
        if head is None:
            return None
        args, end = _plain_args(text, head.end())
        if args is None:
            found, end = scan_json(text, head.end())
            args = _args(found or [], "") if found is None or type(found) is list else None
    except (ValueError, RecursionError):
        return None
    if args is None or len(text) - end != len(_PLAIN_TAIL):
        return None
    uuid, name, routing_key, group, count = head.groups()
    sig = Signature(uuid=uuid, name=name, routing_key=routing_key, args=args, headers={})
    if group or count != "0":
        sig.group_uuid, sig.group_task_count = group, int(count)
    return None if _plain_trouble(sig, delayed_key) else sig


def _plain_args(text: str, at: int) -> tuple[list[Arg] | None, int]:
    """Return the arguments that begin here, if all are ints and plain strings, and their end."""
    args: list[Arg] = []
    while text[at] == ("," if args else "[") and len(args) < MOST_ARGS:
        item = _PLAIN_ARG.match(text, at + 1)
        if item is None:
            return None, at
        name, kind, number, string = item.groups()
        args.append(_make(Arg, (kind, string if number is None else int(number), name)))
        at = item.end()
    return (args, at + 1) if args and text[at] == "]" else (None, at)


_Rules = tuple[int | None, str, list[int]]


def _signature(found: Any, at: str, depth: int, rules: _Rules) -> Signature:
    rules[2][0] -= 1
    if depth > MOST_NESTED or rules[2][0] < 0:
        raise WireError(f"signature field {at[:60]}: {_TOO_MANY}")
    values, extra = _values(found, at)
    headers, args = values[7], values[6]
    sig = Signature(
        uuid=values[0],
        name=values[1],
        routing_key=values[2],
        group_uuid=values[4],
        group_task_count=values[5],
        args=_args(args, at) if args else [],
        headers=headers,
        priority=values[8],
        immutable=values[9],
        retry_count=values[10],
        retry_timeout=values[11],
        broker_message_group_id=values[15],
        sqs_receipt_handle=values[16],
        stop_task_deletion_on_error=values[17],
        ignore_when_task_not_registered=values[18],
        extra=extra,
    )
    if headers:
        check_value(headers, f"signature field {at}Headers")
    if bad := find_fault(sig, rules[1]):
        raise WireError(f"signature field {at}{bad}")
    if values[3] is not None:
        sig.eta_ns = _eta(values[3], at, rules[0])
    if values[12]:
        sig.on_success = _callbacks(values[12], f"{at}OnSuccess", depth, rules)
    if values[13]:
        sig.on_error = _callbacks(values[13], f"{at}OnError", depth, rules)
    if values[14] is not None:
        sig.chord_callback = _signature(values[14], f"{at}ChordCallback.", depth + 1, rules)
    return sig


def _values(found: Any, at: str) -> tuple[list[Any], dict[str, JSON] | None]:
    """Return the 19 values in order, each of its type, and the fields under other keys."""
    if type(found) is not dict:
        raise unexpected(f"signature field {at[:-1]}" if at else "signature", found, "an object")
    values = list(found.values())
    others: dict[str, JSON] = {}
    if list(found) != _KEYS:
        values, others = match_keys(found, _PLACES, _EMPTY, f"signature field {at}")
        for key, value in others.items():
            check_value(value, f"signature field {at}{shorten(key)}")
    if [*map(type, values)] != _USUAL:
        _check_types(values, at)
    return values, others or None


def _callbacks(found: list[Any], at: str, depth: int, rules: _Rules) -> list[Signature]:
    return [
        _signature(item, f"{at}[{index}].", depth + 1, rules) for index, item in enumerate(found)
    ]


def _check_types(values: list[Any], at: str) -> None:
    for place, value in enumerate(values):
        if value is None:
            values[place] = _EMPTY[place]
        elif type(value) is not _TYPES[place]:
            field = f"signature field {at}{_KEYS[place]}"
            raise unexpected(field, value, EXPECTED[_TYPES[place]])


def _args(found: list[Any], at: str) -> list[Arg]:
    if len(found) > MOST_ARGS:
        raise unexpected(f"signature field {at}Args", found, f"{MOST_ARGS} at most")
    args = []
    for item in found:
        if type(item) is not dict:
            raise unexpected(f"signature field {at}Args", item, "an array of objects")
        if list(item) == _ARG_KEYS:
            name, kind, value = item.values()
        else:
            (name, kind, value), _ = match_keys(
                item, _ARG_PLACES, ("", "", None), f"signature field {at}Args."
            )
        if type(kind) is not str or type(name) is not str:
            name, kind = _arg_texts(name, kind, at)
        if type(value) is float or type(value) is list or type(value) is dict:
            check_value(value, f"signature field {at}Args.Value")
        args.append(Arg(kind, value, name))
    return args


def _arg_texts(name: Any, kind: Any, at: str) -> tuple[str, str]:
    for key, value in (("Name", name), ("Type", kind)):
        if value is not None and type(value) is not str:
            raise unexpected(f"signature field {at}Args.{key}", value, "a string")
    return name or "", kind or ""


def _eta(text: str, at: str, latest_ns: int | None) -> int:
    try:
        eta_ns = parse_time(text)
    except WireError as error:
        raise WireError(f"signature field {at}ETA: {error}") from None
    if latest_ns is not None and eta_ns > latest_ns:
        expected = f"{format_time(latest_ns)} at the latest"
        raise unexpected(f"signature field {at}ETA", text, expected)
    return eta_ns
