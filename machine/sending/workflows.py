"""
Sending workflows: chains, groups and chords, in each other too.

`machine.workflow.plan` says which messages come first and what they carry. Here each
group is given its record, and the caller its handle.
"""

from __future__ import annotations

import time
from typing import Any

from machine.errors import SignatureError
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupResult
from machine.results.task import AsyncResult, Canceler
from machine.sending.messages import MessageMaker
from machine.sending.sending import Groups, Sending
from machine.wire.signature import GroupMeta, TaskState
from machine.wire.text import now_text
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, series, steps_of
from machine.workflow.plan import Plan, Stage, plan

_Handle = ChainResult[Any] | ChordResult[Any] | GroupResult[Any]


class WorkflowSending:
    """
    Sends workflows.

    Args:
        sending: Sends what comes first in each.
        messages: Completes signatures.
        canceler: What the handles cancel by.
        writes_ahead: Whether Go workers run members too: they ask for the states of all
            members, and take one without for an error, so those sent later get theirs now.
    """

    def __init__(
        self,
        sending: Sending,
        messages: MessageMaker,
        canceler: Canceler,
        *,
        writes_ahead: bool = False,
    ) -> None:
        self._sending, self._messages = sending, messages
        self._canceler = canceler
        self._writes_ahead = writes_ahead

    def send(
        self,
        workflow: Chain[Any] | GroupChain[Any] | Group[Any] | Chord[Any],
        send_concurrency: int = 0,
    ) -> Any:
        """
        Send what comes first in a workflow; nothing is written for an empty group.

        Args:
            workflow: It carries the rest.
            send_concurrency: See `check_concurrency`.

        Returns:
            A `ChordResult` for a chord; else a `GroupResult` where the last step is a
            group, and a `ChainResult` where it is a task.

        Raises:
            SignatureError: It cannot be sent as it is; nothing was written.
            QueueFull: Some messages did not fit; the others are sent.
        """
        planned = self._plan(workflow, send_concurrency)
        handle = self._handle(workflow, planned)
        if planned.heads:
            self._sending.send(planned.heads, self._groups(planned))
        return handle

    async def asend(
        self,
        workflow: Chain[Any] | GroupChain[Any] | Group[Any] | Chord[Any],
        send_concurrency: int = 0,
    ) -> Any:
        planned = self._plan(workflow, send_concurrency)
        handle = self._handle(workflow, planned)
        if planned.heads:
            await self._sending.asend(planned.heads, self._groups(planned))
        return handle

    def _plan(self, workflow: Any, send_concurrency: int) -> Plan:
        check_concurrency(send_concurrency)
        return plan(steps_of(workflow), self._messages.complete, self._new_group_uuid)

    def _new_group_uuid(self) -> str:
        return self._messages.new_id("group")

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
        if not self._writes_ahead:
            return Groups(metas, planned.due_ns)
        sent = {head.uuid for head in planned.heads}
        later = [uuid for meta in metas for uuid in meta.task_uuids if uuid not in sent]
        ahead = [TaskState.pending_id(uuid, created_at) for uuid in later]
        return Groups(metas, planned.due_ns, ahead)

    # -- handles ---------------------------------------------------------------------------
    def _handle(self, workflow: Any, planned: Plan) -> _Handle:
        if isinstance(workflow, Chord):
            return self._chord_handle(planned)
        backend, last = self._sending.require_backend(), planned.stages[-1]
        steps = [self._step_handle(stage) for stage in planned.stages]
        if last.group_uuid:
            return GroupResult(
                last.group_uuid,
                backend,
                last.uuids,
                course=planned.course,
                may_come=not last.at_once,
                steps=steps,
                canceler=self._canceler,
            )
        [uuid] = last.uuids
        return ChainResult(
            uuid, backend, planned.course, last.task_name, steps=steps, canceler=self._canceler
        )

    def _chord_handle(self, planned: Plan) -> ChordResult[Any]:
        members, callback = planned.stages
        [uuid] = callback.uuids
        return ChordResult(
            uuid,
            self._sending.require_backend(),
            self._group_handle(members),
            planned.course,
            callback.task_name,
            canceler=self._canceler,
        )

    def _step_handle(self, stage: Stage) -> AsyncResult[Any] | GroupResult[Any]:
        if stage.group_uuid:
            return self._group_handle(stage)
        [uuid] = stage.uuids
        return AsyncResult(
            uuid,
            self._sending.require_backend(),
            stage.task_name,
            may_come=not stage.at_once,
            canceler=self._canceler,
        )

    def _group_handle(self, stage: Stage) -> GroupResult[Any]:
        return GroupResult(
            stage.group_uuid,
            self._sending.require_backend(),
            stage.uuids,
            may_come=not stage.at_once,
            canceler=self._canceler,
        )


def chain_of(chain: Any) -> Chain[Any] | GroupChain[Any]:
    """Return a chain as it is, or the chain of these steps."""
    return chain if isinstance(chain, Chain | GroupChain) else series(chain)


def check_concurrency(send_concurrency: int) -> None:
    """
    Check Machinery's bound on parallel sends, which has no other effect here.

    All members go in one call, so that no worker sees a group whose members have no state yet.
    """
    if send_concurrency < 0:
        raise SignatureError(
            f"send_concurrency {send_concurrency} is out of bounds; give 0 or more."
        )
