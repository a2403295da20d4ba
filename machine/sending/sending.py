"""
Sending a unique task: it, or nothing, or it instead of the one that is there.

Part of `Server`. Who has a key is the broker's to say, in the step that queues; what
that means for the caller is said here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from machine.config import Config
from machine.errors import BrokerUnavailable, DuplicateTask, SignatureError
from machine.ports.broker import Admitted, Broker
from machine.ports.moves import Message
from machine.results.task import AsyncResult
from machine.sending.messages import raise_refusals, with_ids
from machine.wire.headers import Unique
from machine.wire.signature import Signature, TaskState


class UniqueSending(ABC):
    """The part of `Server` that sends unique tasks."""

    config: Config
    broker: Broker
    after_enqueue: Callable[[], None] | None

    @abstractmethod
    def result(self, uuid: str) -> AsyncResult[Any]:
        """Return the result of a task by its id alone."""

    @abstractmethod
    def _written(self, signatures: Sequence[Signature]) -> tuple[list[Message], list[TaskState]]:
        """Return the messages of complete signatures, and states that do not travel in them."""

    def _send_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        """Send a complete signature, or find the one that is there; see `Server.send_task`."""
        message = self._unique_message(own)
        replace = asked.on_duplicate == "replace"
        try:
            admitted = self.broker.enqueue_unique(message, asked.key, replace=replace)
        except BrokerUnavailable as error:
            raise with_ids(error, [message], keeps_states=True) from error.__cause__
        if self.after_enqueue is not None:
            self.after_enqueue()
        return self._admitted(own, asked, message, admitted)

    async def _asend_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        """Do what `_send_unique` does, without blocking the event loop."""
        message = self._unique_message(own)
        replace = asked.on_duplicate == "replace"
        try:
            admitted = await self.broker.aenqueue_unique(message, asked.key, replace=replace)
        except BrokerUnavailable as error:
            raise with_ids(error, [message], keeps_states=True) from error.__cause__
        if self.after_enqueue is not None:
            # It runs tasks: neither may they block this loop, nor find it running.
            await asyncio.to_thread(self.after_enqueue)
        return self._admitted(own, asked, message, admitted)

    def _unique_message(self, own: Signature) -> Message:
        if not self.broker.keeps_states:
            raise SignatureError(
                f"Task {own.name!r} is unique, which needs its state beside the queue: set "
                "result_backend to the broker's own URL, or say .options(unique='')."
            )
        [message], _ = self._written([own])
        return message

    def _admitted(
        self, own: Signature, asked: Unique, message: Message, admitted: Admitted
    ) -> AsyncResult[Any]:
        raise_refusals([message], [admitted.outcome], self.config.max_queue_length)
        if asked.on_duplicate == "refuse" and admitted.uuid != own.uuid:
            raise DuplicateTask(
                f"Task {own.name!r} was not sent: task {admitted.uuid} with the same unique key "
                f"{asked.key!r} has not ended.",
                uuid=admitted.uuid,
            )
        result = self.result(admitted.uuid)
        if admitted.uuid == own.uuid:
            result.task_name = own.name
        return result
