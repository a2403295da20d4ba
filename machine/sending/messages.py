"""
What a signature goes through before it is sent: filled in, checked, encoded.

Nothing is written before all of it is known to be good (bounds and names are
`wire`'s to check). It decides nothing about when or how to send, and knows
ports only by their values.
"""

from __future__ import annotations

import contextlib
import reprlib
import time
from collections.abc import Sequence
from dataclasses import replace

from machine.config import Config
from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    QueueFull,
    SignatureError,
    WireError,
)
from machine.ports.moves import Enqueued, Message
from machine.registry import Registry
from machine.wire import gotypes
from machine.wire.headers import (
    ON_CRASH_HEADER,
    check_expiry,
    refuse_unique,
    restamp,
    set_expiry,
    stamp,
)
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Arg, Signature, State, TaskState, copied, new_uuid
from machine.wire.states import STATE_TAIL, encode_state_head
from machine.wire.text import now_text


class Outgoing:
    """
    The rules of one server: its default queue, its limits, its tasks.

    Args:
        config: The settings.
        registry: Says which tasks are not to run again after a crash.

    Attributes:
        stamps: Whether messages say when they were sent, so that waits can be measured.
    """

    def __init__(self, config: Config, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self.stamps = config.worker_metrics_port > 0
        self._delayed_key = config.redis.delayed_tasks_key or DELAYED_DEFAULT

    def new_id(self, kind: str, queue: str) -> str:
        """Return ``<kind>_<uuid4>``; on a cluster with the queue's slot in it."""
        # There a state must lie where its queue does, or no script can write both.
        return new_uuid(f"{kind}_{{{queue}}}" if self._config.redis.cluster_mode else kind)

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
        signature.routing_key = signature.routing_key or self._config.default_queue
        signature.uuid = signature.uuid or self.new_id(kind, signature.routing_key)
        self._check(signature)

    def _complete_callbacks(self, own: Signature) -> None:
        todo = [(own, "")]
        for signature, kind in todo:  # grows meanwhile: chains nest deeper than calls may
            if signature is not own:
                refuse_unique(signature)
                self._fill(signature, kind)
            if signature.on_success:
                signature.on_success = [copied(callback) for callback in signature.on_success]
                todo += [(callback, "task") for callback in signature.on_success]
            if signature.on_error:
                signature.on_error = [copied(callback) for callback in signature.on_error]
                todo += [(callback, "task") for callback in signature.on_error]
            if signature.chord_callback is not None:
                signature.chord_callback = copied(signature.chord_callback)
                todo.append((signature.chord_callback, "chord"))

    def messages(
        self, signatures: Sequence[Signature], *, keeps_states: bool
    ) -> tuple[list[Message], list[TaskState]]:
        """
        Return the messages, and those PENDING states that do not travel in them.

        Args:
            signatures: Complete ones.
            keeps_states: Whether the broker writes the states.
        """
        now_ns = time.time_ns()
        created_at = now_text(now_ns)
        # One state for all: only uuid and name differ, and both stand before this.
        tail = f'"CreatedAt":"{created_at}"'.encode() + STATE_TAIL
        state = TaskState(task_uuid="", state=State.PENDING, created_at=created_at)
        messages, states = [], []
        for signature in signatures:
            set_expiry(signature, now_ns)
            (stamp if self.stamps else restamp)(signature, now_ns)
            state.task_uuid, state.task_name = signature.uuid, signature.name
            if not keeps_states:
                states.append(replace(state))
            eta_ns = signature.eta_ns
            messages.append(
                Message(
                    signature.uuid,
                    signature.routing_key,
                    self._encoded(signature),
                    encode_state_head(state) + tail if keeps_states else b"",
                    eta_ns if eta_ns is not None and eta_ns > now_ns else 0,
                )
            )
        return messages, states

    def readable(self, payloads: Sequence[bytes]) -> list[Signature]:
        """Return the signatures among these; a worker buries the rest when it meets it."""
        found = []
        most_bytes = self._config.max_message_bytes
        for payload in payloads:
            with contextlib.suppress(WireError):
                signature = decode_signature(
                    payload, most_bytes=most_bytes, delayed_key=self._delayed_key
                )
                found.append(signature)
        return found

    def _encoded(self, signature: Signature) -> bytes:
        payload = encode_signature(signature, delayed_key=self._delayed_key)
        if len(payload) > self._config.max_message_bytes:
            raise SignatureError(
                f"Task {signature.name!r} makes a message of {len(payload)} bytes; "
                f"max_message_bytes is {self._config.max_message_bytes}. Send where the data is, "
                "not the data."
            )
        return payload

    def _check(self, signature: Signature) -> None:
        if signature.uuid == signature.routing_key:
            # Its state would stand where the queue is: Machinery loses all its messages so.
            raise SignatureError(
                f"Task {signature.name!r} has the name of its queue, {signature.uuid!r}, as its "
                "id; leave it empty, or choose another."
            )
        if signature.name in self._registry.at_most_once:
            signature.headers = {ON_CRASH_HEADER: "fail", **(signature.headers or {})}
        if signature.headers:
            check_expiry(signature)
        _check_args(signature)


def _check_args(signature: Signature) -> None:
    """Refuse values that are not of their type, and write out those that are Python's."""
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


def told(
    error: BrokerUnavailable, messages: Sequence[Message], *, keeps_states: bool
) -> BrokerUnavailable:
    """Return the error with the ids: whether the messages arrived is unknown, and can be asked."""
    more = f" and {len(messages) - 1} more" if len(messages) > 1 else ""
    text = f"{str(error).rstrip('.')}. Task {messages[0].uuid}{more} may have been sent or not"
    if keeps_states:
        return BrokerUnavailable(f"{text}; sending again under the same id cannot send it twice.")
    return BrokerUnavailable(f"{text}; look at its state before sending it again.")


def judge(messages: Sequence[Message], outcomes: Sequence[Enqueued], limit: int) -> None:
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
