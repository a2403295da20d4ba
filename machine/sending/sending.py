"""
Sending: a task by itself, a unique task, and what a workflow sends first.

Everything is encoded before anything is written, so that what cannot be sent leaves
no group and no state behind. Groups and states are written before messages: a worker
may run a message at once, and must find the group that it is a member of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple, Protocol

from machine.errors import BrokerUnavailable, ConfigError, DuplicateTask, SignatureError
from machine.execution import running_task
from machine.ports.backend import Backend
from machine.ports.broker import Admitted, Queues
from machine.ports.moves import Message
from machine.results.task import AsyncResult, Canceler
from machine.sending.messages import MessageMaker, raise_refusals, with_ids
from machine.wire.headers import Unique, inherit_headers, unique_of
from machine.wire.signature import GroupMeta, Signature, TaskState, copy_signature


class SendInstrument(Protocol):
    """Counts or traces what is sent."""

    def sending(self, signatures: Sequence[Signature]) -> AbstractContextManager[None]:
        """
        Return what is entered before messages are written, and left when they are, or not.

        Args:
            signatures: At least one, complete; headers may be added.
        """
        ...


class Groups(NamedTuple):
    """
    What is written before the messages of a workflow are.

    Attributes:
        metas: The groups.
        due_ns: Unix nanoseconds of the latest ETA in the workflow; they outlive it.
        ahead: States of members that other tasks send later; see `Backend.record_group`.
    """

    metas: Sequence[GroupMeta] = ()
    due_ns: int = 0
    ahead: Sequence[TaskState] = ()


NO_GROUPS = Groups()
#: Asked for before a call is made: most callers have no instruments, and send often.
_NO_INSTRUMENTS = nullcontext()


class Sending:
    """
    Sends signatures; any number of threads may use one.

    Args:
        messages: Makes the messages.
        queues: Where they go.
        backend: Where results are read; without one nothing can be sent.
        canceler: What the handles cancel by.
        max_queue_length: What the broker holds at most in a queue; for the error's text.
        instruments: Entered around each sending, the first one outermost.

    Attributes:
        before_publish: Called with each complete signature about to be sent.
        after_enqueue: Called after each send.
    """

    def __init__(
        self,
        messages: MessageMaker,
        queues: Queues,
        backend: Backend | None,
        canceler: Canceler,
        *,
        max_queue_length: int = 0,
        instruments: Sequence[SendInstrument] = (),
    ) -> None:
        self._messages, self._queues, self._backend = messages, queues, backend
        self._canceler = canceler
        self._max_queue_length = max_queue_length
        self._instruments = instruments
        self.before_publish: Callable[[Signature], None] | None = None
        self.after_enqueue: Callable[[], None] | None = None

    def require_backend(self) -> Backend:
        """Return the backend; raise `ConfigError` where there is none."""
        if self._backend is None:
            raise ConfigError(
                "Result backend required: set result_backend to a Redis URL, or to null to keep "
                "no results."
            )
        return self._backend

    # -- one task --------------------------------------------------------------------------
    def send_task(self, signature: Signature) -> AsyncResult[Any]:
        """Send one task by itself; see `Server.send_task`."""
        own = self._messages.complete(copy_signature(signature), alone=True)
        if (asked := unique_of(own)) is not None:
            return self._send_unique(own, asked)
        backend = self.require_backend()  # or nothing is written
        result: AsyncResult[Any] = AsyncResult(own.uuid, backend, own.name, canceler=self._canceler)
        self.send([own])
        return result

    async def asend_task(self, signature: Signature) -> AsyncResult[Any]:
        own = self._messages.complete(copy_signature(signature), alone=True)
        if (asked := unique_of(own)) is not None:
            return await self._asend_unique(own, asked)
        backend = self.require_backend()  # or nothing is written
        result: AsyncResult[Any] = AsyncResult(own.uuid, backend, own.name, canceler=self._canceler)
        await self.asend([own])
        return result

    # -- several ---------------------------------------------------------------------------
    def send(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        """
        Write groups down, then send complete signatures in one call.

        Raises:
            SignatureError: One cannot be encoded; nothing was written.
            QueueFull: Some did not fit; the others are sent.
            BrokerUnavailable: The server did not answer; the text says what that means.
        """
        with self._enter(signatures) if self._instruments else _NO_INSTRUMENTS:
            messages, states = self._prepare(signatures)
            backend = self.require_backend()
            try:
                # If we die before the messages go, what was recorded expires, and sending
                # again under the same ids is possible.
                for meta, due_ns, ahead in _group_writes(signatures, groups):
                    backend.record_group(meta, due_ns=due_ns, ahead=ahead)
                for state in states:
                    backend.record(state)
                outcomes = self._queues.enqueue(messages)
            except BrokerUnavailable as error:
                raise self._with_ids(error, messages) from error.__cause__
            if self.after_enqueue is not None:
                self.after_enqueue()
            raise_refusals(messages, outcomes, self._max_queue_length)

    async def asend(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        with self._enter(signatures) if self._instruments else _NO_INSTRUMENTS:
            messages, states = self._prepare(signatures)
            backend = self.require_backend()
            try:
                for meta, due_ns, ahead in _group_writes(signatures, groups):
                    await backend.arecord_group(meta, due_ns=due_ns, ahead=ahead)
                for state in states:
                    await asyncio.to_thread(backend.record, state)
                outcomes = await self._queues.aenqueue(messages)
            except BrokerUnavailable as error:
                raise self._with_ids(error, messages) from error.__cause__
            await self._acall_after_enqueue()
            raise_refusals(messages, outcomes, self._max_queue_length)

    # -- a unique task ---------------------------------------------------------------------
    # The broker decides who has a key, in the script that queues: if callers asked first and
    # queued second, two of them could find the key free.
    def _send_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        """Send a complete signature, or find the task that has its key."""
        with self._enter([own]) if self._instruments else _NO_INSTRUMENTS:
            message = self._prepare_unique(own)
            replace = asked.on_duplicate == "replace"
            try:
                admitted = self._queues.enqueue_unique(message, asked.key, replace=replace)
            except BrokerUnavailable as error:
                raise self._with_ids(error, [message]) from error.__cause__
            if self.after_enqueue is not None:
                self.after_enqueue()
            return self._result_of_unique(own, asked, message, admitted)

    async def _asend_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        with self._enter([own]) if self._instruments else _NO_INSTRUMENTS:
            message = self._prepare_unique(own)
            replace = asked.on_duplicate == "replace"
            try:
                admitted = await self._queues.aenqueue_unique(message, asked.key, replace=replace)
            except BrokerUnavailable as error:
                raise self._with_ids(error, [message]) from error.__cause__
            await self._acall_after_enqueue()
            return self._result_of_unique(own, asked, message, admitted)

    def _prepare_unique(self, own: Signature) -> Message:
        if not self._queues.keeps_states:
            raise SignatureError(
                f"Task {own.name!r} is unique, which needs its state beside the queue: set "
                "result_backend to the broker's own URL, or say .options(unique='')."
            )
        [message], _ = self._prepare([own])
        return message

    def _result_of_unique(
        self, own: Signature, asked: Unique, message: Message, admitted: Admitted
    ) -> AsyncResult[Any]:
        raise_refusals([message], [admitted.outcome], self._max_queue_length)
        is_ours = admitted.uuid == own.uuid
        if asked.on_duplicate == "refuse" and not is_ours:
            raise DuplicateTask(
                f"Task {own.name!r} was not sent: task {admitted.uuid} with the same unique key "
                f"{asked.key!r} has not ended.",
                uuid=admitted.uuid,
            )
        task_name = own.name if is_ours else ""
        return AsyncResult(
            admitted.uuid, self.require_backend(), task_name, canceler=self._canceler
        )

    # -- what both ways share --------------------------------------------------------------
    def _enter(self, signatures: Sequence[Signature]) -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            for instrument in self._instruments:
                stack.enter_context(instrument.sending(signatures))
            return stack.pop_all()

    def _prepare(self, signatures: Sequence[Signature]) -> tuple[list[Message], list[TaskState]]:
        """Return the messages, and the PENDING states that the broker does not keep itself."""
        running = running_task.get()
        if running is not None:
            for signature in signatures:
                inherit_headers(running.signature, signature)
        if self.before_publish is not None:
            for signature in signatures:
                self.before_publish(signature)
        return self._messages.make(signatures, time.time_ns())

    def _with_ids(self, error: BrokerUnavailable, messages: Sequence[Message]) -> BrokerUnavailable:
        return with_ids(error, messages, keeps_states=self._queues.keeps_states)

    async def _acall_after_enqueue(self) -> None:
        if self.after_enqueue is not None:
            # It runs tasks: neither may they block this loop, nor find it running.
            await asyncio.to_thread(self.after_enqueue)


def _group_writes(
    signatures: Sequence[Signature], groups: Groups
) -> list[tuple[GroupMeta, int, list[TaskState]]]:
    """Return each group, the time it must outlive, and the states of members to write ahead."""
    if not groups.metas:
        return []
    # Asked once more: `before_publish` may have put an ETA off.
    due_ns = max([groups.due_ns, *(signature.eta_ns or 0 for signature in signatures)])
    ahead = {state.task_uuid: state for state in groups.ahead}
    return [
        (meta, due_ns, [ahead[uuid] for uuid in meta.task_uuids if uuid in ahead])
        for meta in groups.metas
    ]
