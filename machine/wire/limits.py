"""
The bounds of a message, and which names may be queues and ids.

Queues and results are keys of one Redis database. So the name of a queue or an
id that could be another kind of key is refused before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from machine.wire.headers import OWN_HEADERS
from machine.wire.signature import Signature
from machine.wire.text import shorten

#: ZSET, wire: signature JSON -> ETA in Unix ns. Shared by all queues of a database.
DELAYED_DEFAULT = "delayed_tasks"
#: STRING, wire: Machinery's one lock for all chords.
CHORD_MUTEX = "TriggerChordMutex"
#: STRING, wire: prefix of Machinery's locks for periodic tasks.
PERIODIC_LOCK_PREFIX = "machinery_lock_"
_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.:-]{0,128}")
_RESULT_ID = re.compile(r"[A-Za-z0-9_.:{}-]{1,128}")
_RESULT_KEY = re.compile(r"(task|group|chord)_")


def is_queue_name(name: str, *, delayed_key: str = DELAYED_DEFAULT) -> bool:
    """
    Say whether a list of this name may be a queue.

    The empty name may be: Machinery without a default queue uses it. A name that
    is, or looks like, another kind of key may not.
    """
    return (
        _QUEUE_NAME.fullmatch(name) is not None
        and name not in (delayed_key, CHORD_MUTEX)
        and not name.startswith(PERIODIC_LOCK_PREFIX)
        and _RESULT_KEY.match(name) is None
    )


def is_result_id(uuid: str, *, delayed_key: str = DELAYED_DEFAULT) -> bool:
    """
    Say whether a state may be written under this id.

    Machinery lets a caller choose any id. Ours must have a key's characters
    and must not name a key of another kind. The scripts check besides that a key
    which exists holds a state.
    """
    return (
        _RESULT_ID.fullmatch(uuid) is not None
        and uuid not in (delayed_key, CHORD_MUTEX)
        and not uuid.startswith((PERIODIC_LOCK_PREFIX, "{"))
    )


#: Bytes of a message.
MOST_BYTES: Final = 1 << 20
#: Signatures in one message: itself and all callbacks below it.
MOST_NODES: Final = 1000
#: Callbacks of callbacks; a chain of n tasks nests n - 1 deep.
MOST_NESTED: Final = 64
#: Arguments of one signature; an empty one costs more to read than to send.
MOST_ARGS: Final = 100_000
#: Retries a message may ask for.
MOST_RETRIES: Final = 100
#: Seconds of the last retry delay: the Fibonacci number past a year.
_LONGEST_RETRY_S: Final = 39_088_169
_MOST_MEMBERS: Final = 1_000_000
_MOST_HEADERS: Final = 64
_LONGEST_HEADER: Final = 1024
_LONGEST_NAME: Final = 256
_LONGEST_QUEUE: Final = 128
_INT_MIN: Final = -(1 << 63)
#: An id as `new_uuid` makes it, which is no other key's name.
_USUAL_ID: Final = re.compile(r"(?:task|group|chord)_[0-9a-f-]{36}").fullmatch
_ID: Final = "an id: 1 to 128 characters A-Z a-z 0-9 _ . : { } - that are no other key's name"
_QUEUE: Final = "a queue: up to 128 characters A-Z a-z 0-9 _ . : - that are no other key's name"


def find_fault(sig: Signature, delayed_key: str, *, sending: bool = False) -> str:
    """
    Return "" for a signature within bounds, else ``<field> is <value>; expected …``.

    Callbacks are not checked. Ids may be empty: sending fills them in.

    Args:
        sig: Each field is of its type already.
        delayed_key: Name of the set of delayed tasks, which no id and no queue may have.
        sending: Leave room for what a retry adds to a message that was received.
    """
    bad = find_name_fault(sig.name, sig.routing_key, sig.uuid, delayed_key)
    if bad:
        return bad
    group = sig.group_uuid
    usual = _USUAL_ID(group) is not None and group != delayed_key
    if group and not usual and not is_result_id(group, delayed_key=delayed_key):
        return f"GroupUUID is {shorten(group)}; expected {_ID}"
    for field, value, least, most in (
        ("GroupTaskCount", sig.group_task_count, 0, _MOST_MEMBERS),
        ("Priority", sig.priority, 0, 255),
        ("RetryCount", sig.retry_count, _INT_MIN, MOST_RETRIES),
        ("RetryTimeout", sig.retry_timeout, _INT_MIN, _LONGEST_RETRY_S << sending),
    ):
        if not least <= value <= most:
            # Go takes a negative retry for none; no need to teach anyone to send it.
            return f"{field} is {shorten(value)}; expected {max(least, 0)} to {most}"
    return _header_trouble(sig.headers) if sig.headers else ""


def find_name_fault(name: str, routing_key: str, uuid: str, delayed_key: str) -> str:
    """Check the names only: all that a signature without options can have wrong."""
    bounded = len(name) <= _LONGEST_NAME and len(routing_key) <= _LONGEST_QUEUE
    usual = bounded and _USUAL_ID(uuid) is not None and uuid != delayed_key
    if usual and _are_names(name, routing_key, delayed_key):
        return ""
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        return f"Name is {shorten(name)}; expected 1 to {_LONGEST_NAME} printable characters"
    if not is_queue_name(routing_key, delayed_key=delayed_key):
        return f"RoutingKey is {shorten(routing_key)}; expected {_QUEUE}"
    if uuid and not is_result_id(uuid, delayed_key=delayed_key):
        return f"UUID is {shorten(uuid)}; expected {_ID}"
    return ""


# Cached because a program has few tasks and queues; the names have a bounded length.
@lru_cache(maxsize=256)
def _are_names(name: str, routing_key: str, delayed_key: str) -> bool:
    good = 0 < len(name) <= _LONGEST_NAME and name.isprintable()
    return good and is_queue_name(routing_key, delayed_key=delayed_key)


def _header_trouble(headers: Mapping[str, Any]) -> str:
    # Ours do not count: a message with as many as allowed gets more of ours when it is retried.
    if len(headers) > _MOST_HEADERS and len(headers.keys() - OWN_HEADERS) > _MOST_HEADERS:
        return f"Headers has {len(headers)} entries; expected {_MOST_HEADERS} at most"
    for key, value in headers.items():
        if len(key) > _LONGEST_HEADER:
            return f"Headers has a key of {len(key)} characters; expected {_LONGEST_HEADER} at most"
        if type(value) is str and len(value) > _LONGEST_HEADER:
            size = f"{len(value)} characters long"
            return f"Headers[{shorten(key)}] is {size}; expected {_LONGEST_HEADER} at most"
    return ""
