"""
Outcomes -> moves: a task's state, callbacks, chord membership and acknowledgement in one step.

Pure. The script that carries a move out decides whether the claim is still
ours; nothing here asks a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from machine.config import Config
from machine.errors import MachineError, SignatureError, WireError
from machine.execution import Again, Failed, Outcome, Succeeded
from machine.ports.moves import Claim, Finish, Member, Retry, Start
from machine.sending.messages import MessageMaker, MessageRules
from machine.wire.headers import attempt_of, inherit_headers
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Attempt, Progress, Signature, State, TaskState, copy_signature
from machine.wire.states import (
    CANCELED,
    encode_attempt,
    encode_letter,
    encode_state,
    encode_state_head,
)
from machine.wire.text import format_time
from machine.workflow.callbacks import choose_follow_ups, list_never_run, make_retry

_NOT_RUN = "not run: "


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleRules(MessageRules):
    """
    The settings that decide what an outcome becomes: those of messages, and two more.

    A message larger than ``max_message_bytes`` is buried when it is claimed.

    Attributes:
        max_result_bytes: A larger final state fails the task instead.
        shared_groups: Whether members of a group may run on Go workers too.
    """

    max_result_bytes: int
    shared_groups: bool

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the rules that the settings ask for."""
        return cls(
            default_queue=config.default_queue,
            keeps_states=config.keeps_states,
            max_result_bytes=config.max_result_bytes,
            max_message_bytes=config.max_message_bytes,
            allowed_queues=frozenset(config.allowed_queues),
            delayed_key=config.redis.delayed_tasks_key or DELAYED_DEFAULT,
            shared_groups=config.interop_groups,
        )


@dataclass(slots=True)
class Settled:
    """
    What an outcome becomes.

    Attributes:
        move: The one change of state.
        state: What the task's state becomes.
        unkept: States that the move does not carry, because they live in another
            store. Record them there before the move is made: a reader that sees
            the move's effects then finds the states too.
    """

    move: Finish | Retry
    state: TaskState
    unkept: list[TaskState] = field(default_factory=list)


def settle(
    claim: Claim, signature: Signature, outcome: Outcome, rules: SettleRules, now_ns: int
) -> Settled:
    """
    Return the one change of state for this outcome. Never raises.

    A success that cannot be carried on (its result or a callback is too large,
    a callback names a queue that is not allowed, a retry is too far away)
    becomes a failure that says so.

    Args:
        claim: The claim that the task ran under; the script refuses the move if it is lost.
        signature: The message that ran.
        outcome: What its run came to.
        rules: See `SettleRules`.
        now_ns: Unix nanoseconds that retries count from.
    """
    try:
        if isinstance(outcome, Again):
            return _settle_retry(claim, signature, outcome, rules, now_ns)
        return _settle_end(claim, signature, outcome, rules, now_ns)
    except MachineError as error:
        failed = Failed(str(error))
    try:
        return _settle_end(claim, signature, failed, rules, now_ns)
    except MachineError:  # its error callbacks cannot be sent either
        alone = signature.replace(on_error=[])
        return _settle_end(claim, alone, failed, rules, now_ns)


def _settle_end(
    claim: Claim,
    signature: Signature,
    outcome: Succeeded | Failed,
    rules: SettleRules,
    now_ns: int,
) -> Settled:
    move, state = _make_finish(claim, signature, outcome, rules)
    settled = Settled(move, state)
    pending: list[TaskState] = []
    lost: list[TaskState] = []
    if isinstance(outcome, Failed) and signature.on_success:
        lost = _fail_callbacks(move, signature, outcome, rules, now_ns)
    if signature.on_success or signature.on_error:
        callbacks = choose_follow_ups(signature, outcome)
        move.follow_ups, pending = MessageMaker(rules).make_follow_ups(callbacks, now_ns)
    if not rules.keeps_states and signature.uuid:
        settled.unkept = [*pending, *lost, state]
    return settled


def _fail_callbacks(
    move: Finish, signature: Signature, failed: Failed, rules: SettleRules, now_ns: int
) -> list[TaskState]:
    """Add to a failure's move the failures of tasks that will never run; return their states."""
    reason = explain_not_run(signature, failed.error)
    states, members = fail_unrun(list_never_run(signature), reason, move.claim.queue, rules, now_ns)
    move.members = [*move.members, *members]
    if rules.keeps_states:
        move.fallen = [(state.task_uuid, encode_state(state)) for state in states]
    return states


def explain_not_run(signature: Signature, error: str) -> str:
    """Return why the tasks behind a failed one never run; down a chain, the first cause stays."""
    if error.startswith(_NOT_RUN):
        return error
    return f"{_NOT_RUN}{signature.name} {signature.uuid} failed: {error}"


def fail_unrun(
    signatures: Sequence[Signature], reason: str, queue: str, rules: SettleRules, now_ns: int
) -> tuple[list[TaskState], list[Member]]:
    """
    Return what to record of tasks that will never run.

    Args:
        signatures: The tasks.
        reason: The error in their states.
        queue: One that this worker consumes.
        rules: See `SettleRules`.
        now_ns: Unix nanoseconds, the states' creation time.

    Returns:
        Their FAILURE states, and their memberships in chords, which end with them.
    """
    states = [_failure(signature, reason, now_ns) for signature in signatures if signature.uuid]
    members = [member_of(signature, queue, rules) for signature in signatures]
    return states, [member for member in members if member is not None]


def _failure(signature: Signature, error: str, now_ns: int) -> TaskState:
    return TaskState(
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.FAILURE,
        error=error,
        created_at=format_time(now_ns),
    )


def _make_finish(
    claim: Claim, signature: Signature, outcome: Succeeded | Failed, rules: SettleRules
) -> tuple[Finish, TaskState]:
    state, head = _final_state(signature, outcome, rules)
    move = Finish(claim=claim)
    if signature.chord_callback is not None:
        member = member_of(signature, claim.queue, rules)
        move.members = [member] if member is not None else []
    if signature.uuid and rules.keeps_states:
        move.state_key, move.state = signature.uuid, head
    return move, state


def settle_canceled(claim: Claim, rules: SettleRules, now_ns: int) -> Settled:
    """Return how a claim ends whose task was canceled while it ran; its outcome is dropped."""
    signature = decode_signature(claim.payload, delayed_key=rules.delayed_key)
    return settle(claim, signature, Failed(CANCELED), rules, now_ns)


def replace_refused(move: Finish | Retry, rules: SettleRules, now_ns: int) -> Finish:
    """
    Return the move to make instead of one that was refused because a key has another type.

    The first replacement fails the task and buries its message. If that is
    refused too, the state's own key is at fault, and the second one buries the
    message without a state.
    """
    reason = "the key of its state, or the queue of its next task, holds something else"
    burial = bury(move.claim, reason, now_ns)
    if isinstance(move, Finish) and move.letter is not None:
        return burial
    try:
        signature = decode_signature(move.claim.payload, delayed_key=rules.delayed_key)
    except WireError:
        return burial
    failed, _ = _make_finish(move.claim, signature, Failed(reason), rules)
    return replace(burial, state_key=failed.state_key, state=failed.state, members=failed.members)


def make_starts(
    claim: Claim, signature: Signature, rules: SettleRules, progress: Progress | None = None
) -> list[Start]:
    """Return the move that shows a task as running; none if its state is in another store."""
    if not rules.keeps_states or not signature.uuid:
        return []
    state = TaskState(
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.STARTED,
        progress=progress,
    )
    return [Start(claim=claim, state_key=signature.uuid, state=encode_state_head(state))]


def _final_state(
    signature: Signature, outcome: Succeeded | Failed, rules: SettleRules
) -> tuple[TaskState, bytes]:
    if isinstance(outcome, Succeeded):
        state = TaskState(
            task_uuid=signature.uuid,
            state=State.SUCCESS,
            task_name=signature.name,
            results=outcome.results,
        )
    else:
        state = TaskState(
            task_uuid=signature.uuid,
            state=State.FAILURE,
            task_name=signature.name,
            error=outcome.error,
        )
    head = encode_state_head(state)
    if len(head) > rules.max_result_bytes:
        raise SignatureError(
            f"The result of task '{signature.name}' is too large: {len(head)} bytes, at most "
            f"{rules.max_result_bytes} (max_result_bytes). Store it elsewhere and return its place."
        )
    return state, head


def _settle_retry(
    claim: Claim, signature: Signature, outcome: Again, rules: SettleRules, now_ns: int
) -> Settled:
    again = make_retry(signature, outcome, now_ns)
    # Back to the queue it was claimed from: workers of another one may not know the task.
    again.routing_key = again.routing_key or claim.queue
    state = TaskState(
        task_uuid=signature.uuid,
        state=State.RETRY,
        task_name=signature.name,
        error=outcome.error,
    )
    run = Attempt(attempt_of(signature), outcome.error, format_time(now_ns))
    due_ns = again.eta_ns if again.eta_ns is not None and again.eta_ns > now_ns else 0
    kept = rules.keeps_states and signature.uuid != ""
    move = Retry(
        claim=claim,
        state_key=signature.uuid if kept else "",
        state=encode_state_head(state) if kept else b"",
        attempt=encode_attempt(run),
        payload=encode_signature(again),
        queue=again.routing_key,
        due_ns=due_ns,
    )
    state.attempts = [run]
    unkept = [] if kept or not signature.uuid else [state]
    return Settled(move, state, unkept)


def member_of(signature: Signature, queue: str, rules: SettleRules) -> Member | None:
    """
    Return a task's membership in its chord, or ``None`` if it is in no chord.

    Args:
        signature: The task.
        queue: One that this worker consumes. If it dies, a sweep of that queue fires the chord.
        rules: See `SettleRules`.
    """
    callback = signature.chord_callback
    if callback is None or not signature.group_uuid or signature.group_task_count < 1:
        return None
    # A group that Go workers share has no counter, because Go would not count it down. So the
    # chord may be armed on whatever queue its last member ran.
    callback = copy_signature(callback)
    inherit_headers(signature, callback)
    home = queue if rules.shared_groups else callback.routing_key or rules.default_queue
    return Member(
        home,
        signature.group_uuid,
        signature.uuid,
        0 if rules.shared_groups else signature.group_task_count,
        encode_signature(callback),
        queue,
    )


def bury(claim: Claim, reason: str, now_ns: int) -> Finish:
    """Return the move that ends a claim as a dead letter; the letter's id is the claim's."""
    envelope = encode_letter(
        reason=reason,
        payload=claim.payload,
        crash_count=claim.crash_count,
        worker_id=claim.worker_id,
        buried_ms=now_ns // 1_000_000,
    )
    return Finish(claim=claim, letter=(claim.id, envelope))
