"""
What travels, as values: Signature, Arg, TaskState, GroupMeta.

They have the fields of Go Machinery's structs of the same names, in Python's
spelling. `messages` and `states` turn them into bytes and back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

#: What crosses the wire inside an argument or a result.
JSON = Any


def new_uuid(prefix: str) -> str:
    """
    Return ``<prefix>_<uuid4>`` with 122 random bits.

    Written out because it runs once for each task sent, and ``uuid.uuid4()``
    takes four times as long.
    """
    h = os.urandom(16).hex()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{prefix}_{h[:8]}-{h[8:12]}-4{h[13:16]}-{variant}{h[17:20]}-{h[20:]}"


class State(StrEnum):
    """Machinery's six states; the text is what stands in Redis."""

    PENDING = "PENDING"
    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    RETRY = "RETRY"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


class Arg(NamedTuple):
    """One positional argument: a Go type name (see `gotypes`), its JSON value, a free-text name."""

    type: str
    value: JSON
    name: str = ""


class TaskResult(NamedTuple):
    """One returned value with its Go type name; ``bytes`` are ``[]uint8``, as Go writes them."""

    type: str
    value: JSON


@dataclass(slots=True, kw_only=True)
class Signature:
    """
    One invocation of a task: its name, arguments, options and id. The message.

    Attributes:
        uuid: Result key; filled with ``task_<uuid4>`` when sent empty.
        routing_key: Queue name; filled with the default queue when sent empty.
        eta_ns: Do not start before this; Unix nanoseconds, or ``None``.
        group_uuid: Group this is a member of, or "".
        group_task_count: How many members that group has.
        headers: Free for callers (trace context); our own keys start with ``x-``.
        priority: 0-255; carried for Go, without meaning on Redis.
        immutable: Results of the parent are not appended to ``args`` (see `workflow`).
        retry_count: Retries left.
        retry_timeout: Seconds of the last retry delay (Machinery's Fibonacci state).
        on_success: Sent with the results appended when this succeeds.
        on_error: Sent with the error text prepended when this fails for good.
        chord_callback: Sent once, after all members of the group succeeded.
        extra: Fields of a newer peer; kept when the message is written again.
    """

    name: str
    args: list[Arg] = field(default_factory=list)
    uuid: str = ""
    routing_key: str = ""
    eta_ns: int | None = None
    group_uuid: str = ""
    group_task_count: int = 0
    headers: dict[str, JSON] | None = None
    priority: int = 0
    immutable: bool = False
    retry_count: int = 0
    retry_timeout: int = 0
    on_success: list[Signature] = field(default_factory=list)
    on_error: list[Signature] = field(default_factory=list)
    chord_callback: Signature | None = None
    broker_message_group_id: str = ""
    sqs_receipt_handle: str = ""
    stop_task_deletion_on_error: bool = False
    ignore_when_task_not_registered: bool = False
    extra: Mapping[str, JSON] | None = None

    def replace(self, **changes: Any) -> Self:
        """Return a shallow copy with these fields changed."""
        return replace(self, **changes)

    def header(self, name: str) -> str:
        """Return the header's text, or "" when it is absent or not a string."""
        value = self.headers.get(name) if self.headers else None
        return value if isinstance(value, str) else ""


class Progress(NamedTuple):
    """The progress that a running task reports: a fraction, 0 to 1, and a note for people."""

    fraction: float
    note: str = ""


class Attempt(NamedTuple):
    """A run that ended in an error and was tried again: its number, error and RFC 3339 time."""

    number: int
    error: str
    at: str


@dataclass(slots=True, kw_only=True)
class TaskState:
    """
    The state of one task, as stored under its uuid.

    Attributes:
        results: Values and types; ``None`` unless the state is SUCCESS.
        error: The failure's text; "" otherwise.
        created_at: RFC 3339 text as first written (PENDING), up to 9 fraction digits.
        progress: The last progress reported; ``None`` if there is none or the task has ended.
        attempts: The runs before the last one, oldest first; if there were many, only the newest.
    """

    task_uuid: str
    state: str
    task_name: str = ""
    results: list[TaskResult] | None = None
    error: str = ""
    created_at: str = ""
    ttl: int = 0
    progress: Progress | None = None
    attempts: list[Attempt] = field(default_factory=list)

    @classmethod
    def pending(cls, signature: Signature, created_at: str) -> Self:
        """Return the state of a task that is about to be queued; ``created_at`` is RFC 3339."""
        return cls(
            task_uuid=signature.uuid,
            task_name=signature.name,
            state=State.PENDING,
            created_at=created_at,
        )

    @classmethod
    def pending_id(cls, uuid: str, created_at: str) -> Self:
        """Return the state of a task of which only the id is known yet: another task sends it."""
        return cls(task_uuid=uuid, state=State.PENDING, created_at=created_at)

    @property
    def is_success(self) -> bool:
        """Whether the task ended well."""
        return self.state == State.SUCCESS

    @property
    def is_failure(self) -> bool:
        """Whether the task ended badly."""
        return self.state == State.FAILURE

    @property
    def is_completed(self) -> bool:
        """Whether no further change is to come."""
        return self.state in (State.SUCCESS, State.FAILURE)


@dataclass(slots=True, kw_only=True)
class GroupMeta:
    """
    A group's members in order, and whether its chord has been triggered.

    Attributes:
        nested: Whether each member ends a chain, and so is sent later than the group.
    """

    group_uuid: str
    task_uuids: list[str]
    chord_triggered: bool = False
    lock: bool = False
    created_at: str = ""
    ttl: int = 0
    nested: bool = False


def copy_signature(signature: Signature) -> Signature:
    """
    Return a plain signature with its own ``args`` and ``headers``; callbacks are shared.

    Written out because ``dataclasses.replace`` takes several times as long.
    """
    s = signature
    return Signature(
        name=s.name,
        args=list(s.args),
        uuid=s.uuid,
        routing_key=s.routing_key,
        eta_ns=s.eta_ns,
        group_uuid=s.group_uuid,
        group_task_count=s.group_task_count,
        headers=None if s.headers is None else dict(s.headers),
        priority=s.priority,
        immutable=s.immutable,
        retry_count=s.retry_count,
        retry_timeout=s.retry_timeout,
        on_success=s.on_success,
        on_error=s.on_error,
        chord_callback=s.chord_callback,
        broker_message_group_id=s.broker_message_group_id,
        sqs_receipt_handle=s.sqs_receipt_handle,
        stop_task_deletion_on_error=s.stop_task_deletion_on_error,
        ignore_when_task_not_registered=s.ignore_when_task_not_registered,
        extra=s.extra,
    )
