"""
The facade: register tasks, send signatures, look at queues and results.

It joins the broker and the backend for sending; running is the runtime's
business. It speaks to their ports only, and knows neither URLs nor Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from machine.config import Config
from machine.errors import (
    BrokerUnavailable,
    ConfigError,
    ResultNotFound,
)
from machine.execution import running_task
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.moves import Message
from machine.registry import Registry
from machine.registry.task import Task
from machine.results.group import GroupResult
from machine.results.task import AsyncResult
from machine.sending.messages import MessageMaker, raise_refusals, with_ids
from machine.sending.periodic import Scheduling
from machine.sending.sending import UniqueSending
from machine.sending.workflows import NO_GROUPS, Groups, WorkflowSending
from machine.wire.headers import inherit, unique_of
from machine.wire.signature import GroupMeta, Signature, TaskState, copied
from machine.workflow.pieces import TypedSignature

R = TypeVar("R")


class Server(Scheduling, WorkflowSending, UniqueSending):
    """
    Machinery's Server: everything a caller needs, and the way to a worker.

    Any number of threads may use one server. As a context manager it closes
    itself.

    Args:
        config: The settings.
        broker: Where messages go.
        backend: Where results are read; without one nothing can be sent.
        registry: The tasks known here; a new one by default.

    Attributes:
        before_publish: Called with each signature about to be sent, complete with
            its id, after which it may still be changed; for trace headers and the like
            (Machinery's SetPreTaskHandler).
        after_enqueue: Called after each send; eager mode runs the queue there.
        worker_factory: Makes a worker from (server, name, concurrency).
    """

    def __init__(
        self,
        config: Config,
        broker: Broker,
        backend: Backend | None,
        registry: Registry | None = None,
    ) -> None:
        self.config = config
        self.broker = broker
        self.registry = Registry() if registry is None else registry
        self.before_publish: Callable[[Signature], None] | None = None
        self.after_enqueue: Callable[[], None] | None = None
        self.worker_factory: Callable[[Server, str, int], Any] | None = None
        self.backend = backend
        maker = MessageMaker.of(config, self.registry, keeps_states=broker.keeps_states)
        super().__init__(self.registry, maker)
        for task in self.registry:
            task.bind_sender(self)

    # -- tasks -----------------------------------------------------------------------------
    def register_task(self, name: str, fn: Callable[..., Any]) -> Task[Any, Any]:
        """Register a function under a name, and return the task made of it."""
        self.register_tasks({name: fn})
        return self.registry.get(name)

    def register_tasks(self, tasks: Mapping[str, Callable[..., Any]]) -> None:
        """
        Register all of these, or none.

        Raises:
            SignatureError: A name is not usable or taken, or a value cannot be called.
        """
        self.registry.register_tasks(tasks)
        for name in tasks:
            self.registry.get(name).bind_sender(self)

    def is_task_registered(self, name: str) -> bool:
        """Say whether a task of this name is known here."""
        return name in self.registry

    def get_registered_task(self, name: str) -> Task[Any, Any]:
        """Return the task of this name; raise `TaskNotRegistered` when there is none."""
        return self.registry.get(name)

    def get_registered_task_names(self) -> list[str]:
        """Return all names, sorted."""
        return self.registry.names()

    def new_worker(self, name: str = "", concurrency: int = 0) -> Any:
        """
        Return a worker that runs the tasks registered here; it has to be started.

        Args:
            name: For people, in logs.
            concurrency: Tasks at once; 0 is twice the CPUs, as in Machinery.
        """
        if self.worker_factory is None:
            raise ConfigError(
                "This server cannot make workers; make it by machine.connect(), which can."
            )
        return self.worker_factory(self, name, concurrency)

    # -- sending ---------------------------------------------------------------------------
    @overload
    def send_task(self, signature: TypedSignature[R], /) -> AsyncResult[R]: ...
    @overload
    def send_task(self, signature: Signature, /) -> AsyncResult[Any]: ...
    def send_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """
        Send one task; idempotent for an id as long as its state is kept.

        The signature is not written into: an empty id, queue or header map is
        filled in a copy, in callbacks too. It may be due later (``eta_ns``).
        A unique one may give the result of another; see `TypedSignature.options`.

        Raises:
            SignatureError: It cannot be sent as it is; nothing was written.
            DuplicateTask: Another has its unique key, and it is to be refused then.
            QueueFull: The queue is at its limit; nothing was written.
            BrokerUnavailable: Redis did not answer. Sending again cannot send
                twice if the id was given.
        """
        own = self._messages.complete(copied(signature), alone=True)
        if (asked := unique_of(own)) is not None:
            return self._send_unique(own, asked)
        result: AsyncResult[Any] = AsyncResult(own.uuid, self._required(), own.name, canceler=self)
        self._send([own])
        return result

    @overload
    async def asend_task(self, signature: TypedSignature[R], /) -> AsyncResult[R]: ...
    @overload
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]: ...
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Do what `send_task` does, without blocking the event loop."""
        own = self._messages.complete(copied(signature), alone=True)
        if (asked := unique_of(own)) is not None:
            return await self._asend_unique(own, asked)
        result: AsyncResult[Any] = AsyncResult(own.uuid, self._required(), own.name, canceler=self)
        await self._asend([own])
        return result

    # -- looking ---------------------------------------------------------------------------
    def result(self, uuid: str, *, may_come: bool = False) -> AsyncResult[Any]:
        """
        Return the result of a task that anybody sent, by its id alone.

        Args:
            uuid: The task's id.
            may_come: Whether it may be sent later, as the last task of a chain is:
                waiting then does not take a missing state for a lost one.
        """
        return AsyncResult(uuid, self._required(), may_come=may_come, canceler=self)

    def group_result(self, group_uuid: str) -> GroupResult[Any]:
        """
        Return the results of a group that anybody sent, by its id alone.

        Raises:
            ResultNotFound: No members are written down under this id.
        """
        backend = self._required()
        meta = backend.read_group(group_uuid)
        if meta is None:
            raise ResultNotFound(
                f"No group is kept under {group_uuid!r}: it was never sent, or it expired."
            )
        return GroupResult(
            group_uuid, backend, meta.task_uuids, may_come=meta.nested, canceler=self
        )

    async def agroup_result(self, group_uuid: str) -> GroupResult[Any]:
        """Do what `group_result` does, without blocking the event loop."""
        return await asyncio.to_thread(self.group_result, group_uuid)

    def get_state(self, uuid: str) -> TaskState | None:
        """Return a task's state, or ``None`` when none is kept."""
        return self._required().read([uuid])[0]

    def purge_state(self, uuid: str) -> None:
        """Forget a task's state and result."""
        self._required().purge_state(uuid)

    def pending_tasks(self, queue: str = "") -> list[Signature]:
        """Return what is ready in a queue ("": the default one), next first, without taking it."""
        return self._messages.decode_readable(
            self.broker.pending(queue or self.config.default_queue)
        )

    def delayed_tasks(self) -> list[Signature]:
        """Return what is due later, of all queues, earliest first."""
        return self._messages.decode_readable(self.broker.delayed())

    def close(self) -> None:
        """Close every connection; tasks bound to this server are let go."""
        for task in self.registry:
            task.release_sender(self)
        self.stop_schedulers()
        if self.ticker is not None:
            self.ticker.close()
        self.broker.close()
        if self.backend is not None:
            self.backend.close()

    async def aclose(self) -> None:
        """Do what `close` does, for the connections of the running event loop too."""
        await self.broker.aclose()
        if self.ticker is not None:
            await self.ticker.aclose()
        if self.backend is not None:
            await self.backend.aclose()
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- sending ----------------------------------------------------------------------------
    def _required(self) -> Backend:
        if self.backend is None:
            raise ConfigError(
                "Result backend required: set result_backend to a Redis URL, or to null to keep "
                "no results."
            )
        return self.backend

    def _send(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        # Encoded first: what cannot be sent must not leave a group or a state behind.
        messages, states = self._written(signatures)
        backend = self._required()
        try:
            last_ns = _last_due_ns(signatures, groups.due_ns)
            for meta in groups.metas:
                backend.record_group(meta, due_ns=last_ns, ahead=_members_of(meta, groups.ahead))
            for state in states:
                backend.record(state)
            outcomes = self.broker.enqueue(messages)
        except BrokerUnavailable as error:
            raise with_ids(
                error, messages, keeps_states=self.broker.keeps_states
            ) from error.__cause__
        if self.after_enqueue is not None:
            self.after_enqueue()
        raise_refusals(messages, outcomes, self.config.max_queue_length)

    async def _asend(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        messages, states = self._written(signatures)
        backend = self._required()
        try:
            last_ns = _last_due_ns(signatures, groups.due_ns)
            for meta in groups.metas:
                await backend.arecord_group(
                    meta, due_ns=last_ns, ahead=_members_of(meta, groups.ahead)
                )
            for state in states:
                await asyncio.to_thread(backend.record, state)
            outcomes = await self.broker.aenqueue(messages)
        except BrokerUnavailable as error:
            raise with_ids(
                error, messages, keeps_states=self.broker.keeps_states
            ) from error.__cause__
        if self.after_enqueue is not None:
            # It runs tasks: neither may they block this loop, nor find it running.
            await asyncio.to_thread(self.after_enqueue)
        raise_refusals(messages, outcomes, self.config.max_queue_length)

    def _written(self, signatures: Sequence[Signature]) -> tuple[list[Message], list[TaskState]]:
        """Return the messages, and the PENDING states that the broker does not keep itself."""
        running = running_task.get()
        if running is not None:
            for signature in signatures:
                inherit(running.signature, signature)
        if self.before_publish is not None:
            for signature in signatures:
                self.before_publish(signature)
        return self._messages.make(signatures, time.time_ns())


def _members_of(meta: GroupMeta, states: Sequence[TaskState]) -> list[TaskState]:
    if not states:
        return []
    members = set(meta.task_uuids)
    return [state for state in states if state.task_uuid in members]


def _last_due_ns(signatures: Sequence[Signature], due_ns: int) -> int:
    return max(due_ns, *(signature.eta_ns or 0 for signature in signatures))
