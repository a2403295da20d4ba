"""
Sending workflows: chains, groups and chords, in each other too.

Part of `Server`. What is sent is `nesting`'s to say; here the groups are
written down first, and the handles made.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast, overload

from machine.config import Config
from machine.errors import SignatureError
from machine.ports.backend import Backend
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupResult
from machine.results.task import AsyncResult
from machine.sending.canceling import Canceling
from machine.sending.messages import MessageMaker
from machine.wire.signature import GroupMeta, Signature, TaskState
from machine.wire.text import now_text
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, Piece, series, steps_of
from machine.workflow.plan import Plan, Stage, plan

R = TypeVar("R")


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


class WorkflowSending(Canceling, ABC):
    """The part of `Server` that sends workflows."""

    config: Config
    _messages: MessageMaker

    @abstractmethod
    def _required(self) -> Backend:
        """Return the backend; raise `ConfigError` where there is none."""

    @abstractmethod
    def _send(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        """Write groups down, and send complete signatures."""

    @abstractmethod
    async def _asend(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        """Do what `_send` does, without blocking the event loop."""

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
        planned = self._planned(_chain_of(chain))
        result = self._result(planned)
        self._send(planned.heads, self._groups(planned))
        return result

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
        """Do what `send_chain` does, without blocking the event loop."""
        planned = self._planned(_chain_of(chain))
        result = self._result(planned)
        await self._asend(planned.heads, self._groups(planned))
        return result

    def send_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """
        Send all members of a group, in order; of one that is a workflow, its first step.

        Args:
            group: The group; nothing is written for an empty one.
            send_concurrency: Machinery's bound on parallel sends, ≥ 0. It is only
                checked: all members go in one call, and no worker sees a group
                whose members have no state yet.

        Raises:
            QueueFull: Some members did not fit; the others are sent.
        """
        planned = self._planned(group, send_concurrency)
        result = cast(GroupResult[R], self._result(planned))
        if planned.heads:
            self._send(planned.heads, self._groups(planned))
        return result

    async def asend_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """Do what `send_group` does, without blocking the event loop."""
        planned = self._planned(group, send_concurrency)
        result = cast(GroupResult[R], self._result(planned))
        if planned.heads:
            await self._asend(planned.heads, self._groups(planned))
        return result

    def send_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Send all members as `send_group` does; each carries the callback."""
        planned = self._planned(chord, send_concurrency)
        result: ChordResult[R] = self._chord_result(planned)
        self._send(planned.heads, self._groups(planned))
        return result

    async def asend_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Do what `send_chord` does, without blocking the event loop."""
        planned = self._planned(chord, send_concurrency)
        result: ChordResult[R] = self._chord_result(planned)
        await self._asend(planned.heads, self._groups(planned))
        return result

    def _planned(self, piece: Piece[Any], send_concurrency: int = 0) -> Plan:
        if send_concurrency < 0:
            raise SignatureError(
                f"send_concurrency {send_concurrency} is out of bounds; give 0 or more."
            )
        return plan(steps_of(piece), self._messages.complete, self._new_group_uuid)

    def _groups(self, planned: Plan) -> Groups:
        """Return what is written before any of a workflow's messages."""
        created_at = now_text(time.time_ns())
        metas = [
            GroupMeta(
                group_uuid=group.group_uuid,
                task_uuids=list(group.uuids),
                created_at=created_at,
                nested=not group.at_once,
            )
            for group in planned.groups
        ]
        if not self.config.interop_groups:
            return Groups(metas, planned.due_ns)
        # A Go worker asks for the states of all members, and takes one without for an error.
        sent = {head.uuid for head in planned.heads}
        later = [uuid for meta in metas for uuid in meta.task_uuids if uuid not in sent]
        ahead = [TaskState.pending_id(uuid, created_at) for uuid in later]
        return Groups(metas, planned.due_ns, ahead)

    def _new_group_uuid(self) -> str:
        return self._messages.new_id("group")

    def _result(self, planned: Plan) -> ChainResult[Any] | GroupResult[Any]:
        backend, last, course = self._required(), planned.stages[-1], planned.course
        steps = [self._step(stage) for stage in planned.stages]
        if last.group_uuid:
            return GroupResult(
                *(last.group_uuid, backend, last.uuids),
                course=course,
                may_come=not last.at_once,
                steps=steps,
                canceler=self,
            )
        [uuid] = last.uuids
        return ChainResult(uuid, backend, course, last.task_name, steps=steps, canceler=self)

    def _chord_result(self, planned: Plan) -> ChordResult[Any]:
        members, callback = planned.stages
        [uuid] = callback.uuids
        group, backend = self._group_step(members), self._required()
        return ChordResult(uuid, backend, group, planned.course, callback.task_name, canceler=self)

    def _step(self, stage: Stage) -> AsyncResult[Any] | GroupResult[Any]:
        if stage.group_uuid:
            return self._group_step(stage)
        [uuid] = stage.uuids
        return AsyncResult(
            *(uuid, self._required(), stage.task_name),
            may_come=not stage.at_once,
            canceler=self,
        )

    def _group_step(self, stage: Stage) -> GroupResult[Any]:
        return GroupResult(
            *(stage.group_uuid, self._required(), stage.uuids),
            may_come=not stage.at_once,
            canceler=self,
        )


def _chain_of(chain: Any) -> Chain[Any] | GroupChain[Any]:
    return chain if isinstance(chain, Chain | GroupChain) else series(chain)
