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

from machine import wire
from machine.backend.base import Backend
from machine.broker.base import Broker, Message
from machine.config import Config
from machine.errors import (
    BrokerUnavailable,
    ConfigError,
    ResultNotFound,
    SignatureError,
)
from machine.outgoing import Outgoing, judge, told
from machine.registry import Registry, Task
from machine.result import AsyncResult, ChainResult, ChordResult, GroupResult
from machine.scheduling import Scheduling
from machine.signature import GroupMeta, Signature, TaskState
from machine.workflow import Chain, Chord, Group, TypedSignature, copied

R = TypeVar("R")


class Server(Scheduling):
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
        super().__init__(self.registry, Outgoing(config, self.registry))
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

        Raises:
            SignatureError: It cannot be sent as it is; nothing was written.
            QueueFull: The queue is at its limit; nothing was written.
            BrokerUnavailable: Redis did not answer. Sending again cannot send
                twice if the id was given.
        """
        own = self._outgoing.complete(copied(signature))
        result: AsyncResult[Any] = AsyncResult(own.uuid, self._required(), own.name)
        self._send([own])
        return result

    @overload
    async def asend_task(self, signature: TypedSignature[R], /) -> AsyncResult[R]: ...
    @overload
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]: ...
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Do what `send_task` does, without blocking the event loop."""
        own = self._outgoing.complete(copied(signature))
        result: AsyncResult[Any] = AsyncResult(own.uuid, self._required(), own.name)
        await self._asend([own])
        return result

    @overload
    def send_chain(self, chain: Chain[R], /) -> ChainResult[R]: ...
    @overload
    def send_chain(self, chain: Sequence[Signature], /) -> ChainResult[Any]: ...
    def send_chain(self, chain: Chain[Any] | Sequence[Signature], /) -> ChainResult[Any]:
        """Send the first task of a chain, which carries the others as its callbacks."""
        first, result = self._chain(chain)
        self._send([first])
        return result

    @overload
    async def asend_chain(self, chain: Chain[R], /) -> ChainResult[R]: ...
    @overload
    async def asend_chain(self, chain: Sequence[Signature], /) -> ChainResult[Any]: ...
    async def asend_chain(self, chain: Chain[Any] | Sequence[Signature], /) -> ChainResult[Any]:
        """Do what `send_chain` does, without blocking the event loop."""
        first, result = self._chain(chain)
        await self._asend([first])
        return result

    def send_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """
        Send all members of a group, in order.

        Args:
            group: The group; nothing is written for an empty one.
            send_concurrency: Machinery's bound on parallel sends, ≥ 0. It is only
                checked: all members go in one call, and no worker sees a group
                whose members have no state yet.

        Raises:
            QueueFull: Some members did not fit; the others are sent.
        """
        members, result = self._group(group, send_concurrency)
        if members:
            self._send(members, _meta(members))
        return result

    async def asend_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """Do what `send_group` does, without blocking the event loop."""
        members, result = self._group(group, send_concurrency)
        if members:
            await self._asend(members, _meta(members))
        return result

    def send_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Send all members as `send_group` does; each carries the callback."""
        members, result = self._chord(chord, send_concurrency)
        self._send(members, _meta(members))
        return result

    async def asend_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Do what `send_chord` does, without blocking the event loop."""
        members, result = self._chord(chord, send_concurrency)
        await self._asend(members, _meta(members))
        return result

    # -- looking ---------------------------------------------------------------------------
    def result(self, uuid: str) -> AsyncResult[Any]:
        """Return the result of a task that anybody sent, by its id alone."""
        return AsyncResult(uuid, self._required())

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
        return GroupResult(group_uuid, backend, meta.task_uuids)

    def get_state(self, uuid: str) -> TaskState | None:
        """Return a task's state, or ``None`` when none is kept."""
        return self._required().read([uuid])[0]

    def purge_state(self, uuid: str) -> None:
        """Forget a task's state and result."""
        self._required().purge_state(uuid)

    def pending_tasks(self, queue: str = "") -> list[Signature]:
        """Return what is ready in a queue ("": the default one), next first, without taking it."""
        return self._outgoing.readable(self.broker.pending(queue or self.config.default_queue))

    def delayed_tasks(self) -> list[Signature]:
        """Return what is due later, of all queues, earliest first."""
        return self._outgoing.readable(self.broker.delayed())

    def close(self) -> None:
        """Close every connection; tasks bound to this server are let go."""
        for task in self.registry:
            task.release_sender(self)
        self.stop_schedulers()
        self.broker.close()
        if self.backend is not None:
            self.backend.close()

    async def aclose(self) -> None:
        """Do what `close` does, for the connections of the running event loop too."""
        await self.broker.aclose()
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

    def _chain(self, chain: Chain[Any] | Sequence[Signature]) -> tuple[Signature, ChainResult[Any]]:
        links = (chain if isinstance(chain, Chain) else Chain[Any](chain)).linked()
        last = first = self._outgoing.complete(links[0])
        uuids = [first.uuid]
        for _ in links[1:]:
            [last] = last.on_success
            uuids.append(last.uuid)
        return first, ChainResult(last.uuid, self._required(), uuids[:-1], last.name)

    def _group(
        self, group: Group[R], send_concurrency: int, callback: Signature | None = None
    ) -> tuple[list[Signature], GroupResult[R]]:
        if send_concurrency < 0:
            raise SignatureError(
                f"send_concurrency {send_concurrency} is out of bounds; give 0 or more."
            )
        group_uuid = group.group_uuid or self._outgoing.new_id("group", self.config.default_queue)
        members = [
            self._outgoing.complete(member) for member in group.members(group_uuid, callback)
        ]
        uuids = [member.uuid for member in members]
        if len(set(uuids)) < len(uuids):
            twice = next(uuid for uuid in uuids if uuids.count(uuid) > 1)
            raise SignatureError(
                f"Two members of the group have the id {twice!r}; leave it empty, or give each "
                "its own."
            )
        return members, GroupResult(group_uuid, self._required(), uuids)

    def _chord(
        self, chord: Chord[R], send_concurrency: int
    ) -> tuple[list[Signature], ChordResult[R]]:
        callback = self._outgoing.complete(copied(chord.callback), "chord")
        members, group = self._group(chord.group, send_concurrency, callback)
        return members, ChordResult(callback.uuid, self._required(), group, callback.name)

    def _send(self, signatures: Sequence[Signature], meta: GroupMeta | None = None) -> None:
        # Encoded first: what cannot be sent must not leave a group or a state behind.
        messages, states = self._written(signatures)
        backend = self._required()
        try:
            if meta is not None:
                backend.record_group(meta, due_ns=_last_due_ns(signatures))
            for state in states:
                backend.record(state)
            outcomes = self.broker.enqueue(messages)
        except BrokerUnavailable as error:
            raise told(error, messages, keeps_states=self.broker.keeps_states) from error.__cause__
        if self.after_enqueue is not None:
            self.after_enqueue()
        judge(messages, outcomes, self.config.max_queue_length)

    async def _asend(self, signatures: Sequence[Signature], meta: GroupMeta | None = None) -> None:
        messages, states = self._written(signatures)
        backend = self._required()
        try:
            if meta is not None:
                await backend.arecord_group(meta, due_ns=_last_due_ns(signatures))
            for state in states:
                await asyncio.to_thread(backend.record, state)
            outcomes = await self.broker.aenqueue(messages)
        except BrokerUnavailable as error:
            raise told(error, messages, keeps_states=self.broker.keeps_states) from error.__cause__
        if self.after_enqueue is not None:
            # It runs tasks: neither may they block this loop, nor find it running.
            await asyncio.to_thread(self.after_enqueue)
        judge(messages, outcomes, self.config.max_queue_length)

    def _written(self, signatures: Sequence[Signature]) -> tuple[list[Message], list[TaskState]]:
        """Return the messages, and the PENDING states that the broker does not keep itself."""
        if self.before_publish is not None:
            for signature in signatures:
                self.before_publish(signature)
        return self._outgoing.messages(signatures, keeps_states=self.broker.keeps_states)


def _last_due_ns(signatures: Sequence[Signature]) -> int:
    return max(signature.eta_ns or 0 for signature in signatures)


def _meta(members: Sequence[Signature]) -> GroupMeta:
    return GroupMeta(
        group_uuid=members[0].group_uuid,
        task_uuids=[member.uuid for member in members],
        created_at=wire.now_text(time.time_ns()),
    )
