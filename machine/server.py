"""
`Server`: what a caller uses to send tasks and to look at queues and results. It is no server.

The name, and those of its methods, are Machinery's. It only puts parts together: each
method hands over to the one that knows how. The parts know the broker and the backend
by their ports alone, so nothing here knows URLs or Redis. A method whose name begins
with an ``a`` does what the one without it does, without blocking the event loop.

More than 400 lines, because it is the one list of what a caller can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar, Unpack, overload

from machine.config import Config
from machine.errors import ConfigError
from machine.periodic.entries import Entry, PeriodicOptions
from machine.periodic.watermarks import PeriodicState
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.moves import Canceled
from machine.ports.periodic import PeriodicStore
from machine.registry import Registry
from machine.registry.task import Task
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupResult
from machine.results.task import AsyncResult
from machine.sending.canceling import Canceling
from machine.sending.messages import MessageMaker
from machine.sending.periodic import PeriodicTasks
from machine.sending.sending import Sending, SendInstrument
from machine.sending.workflows import WorkflowSending, chain_of
from machine.wire.signature import Signature, TaskState
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, Piece, TypedSignature

R = TypeVar("R")


class Server:
    """
    Machinery's Server: everything a caller needs, and the way to a worker.

    Any number of threads may use one server. As a context manager it closes
    itself.

    Args:
        config: The settings.
        broker: Where messages go.
        backend: Where results are read; without one nothing can be sent.
        registry: The tasks known here; a new one by default.
        instruments: Count or trace what is sent, the first one outermost.
        stamps: Whether messages say when they were sent, whatever the settings say.

    Attributes:
        worker_factory: Makes a worker from (server, name, concurrency).
        scheduler_factory: Makes a scheduler of the server.
    """

    def __init__(
        self,
        config: Config,
        broker: Broker,
        backend: Backend | None,
        registry: Registry | None = None,
        *,
        instruments: Sequence[SendInstrument] = (),
        stamps: bool = False,
    ) -> None:
        self.config = config
        self.broker = broker
        self.backend = backend
        self.registry = Registry() if registry is None else registry
        self.worker_factory: Callable[[Server, str, int], Any] | None = None
        self.scheduler_factory: Callable[[Server], Any] | None = None
        self._messages = MessageMaker.of(
            config, self.registry, keeps_states=broker.keeps_states, stamps=stamps
        )
        self._canceling = Canceling(broker, backend)
        self._sending = Sending(
            self._messages,
            broker,
            backend,
            self._canceling,
            max_queue_length=config.max_queue_length,
            instruments=instruments,
        )
        self._workflows = WorkflowSending(
            self._sending, self._messages, self._canceling, writes_ahead=config.interop_groups
        )
        self._periodic = PeriodicTasks(self.registry, self._messages, config.default_queue)
        for task in self.registry:
            task.bind_sender(self)

    @property
    def before_publish(self) -> Callable[[Signature], None] | None:
        """
        Called with each signature about to be sent, complete with its id; it may change it.

        For trace headers and the like; Machinery's SetPreTaskHandler.
        """
        return self._sending.before_publish

    @before_publish.setter
    def before_publish(self, call: Callable[[Signature], None] | None) -> None:
        self._sending.before_publish = call

    @property
    def after_enqueue(self) -> Callable[[], None] | None:
        """Called after each send; eager mode runs the queue there."""
        return self._sending.after_enqueue

    @after_enqueue.setter
    def after_enqueue(self, call: Callable[[], None] | None) -> None:
        self._sending.after_enqueue = call

    @property
    def periodic_store(self) -> PeriodicStore | None:
        """Keeps the timetable's watermarks, for canceling; set by `build`."""
        return self._periodic.store

    @periodic_store.setter
    def periodic_store(self, store: PeriodicStore | None) -> None:
        self._periodic.store = store

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
        return self._sending.send_task(signature)

    @overload
    async def asend_task(self, signature: TypedSignature[R], /) -> AsyncResult[R]: ...
    @overload
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]: ...
    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]:
        return await self._sending.asend_task(signature)

    @overload
    def send_chain(self, chain: Chain[R], /) -> ChainResult[R]: ...
    @overload
    def send_chain(self, chain: GroupChain[R], /) -> GroupResult[R]: ...
    @overload
    def send_chain(self, chain: Sequence[Signature], /) -> ChainResult[Any]: ...
    @overload
    def send_chain(
        self, chain: Sequence[Signature | Piece[Any]], /
    ) -> ChainResult[Any] | GroupResult[Any]: ...
    def send_chain(self, chain: Any, /) -> Any:
        """
        Send the first step of a chain, which carries the others as its callbacks.

        Args:
            chain: Or its steps: tasks, groups, and workflows of them.

        Raises:
            SignatureError: It cannot be sent as it is; nothing was written.
        """
        return self._workflows.send(chain_of(chain))

    @overload
    async def asend_chain(self, chain: Chain[R], /) -> ChainResult[R]: ...
    @overload
    async def asend_chain(self, chain: GroupChain[R], /) -> GroupResult[R]: ...
    @overload
    async def asend_chain(self, chain: Sequence[Signature], /) -> ChainResult[Any]: ...
    @overload
    async def asend_chain(
        self, chain: Sequence[Signature | Piece[Any]], /
    ) -> ChainResult[Any] | GroupResult[Any]: ...
    async def asend_chain(self, chain: Any, /) -> Any:
        return await self._workflows.asend(chain_of(chain))

    def send_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """
        Send all members of a group, in order; of one that is a workflow, its first step.

        Args:
            group: The group; nothing is written for an empty one.
            send_concurrency: Machinery's bound on parallel sends, ≥ 0. It is only
                checked: all members go in one call.

        Raises:
            QueueFull: Some members did not fit; the others are sent.
        """
        result: GroupResult[R] = self._workflows.send(group, send_concurrency)
        return result

    async def asend_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        result: GroupResult[R] = await self._workflows.asend(group, send_concurrency)
        return result

    def send_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Send all members as `send_group` does; each carries the callback."""
        result: ChordResult[R] = self._workflows.send(chord, send_concurrency)
        return result

    async def asend_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        result: ChordResult[R] = await self._workflows.asend(chord, send_concurrency)
        return result

    # -- canceling -------------------------------------------------------------------------
    def cancel(self, uuid: str) -> bool:
        """
        Cancel a task that anybody sent: its state is FAILURE at once, with the error "canceled".

        A task that has not started never runs, however long it waits. One that
        runs is told (``current_task().canceled``), an ``async def`` one is
        interrupted; whatever it returns is dropped. Its error callbacks are sent,
        what was to follow its success is not. A Go worker does not ask, and runs it.

        Returns:
            True when it is canceled, now or before; false when it had ended.

        Raises:
            ResultNotFound: No state is kept under this id.
            BrokerRefused: The id names a key of another kind.
        """
        return self._canceling.cancel(uuid)

    async def acancel(self, uuid: str) -> bool:
        return await self._canceling.acancel(uuid)

    def cancel_all(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """
        Cancel several tasks, each by itself, in one round trip.

        Args:
            uuids: Ids of tasks that were sent.
            ahead: Ids of tasks that others are to send later: they never will be.

        Returns:
            What became of each: of ``uuids`` first, then of ``ahead``.
        """
        return self._canceling.cancel_all(uuids, ahead=ahead)

    async def acancel_all(
        self, uuids: Sequence[str], *, ahead: Sequence[str] = ()
    ) -> list[Canceled]:
        return await self._canceling.acancel_all(uuids, ahead=ahead)

    # -- periodic tasks --------------------------------------------------------------------
    def register_periodic_task(
        self,
        spec: str | timedelta,
        name: str,
        signature: Signature | Piece[Any],
        **options: Unpack[PeriodicOptions],
    ) -> None:
        """
        Send a task at each time of ``spec``, as Machinery's RegisterPeriodicTask does.

        Workers made by this server see to it, and so does `start_scheduler`; a program
        that does neither only checks it. Registering the same again changes nothing.

        Args:
            spec: When; see `periodic`.
            name: What the timetable knows it by; one entry for each name.
            signature: A template: each run is a copy with an id of its own. A workflow may
                stand here, and wherever the other three take a signature, but for the callback.
            options: ``catch_up``, ``overlap`` and ``tz``, as for `periodic`.

        Raises:
            ConfigError: The specification means no times.
            SignatureError: It cannot be sent, or the name is taken by something else.
        """
        self._periodic.register("task", spec, name, [signature], **options)

    def register_periodic_chain(
        self,
        spec: str | timedelta,
        name: str,
        *signatures: Signature | Piece[Any],
        **options: Unpack[PeriodicOptions],
    ) -> None:
        """Send a chain at each time of ``spec``; see `register_periodic_task`."""
        self._periodic.register("chain", spec, name, signatures, **options)

    def register_periodic_group(
        self,
        spec: str | timedelta,
        name: str,
        send_concurrency: int,
        *signatures: Signature | Piece[Any],
        **options: Unpack[PeriodicOptions],
    ) -> None:
        """Send a group at each time of ``spec``; ``send_concurrency`` is only checked."""
        self._periodic.register(
            "group", spec, name, signatures, send_concurrency=send_concurrency, **options
        )

    def register_periodic_chord(
        self,
        spec: str | timedelta,
        name: str,
        send_concurrency: int,
        callback: Signature,
        *signatures: Signature | Piece[Any],
        **options: Unpack[PeriodicOptions],
    ) -> None:
        """Send a group with a callback at each time of ``spec``; see the others."""
        self._periodic.register(
            "chord", spec, name, signatures, callback, send_concurrency=send_concurrency, **options
        )

    def timetable(self) -> list[Entry]:
        """Return what is registered here, each entry as it will be sent."""
        return self._periodic.timetable()

    def new_scheduler(self) -> Any:
        """Return a scheduler of what is registered here; ``run_once(now_s)`` is one look."""
        return self._periodic.add_scheduler(self.scheduler_factory, self)

    def start_scheduler(self) -> Any:
        """Send what is registered here from a thread until `close`; return what has ``stop()``."""
        return self.new_scheduler().start()

    def stop_schedulers(self) -> None:
        """Stop every scheduler of this server."""
        self._periodic.stop_schedulers()

    def cancel_periodic(self, name: str) -> bool:
        """
        Let nothing be sent for an entry any more, by whichever scheduler, until `resume_periodic`.

        It is kept in the store and so outlives every process. What was sent before still
        runs; the times that pass meanwhile are over and never made up for.

        Args:
            name: The entry's; this program need not know it.

        Returns:
            Whether that changed something; false too if a lost answer had it asked twice.

        Raises:
            SignatureError: No entry can have this name.
        """
        return self._periodic.switch(name, canceled=True)

    async def acancel_periodic(self, name: str) -> bool:
        return await self._periodic.aswitch(name, canceled=True)

    def resume_periodic(self, name: str) -> bool:
        """
        Let an entry be sent again, from now on: the opposite of `cancel_periodic`.

        An interval counts from this moment. Arguments, answer and errors are the same.
        """
        return self._periodic.switch(name, canceled=False)

    async def aresume_periodic(self, name: str) -> bool:
        return await self._periodic.aswitch(name, canceled=False)

    def periodic_tasks(self) -> list[PeriodicState]:
        """
        Return where each entry stands: those registered here, then what only the store knows.

        Schedulers work by the store's clock, so these times are by that too.
        """
        return self._periodic.states()

    async def aperiodic_tasks(self) -> list[PeriodicState]:
        return await self._periodic.astates()

    # -- looking ---------------------------------------------------------------------------
    def result(self, uuid: str, *, may_come: bool = False) -> AsyncResult[Any]:
        """
        Return the result of a task that anybody sent, by its id alone.

        Args:
            uuid: The task's id.
            may_come: Whether it may be sent later, as the last task of a chain is:
                waiting then does not take a missing state for a lost one.
        """
        backend = self._sending.require_backend()
        return AsyncResult(uuid, backend, may_come=may_come, canceler=self._canceling)

    def group_result(self, group_uuid: str) -> GroupResult[Any]:
        """
        Return the results of a group that anybody sent, by its id alone.

        Raises:
            ResultNotFound: No members are written down under this id.
        """
        backend = self._sending.require_backend()
        return GroupResult.of_sent(group_uuid, backend, canceler=self._canceling)

    async def agroup_result(self, group_uuid: str) -> GroupResult[Any]:
        return await asyncio.to_thread(self.group_result, group_uuid)

    def get_state(self, uuid: str) -> TaskState | None:
        """Return a task's state, or ``None`` when none is kept."""
        return self._sending.require_backend().read([uuid])[0]

    def purge_state(self, uuid: str) -> None:
        """Forget a task's state and result."""
        self._sending.require_backend().purge_state(uuid)

    def pending_tasks(self, queue: str = "") -> list[Signature]:
        """Return what is ready in a queue ("": the default one), next first, without taking it."""
        payloads = self.broker.pending(queue or self.config.default_queue)
        return self._messages.decode_readable(payloads)

    def delayed_tasks(self) -> list[Signature]:
        """Return what is due later, of all queues, earliest first."""
        return self._messages.decode_readable(self.broker.delayed())

    # -- the end ---------------------------------------------------------------------------
    def close(self) -> None:
        """Stop its schedulers, unbind its tasks and close every connection."""
        for task in self.registry:
            task.release_sender(self)
        self._periodic.close()
        self.broker.close()
        if self.backend is not None:
            self.backend.close()

    async def aclose(self) -> None:
        """Do what `close` does, for the connections of the running event loop too."""
        await self.broker.aclose()
        await self._periodic.aclose()
        if self.backend is not None:
            await self.backend.aclose()
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
