"""
Signatures -> messages: filled in, checked, encoded, each with its PENDING state.

There is one `MessageMaker` for everything that is queued: what callers send, what a
scheduler sends, and what a worker sends after a task has ended. Nothing is written
here, so a signature that cannot be sent leaves neither a group nor a state behind.
"""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    QueueFull,
    SignatureError,
    WireError,
)
from machine.ports.moves import Enqueued, Message
from machine.wire import gotypes
from machine.wire.headers import (
    ON_CRASH_HEADER,
    check_expiry,
    refuse_unique,
    restamp_sent,
    set_expiry,
    stamp_sent,
)
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Arg, Signature, TaskState, copy_signature, new_uuid
from machine.wire.states import STATE_TAIL, encode_state_head
from machine.wire.text import format_time

if TYPE_CHECKING:  # a worker's child imports this module, and needs neither settings nor YAML
    from machine.config import Config
    from machine.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRules:
    """
    What the settings say about messages.

    Attributes:
        default_queue: Where a signature without a routing key goes.
        keeps_states: Whether messages carry their PENDING states, for the broker to write.
        max_message_bytes: A larger message is refused.
        allowed_queues: Queues that a worker may send follow-ups to; empty = any valid name.
        delayed_key: Name of the delayed set, which no id may have.
    """

    default_queue: str
    keeps_states: bool
    max_message_bytes: int
    allowed_queues: frozenset[str] = frozenset()
    delayed_key: str


class MessageMaker:
    """
    Makes the messages of one program.

    Args:
        rules: Bounds and names.
        at_most_once: Names of tasks that are not to run again after a crash; looked
            at each time, so a registry may still add to it.
        stamps: Whether messages say when they were sent, so that waits can be measured.
        cluster_mode: Whether ids hold their queue's slot. On a cluster a state must lie
            where its queue does, or no script can write both.
    """

    def __init__(
        self,
        rules: MessageRules,
        *,
        at_most_once: Container[str] = (),
        stamps: bool = False,
        cluster_mode: bool = False,
    ) -> None:
        self._rules = rules
        self._at_most_once = at_most_once
        self._stamp = stamp_sent if stamps else restamp_sent
        self._cluster_mode = cluster_mode

    @classmethod
    def of(
        cls, config: Config, registry: Registry, *, keeps_states: bool, stamps: bool = False
    ) -> Self:
        """
        Return the maker that these settings ask for.

        Args:
            config: The settings.
            registry: Says which tasks are not to run again after a crash.
            keeps_states: See `MessageRules`.
            stamps: Stamp messages even where the settings do not ask for it.
        """
        return cls(
            MessageRules(
                default_queue=config.default_queue,
                keeps_states=keeps_states,
                max_message_bytes=config.max_message_bytes,
                delayed_key=config.redis.delayed_tasks_key or DELAYED_DEFAULT,
            ),
            at_most_once=registry.at_most_once,
            stamps=stamps or config.worker_metrics_port > 0,
            cluster_mode=config.redis.cluster_mode,
        )

    # -- before sending --------------------------------------------------------------------
    def new_id(self, kind: str, queue: str = "") -> str:
        """Return ``<kind>_<uuid4>``; on a cluster with the slot of ``queue`` (default: ours)."""
        if not self._cluster_mode:
            return new_uuid(kind)
        return new_uuid(f"{kind}_{{{queue or self._rules.default_queue}}}")

    def complete(self, own: Signature, kind: str = "task", *, alone: bool = False) -> Signature:
        """
        Fill in and check a signature, and copies of all its callbacks.

        Args:
            own: A signature that nobody else holds; it is written into.
            kind: Prefix of its id, if that is empty.
            alone: Whether it is sent by itself, so that it may be unique.

        Raises:
            SignatureError: Something in it cannot be sent.
        """
        if not alone:
            refuse_unique(own)
        own.headers = own.headers or {}
        self._fill(own, kind)
        if own.on_success or own.on_error or own.chord_callback is not None:
            self._complete_callbacks(own)
        return own

    def _fill(self, signature: Signature, kind: str) -> None:
        signature.routing_key = signature.routing_key or self._rules.default_queue
        signature.uuid = signature.uuid or self.new_id(kind, signature.routing_key)
        self._check(signature)

    def _complete_callbacks(self, own: Signature) -> None:
        todo = [(own, "")]
        for signature, kind in todo:  # grows meanwhile; chains may nest deeper than Python's stack
            if signature is not own:
                refuse_unique(signature)
                self._fill(signature, kind)
            if signature.on_success:
                signature.on_success = [
                    copy_signature(callback) for callback in signature.on_success
                ]
                todo += [(callback, "task") for callback in signature.on_success]
            if signature.on_error:
                signature.on_error = [copy_signature(callback) for callback in signature.on_error]
                todo += [(callback, "task") for callback in signature.on_error]
            if signature.chord_callback is not None:
                signature.chord_callback = copy_signature(signature.chord_callback)
                todo.append((signature.chord_callback, "chord"))

    def _check(self, signature: Signature) -> None:
        if signature.uuid == signature.routing_key:
            # Its state would overwrite the queue's list: in Machinery all its messages are lost.
            raise SignatureError(
                f"Task {signature.name!r} has the name of its queue, {signature.uuid!r}, as its "
                "id; leave it empty, or choose another."
            )
        if signature.name in self._at_most_once:
            signature.headers = {ON_CRASH_HEADER: "fail", **(signature.headers or {})}
        if signature.headers:
            check_expiry(signature)
        _check_args(signature)

    # -- making ----------------------------------------------------------------------------
    def make(
        self, signatures: Sequence[Signature], now_ns: int
    ) -> tuple[list[Message], list[TaskState]]:
        """
        Return the messages, and those PENDING states that do not travel in them.

        Args:
            signatures: Complete ones; the times of expiry and sending are written into them.
            now_ns: Unix nanoseconds; what has an ETA after it is delayed.

        Raises:
            SignatureError: One is too large, or holds what cannot be encoded.
        """
        created_at = format_time(now_ns)
        # One state for all: only uuid and name differ, and both stand before this.
        tail = f'"CreatedAt":"{created_at}"'.encode() + STATE_TAIL
        state = TaskState.pending_id("", created_at)
        messages, states = [], []
        keeps_states = self._rules.keeps_states
        for signature in signatures:
            set_expiry(signature, now_ns)
            self._stamp(signature, now_ns)
            pending = b""
            if keeps_states:
                state.task_uuid, state.task_name = signature.uuid, signature.name
                pending = encode_state_head(state) + tail
            else:
                states.append(TaskState.pending(signature, created_at))
            eta_ns = signature.eta_ns
            messages.append(
                Message(
                    signature.uuid,
                    signature.routing_key,
                    self._encode(signature),
                    pending,
                    eta_ns if eta_ns is not None and eta_ns > now_ns else 0,
                )
            )
        return messages, states

    def make_follow_ups(
        self, signatures: Sequence[Signature], now_ns: int
    ) -> tuple[list[Message], list[TaskState]]:
        """
        Do what `make` does, for what a worker sends after a task has ended.

        They came in the task's own message, from anybody: so the queues they name are
        checked here once more, and an empty one is the default one.

        Raises:
            SignatureError: As `make`, or one names a queue that is not allowed.
        """
        allowed = self._rules.allowed_queues
        for signature in signatures:
            queue = signature.routing_key = signature.routing_key or self._rules.default_queue
            if allowed and queue not in allowed:
                raise SignatureError(
                    f"Callback '{signature.name}' names queue '{queue}', which is not one of "
                    f"allowed_queues: {', '.join(sorted(allowed))}."
                )
        return self.make(signatures, now_ns)

    def _encode(self, signature: Signature) -> bytes:
        payload = encode_signature(signature, delayed_key=self._rules.delayed_key)
        if len(payload) > self._rules.max_message_bytes:
            raise SignatureError(
                f"Task {signature.name!r} makes a message of {len(payload)} bytes; "
                f"max_message_bytes is {self._rules.max_message_bytes}. Send where the data is, "
                "not the data."
            )
        return payload

    # -- reading ---------------------------------------------------------------------------
    def decode_readable(self, payloads: Sequence[bytes]) -> list[Signature]:
        """Return the signatures among these; a worker buries the rest when it meets it."""
        found = []
        for payload in payloads:
            with contextlib.suppress(WireError):
                signature = decode_signature(
                    payload,
                    most_bytes=self._rules.max_message_bytes,
                    delayed_key=self._rules.delayed_key,
                )
                found.append(signature)
        return found


def _check_args(signature: Signature) -> None:
    """Refuse values that do not fit their type; turn Python's own into what the wire holds."""
    for index, arg in enumerate(signature.args):
        where = f"argument {index} of task {signature.name!r}"
        if not isinstance(arg, Arg):
            raise SignatureError(
                f"{where} is {reprlib.repr(arg)}, which is no Arg; write Arg('int64', 1), or let "
                "the task make the signature: task.s(…)."
            )
        kind, value, name = arg
        try:
            gotypes.decode(kind, value)
        except WireError:
            signature.args[index] = Arg(kind, gotypes.coerce(kind, value, where), name)


def with_ids(
    error: BrokerUnavailable, messages: Sequence[Message], *, keeps_states: bool
) -> BrokerUnavailable:
    """Return the error with the ids in its text, by which to look whether the messages arrived."""
    more = f" and {len(messages) - 1} more" if len(messages) > 1 else ""
    text = f"{str(error).rstrip('.')}. Task {messages[0].uuid}{more} may have been sent or not"
    if keeps_states:
        return BrokerUnavailable(f"{text}; sending again under the same id cannot send it twice.")
    return BrokerUnavailable(f"{text}; look at its state before sending it again.")


def raise_refusals(messages: Sequence[Message], outcomes: Sequence[Enqueued], limit: int) -> None:
    """
    Raise the first refusal among these outcomes; a known id is none.

    Raises:
        QueueFull: The queue holds ``limit`` messages, or the server is out of memory.
        BrokerRefused: A key that is needed holds something else.
    """
    if min(outcomes) >= Enqueued.DUPLICATE:
        return
    refused = [
        (message, outcome)
        for message, outcome in zip(messages, outcomes, strict=True)
        if outcome < Enqueued.DUPLICATE
    ]
    message, outcome = refused[0]
    partly = f" ({len(refused)} of {len(messages)} did not go)" if len(messages) > 1 else ""
    if outcome is Enqueued.FULL:
        raise QueueFull(
            f"Queue {message.queue!r} takes no more: it holds max_queue_length = {limit} messages, "
            f"or the server is out of memory{partly}. Send again later, or start more workers."
        )
    raise BrokerRefused(
        f"Task id {message.uuid!r} or queue {message.queue!r} names a key that holds something "
        f"else{partly}; nothing was written there. Use another id, or look at the key."
    )
