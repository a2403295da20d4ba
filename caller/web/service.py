"""
What the HTTP caller does, without HTTP: it sends, reads and cancels.

All state is in Redis, so any replica can answer for what another one sent.
"""

from __future__ import annotations

import asyncio
import time
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from caller.web import idempotency
from caller.web.events import Following
from caller.web.problems import Problem
from caller.web.responses import GroupState, group_document
from caller.web.task_schema import task_schemas
from caller.web.workflows import Composer, Drafted
from machine.config.queues import read_queue_names
from machine.errors import BrokerRefused, ConfigError, ResultNotFound, WireError
from machine.ports.backend import Backend
from machine.results.group import GroupResult
from machine.results.task import AsyncResult
from machine.server import Server
from machine.wire.limits import is_result_id
from machine.wire.signature import GroupMeta, State, TaskState
from machine.wire.text import format_time, shorten
from machine.workflow.pieces import Chord, Group

#: Seconds within which Redis has to answer for this replica to be ready.
_READY_S: Final = 1.0
_SPACE: Final = uuids.UUID("0c6d7a0e-58a5-5d0c-9d3f-0d8a7c6a4b52")


class SendRequest(NamedTuple):
    """
    A request that sends, as read from HTTP.

    Attributes:
        path: Where it was sent to.
        body: Its body, parsed.
        carried: Headers that travel with the tasks.
        subject: Digest of the client's token, or "".
        key: The ``Idempotency-Key``, or "".
    """

    path: str
    body: Any
    carried: Mapping[str, str]
    subject: str
    key: str


class SentPieces(NamedTuple):
    """What was sent: the id of its result, its group's id or "", and all of its tasks."""

    uuid: str
    group_uuid: str
    tasks: Sequence[Drafted]


class Service:
    """
    One replica.

    Args:
        server: Connected to the queues and results that all replicas share.

    Attributes:
        tasks: Schemas of the tasks that can be sent, by name.
        queues: The queues that may be named.
        following: The streams and waits of this process.
    """

    def __init__(self, server: Server) -> None:
        if server.backend is None or server.config.backend_url == "null":
            raise ConfigError(
                "result_backend is 'null', and nobody could ask for a result: set it to a Redis "
                "URL, or leave it empty to keep results with the broker."
            )
        config = server.config
        self.server = server
        self.backend: Backend = server.backend
        self.tasks = task_schemas(server.registry)
        own = [task.queue for task in server.registry]
        named = read_queue_names(config.worker_queues)
        known = [config.default_queue, *named, *config.allowed_queues, *own]
        self.queues = tuple(dict.fromkeys(queue for queue in known if queue))
        self.following = Following(self.backend)
        self._keys = idempotency.IdempotencyKeys(self.backend, config.results_expire_in)
        self._pinging: asyncio.Task[None] | None = None

    # -- sending ---------------------------------------------------------------------------
    async def send_task(self, name: str, request: SendRequest) -> str:
        """Send a task; return its id, or the id of the unique task that it joined."""
        composer, seed = self._make_composer(request)
        signature = composer.task(name, request.body)
        await self._record_key(request, seed, composer)
        if request.key and (await self.state(signature.uuid)) is not None:
            return signature.uuid
        return (await self.server.asend_task(signature)).uuid

    async def send_workflow(
        self, request: SendRequest, compose: Callable[[Composer, Any], Any]
    ) -> SentPieces:
        """
        Send a chain, a group or a chord.

        Args:
            request: As read from HTTP.
            compose: Which method of the composer reads the body.
        """
        composer, seed = self._make_composer(request)
        piece = compose(composer, request.body)
        await self._record_key(request, seed, composer)
        result = await self._asend(piece)
        if isinstance(result, GroupResult):
            return SentPieces("", result.group_uuid, composer.drafted)
        uuid = result.uuid
        group_uuid = _workflow_of(uuid)
        members = [drafted.uuid for drafted in composer.drafted]
        await self.backend.arecord_group(
            GroupMeta(
                group_uuid=group_uuid,
                task_uuids=members,
                created_at=format_time(time.time_ns()),
                nested=True,
            )
        )
        return SentPieces(uuid, group_uuid, composer.drafted)

    async def _asend(self, piece: Any) -> AsyncResult[Any] | GroupResult[Any]:
        if isinstance(piece, Group):
            return await self.server.asend_group(piece)
        if isinstance(piece, Chord):
            return await self.server.asend_chord(piece)
        sent: AsyncResult[Any] | GroupResult[Any] = await self.server.asend_chain(piece)
        return sent

    def _make_composer(self, request: SendRequest) -> tuple[Composer, uuids.UUID | None]:
        seed = None
        if request.key:
            if not self.server.broker.keeps_states:
                raise Problem(
                    "bad-header",
                    "Idempotency-Key needs results beside the queues, and here they are kept "
                    "elsewhere (result_backend); send without it.",
                )
            seed = idempotency.seed_of(request.key, request.subject, request.path, request.body)
        return Composer(self.tasks, self.queues, request.carried, seed), seed

    async def _record_key(
        self, request: SendRequest, seed: uuids.UUID | None, composer: Composer
    ) -> None:
        if seed is not None:
            first = composer.drafted[0].uuid
            await self._keys.record(request.key, request.subject, seed, first)

    # -- reading ---------------------------------------------------------------------------
    async def state(self, uuid: str) -> TaskState | None:
        """Return a task's state, ``None`` where none is kept."""
        return (await self.backend.aread([uuid]))[0]

    async def result(self, uuid: str, wait_s: float = 0.0) -> TaskState:
        """
        Return a task's state, after waiting up to ``wait_s`` for its end.

        The last task of a workflow is PENDING until another task sends it.

        Raises:
            Problem: Nothing is kept under this id.
        """
        found = await self._require_state(uuid)
        if wait_s > 0 and not found.is_completed:
            await self.following.wait(uuid, wait_s)
            found = await self._require_state(uuid)
        return found

    async def _require_state(self, uuid: str) -> TaskState:
        if is_result_id(uuid, delayed_key=self._delayed_key):
            found = await self.state(uuid)
            if found is not None:
                return found
            if await self._is_awaited(uuid):
                return TaskState(task_uuid=uuid, state=State.PENDING)
        raise Problem(
            "unknown-result",
            f"No result is kept under {shorten(uuid)}: nothing was sent under this id, or it "
            f"expired ({self.server.config.results_expire_in} s after its end).",
        )

    async def _is_awaited(self, uuid: str) -> bool:
        """Say whether this is the last task of a workflow, not sent so far."""
        meta = await self._read_group(_workflow_of(uuid))
        if meta is None or uuid not in meta.task_uuids:
            return False
        # The last one's state outlives the others': without any, all have expired.
        return any(await self.backend.aread(meta.task_uuids))

    async def group(self, uuid: str, part: slice) -> GroupState:
        """
        Return a group's progress and some of its members.

        Raises:
            Problem: Nothing is kept under this id.
        """
        meta = await self._require_group(uuid)
        states = await self.backend.aread(meta.task_uuids)
        return group_document(uuid, meta.task_uuids, states, part)

    async def _require_group(self, uuid: str) -> GroupMeta:
        is_id = is_result_id(uuid, delayed_key=self._delayed_key)
        meta = await self._read_group(uuid) if is_id else None
        if meta is None:
            raise Problem(
                "unknown-group",
                f"No group is kept under {shorten(uuid)}: it was never sent, or it expired.",
            )
        return meta

    async def _read_group(self, uuid: str) -> GroupMeta | None:
        try:
            return await asyncio.to_thread(self.backend.read_group, uuid)
        except (WireError, BrokerRefused):
            return None  # something else stands there

    @property
    def _delayed_key(self) -> str:
        return self.server.config.redis.delayed_tasks_key or "delayed_tasks"

    # -- canceling -------------------------------------------------------------------------
    async def cancel(self, uuid: str) -> TaskState:
        """
        Cancel a task, sent or still to be sent by another; return its state.

        Raises:
            Problem: It has ended, or nothing is kept under this id.
        """
        found = await self._require_state(uuid)
        try:
            is_canceled = await self.server.acancel(uuid)
        except ResultNotFound:
            await self.server.acancel_all([], ahead=[uuid])
            is_canceled = True
        if not is_canceled:
            found = await self._require_state(uuid)
            raise Problem("ended", f"Task {uuid} has ended: its state is {found.state}.")
        return await self._require_state(uuid)

    async def cancel_group(self, uuid: str) -> None:
        """Cancel all members of a group that have not ended, sent or still to be sent."""
        meta = await self._require_group(uuid)
        states = await self.backend.aread(meta.task_uuids)
        sent = [u for u, state in zip(meta.task_uuids, states, strict=True) if state is not None]
        later = [u for u, state in zip(meta.task_uuids, states, strict=True) if state is None]
        # Without any state all have ended and expired, and nothing is still to come.
        await self.server.acancel_all(sent, ahead=later if meta.nested and sent else ())

    # -- the service itself ----------------------------------------------------------------
    async def ready(self) -> bool:
        """Say whether Redis answers within a second; one question at a time is under way."""
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.create_task(asyncio.to_thread(self.server.broker.ping))
        await asyncio.wait({self._pinging}, timeout=_READY_S)
        return self._pinging.done() and self._pinging.exception() is None

    async def close(self) -> None:
        """End every wait, and close every connection."""
        await self.following.close()
        if self._pinging is not None:
            await asyncio.gather(self._pinging, return_exceptions=True)
        await self.server.aclose()


def _workflow_of(uuid: str) -> str:
    """Return the group id that lists the tasks of a workflow, made of its last task's id."""
    return f"group_{uuids.uuid5(_SPACE, uuid)}"
