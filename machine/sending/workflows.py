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
from machine.wire.text import format_time
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, series, steps_of
from machine.workflow.plan import PlannedStep, WorkflowPlan, make_plan

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
        plan = self._plan(workflow, send_concurrency)
        handle = self._handle(workflow, plan)
        if plan.heads:
            self._sending.send(plan.heads, self._groups(plan))
        return handle

    async def asend(
        self,
        workflow: Chain[Any] | GroupChain[Any] | Group[Any] | Chord[Any],
        send_concurrency: int = 0,
    ) -> Any:
        plan = self._plan(workflow, send_concurrency)
        handle = self._handle(workflow, plan)
        if plan.heads:
            await self._sending.asend(plan.heads, self._groups(plan))
        return handle

    def _plan(self, workflow: Any, send_concurrency: int) -> WorkflowPlan:
        check_concurrency(send_concurrency)
        return make_plan(steps_of(workflow), self._messages.complete, self._new_group_uuid)

    def _new_group_uuid(self) -> str:
        return self._messages.new_id("group")

    def _groups(self, plan: WorkflowPlan) -> Groups:
        """Return what is written before any of a workflow's messages."""
        created_at = format_time(time.time_ns())
        metas = [
            GroupMeta(
                group_uuid=group.group_uuid,
                task_uuids=list(group.uuids),
                created_at=created_at,
                nested=not group.at_once,
            )
            for group in plan.groups
        ]
        if not self._writes_ahead:
            return Groups(metas, plan.due_ns)
        sent = {head.uuid for head in plan.heads}
        later = [uuid for meta in metas for uuid in meta.task_uuids if uuid not in sent]
        ahead = [TaskState.pending_id(uuid, created_at) for uuid in later]
        return Groups(metas, plan.due_ns, ahead)

    # -- handles ---------------------------------------------------------------------------
    def _handle(self, workflow: Any, plan: WorkflowPlan) -> _Handle:
        if isinstance(workflow, Chord):
            return self._chord_handle(plan)
        backend, last = self._sending.require_backend(), plan.steps[-1]
        steps = [self._step_handle(step) for step in plan.steps]
        if last.group_uuid:
            return GroupResult(
                last.group_uuid,
                backend,
                last.uuids,
                graph=plan.graph,
                may_come=not last.at_once,
                steps=steps,
                canceler=self._canceler,
            )
        [uuid] = last.uuids
        return ChainResult(
            uuid, backend, plan.graph, last.task_name, steps=steps, canceler=self._canceler
        )

    def _chord_handle(self, plan: WorkflowPlan) -> ChordResult[Any]:
        members, callback = plan.steps
        [uuid] = callback.uuids
        return ChordResult(
            uuid,
            self._sending.require_backend(),
            self._group_handle(members),
            plan.graph,
            callback.task_name,
            canceler=self._canceler,
        )

    def _step_handle(self, step: PlannedStep) -> AsyncResult[Any] | GroupResult[Any]:
        if step.group_uuid:
            return self._group_handle(step)
        [uuid] = step.uuids
        return AsyncResult(
            uuid,
            self._sending.require_backend(),
            step.task_name,
            may_come=not step.at_once,
            canceler=self._canceler,
        )

    def _group_handle(self, step: PlannedStep) -> GroupResult[Any]:
        return GroupResult(
            step.group_uuid,
            self._sending.require_backend(),
            step.uuids,
            may_come=not step.at_once,
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
