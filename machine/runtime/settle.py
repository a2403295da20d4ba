"""
Outcomes -> moves: state, follow-ups, chord member and acknowledgement as one step.

Pure: what is written, and whether the claim is still ours, is decided by the
script that carries the move out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from machine.errors import MachineError, SignatureError, WireError
from machine.execution import Again as RetryOutcome
from machine.execution import Failed, Outcome, Succeeded
from machine.ports.moves import Claim, Finish, Member, Retry, Start
from machine.sending.messages import MessageMaker, MessageRules
from machine.wire.headers import attempt_of, inherit_headers
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
class Terms(MessageRules):
    """
    What settling needs to know of the settings: those of messages, and two more.

    Attributes:
        max_result_bytes: A larger final state fails the task instead.
        shared_groups: Whether members of a group may run on Go workers too.
    """

    max_result_bytes: int = 1_048_576
    shared_groups: bool = False


@dataclass(slots=True)
class Settled:
    """
    What an outcome calls for.

    Attributes:
        move: The one change of state.
        state: What the task's state becomes.
        unkept: States that the move does not carry, because they live in another
            store: to be recorded there before the move is made.
    """

    move: Finish | Retry
    state: TaskState
    unkept: list[TaskState] = field(default_factory=list)


def settle(
    claim: Claim, signature: Signature, outcome: Outcome, terms: Terms, now_ns: int
) -> Settled:
    """
    Return the one change of state that this outcome calls for. Never raises.

    Args:
        claim: What it ran under; the move shows it.
        signature: The message that ran.
        outcome: What it came to.
        terms: See `Terms`.
        now_ns: Unix nanoseconds that retries count from.

    What cannot be carried on (a result or callback too large, a callback to a
    queue that is not allowed, a retry too far away) is a failure that says so.
    """
    try:
        if isinstance(outcome, RetryOutcome):
            return _again(claim, signature, outcome, terms, now_ns)
        return _ended(claim, signature, outcome, terms, now_ns)
    except MachineError as error:
        failed = Failed(str(error))
    try:
        return _ended(claim, signature, failed, terms, now_ns)
    except MachineError:  # its error callbacks cannot be sent either
        lonely = signature.replace(on_error=[])
        return _ended(claim, lonely, failed, terms, now_ns)


def _ended(
    claim: Claim, signature: Signature, outcome: Succeeded | Failed, terms: Terms, now_ns: int
) -> Settled:
    move, state = _finish(claim, signature, outcome, terms)
    settled = Settled(move, state)
    pending: list[TaskState] = []
    lost: list[TaskState] = []
    if isinstance(outcome, Failed) and signature.on_success:
        lost = _let_fall(move, signature, outcome, terms, now_ns)
    if signature.on_success or signature.on_error:
        callbacks = choose_follow_ups(signature, outcome)
        move.follow_ups, pending = MessageMaker(terms).make_follow_ups(callbacks, now_ns)
    if not terms.keeps_states and signature.uuid:
        settled.unkept = [*pending, *lost, state]
    return settled


def _let_fall(
    move: Finish, signature: Signature, failed: Failed, terms: Terms, now_ns: int
) -> list[TaskState]:
    """Have a failure's move tell of the tasks that will never run; return their states."""
    reason = not_run(signature, failed.error)
    states, members = fallen(list_never_run(signature), reason, move.claim.queue, terms, now_ns)
    move.members = [*move.members, *members]
    if terms.keeps_states:
        move.fallen = [(state.task_uuid, encode_state(state)) for state in states]
    return states


def not_run(signature: Signature, error: str) -> str:
    """Return why what was to follow a failed task never runs; the first cause stays the one."""
    if error.startswith(_NOT_RUN):
        return error
    return f"{_NOT_RUN}{signature.name} {signature.uuid} failed: {error}"


def fallen(
    signatures: Sequence[Signature], reason: str, queue: str, terms: Terms, now_ns: int
) -> tuple[list[TaskState], list[Member]]:
    """
    Return what is to be recorded of tasks that will never run.

    Args:
        signatures: The tasks.
        reason: What their states say.
        queue: One that this worker consumes.
        terms: See `Terms`.
        now_ns: Unix nanoseconds, the states' creation time.

    Returns:
        Their FAILURE states, and the places in chords that end with them.
    """
    states = [_failure(signature, reason, now_ns) for signature in signatures if signature.uuid]
    members = [member_of(signature, queue, terms) for signature in signatures]
    return states, [member for member in members if member is not None]


def _failure(signature: Signature, error: str, now_ns: int) -> TaskState:
    return TaskState(
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.FAILURE,
        error=error,
        created_at=format_time(now_ns),
    )


def _finish(
    claim: Claim, signature: Signature, outcome: Succeeded | Failed, terms: Terms
) -> tuple[Finish, TaskState]:
    state, head = _final(signature, outcome, terms)
    move = Finish(claim=claim)
    if signature.chord_callback is not None:
        member = member_of(signature, claim.queue, terms)
        move.members = [member] if member is not None else []
    if signature.uuid and terms.keeps_states:
        move.state_key, move.state = signature.uuid, head
    return move, state


def canceled(claim: Claim, terms: Terms, now_ns: int) -> Settled:
    """Return how a claim ends whose task was canceled while it ran, whatever it came to."""
    signature = decode_signature(claim.payload, delayed_key=terms.delayed_key)
    return settle(claim, signature, Failed(CANCELED), terms, now_ns)


def refused(move: Finish | Retry, terms: Terms, now_ns: int) -> Finish:
    """
    Return what to do instead of a move that was refused for a key that holds something else.

    First its task fails and the message is buried; if that is refused too, the
    state's own key is the one, and the message is buried alone.
    """
    reason = "the key of its state, or the queue of its next task, holds something else"
    burial = buried(move.claim, reason, now_ns)
    if isinstance(move, Finish) and move.letter is not None:
        return burial
    try:
        signature = decode_signature(move.claim.payload, delayed_key=terms.delayed_key)
    except WireError:
        return burial
    failed, _ = _finish(move.claim, signature, Failed(reason), terms)
    return replace(burial, state_key=failed.state_key, state=failed.state, members=failed.members)


def started(
    claim: Claim, signature: Signature, terms: Terms, progress: Progress | None = None
) -> list[Start]:
    """Return the move that shows a task as running, if its state is kept beside the queue."""
    if not terms.keeps_states or not signature.uuid:
        return []
    state = TaskState(
        task_uuid=signature.uuid,
        task_name=signature.name,
        state=State.STARTED,
        progress=progress,
    )
    return [Start(claim=claim, state_key=signature.uuid, state=encode_state_head(state))]


def _final(
    signature: Signature, outcome: Succeeded | Failed, terms: Terms
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
    if len(head) > terms.max_result_bytes:
        raise SignatureError(
            f"The result of task '{signature.name}' is too large: {len(head)} bytes, at most "
            f"{terms.max_result_bytes} (max_result_bytes). Store it elsewhere and return its place."
        )
    return state, head


def _again(
    claim: Claim, signature: Signature, outcome: RetryOutcome, terms: Terms, now_ns: int
) -> Settled:
    again = make_retry(signature, outcome, now_ns)
    # A wrong list would take it away from the worker that knows it: back to where it came from.
    again.routing_key = again.routing_key or claim.queue
    state = TaskState(
        task_uuid=signature.uuid,
        state=State.RETRY,
        task_name=signature.name,
        error=outcome.error,
    )
    run = Attempt(attempt_of(signature), outcome.error, format_time(now_ns))
    due_ns = again.eta_ns if again.eta_ns is not None and again.eta_ns > now_ns else 0
    kept = terms.keeps_states and signature.uuid != ""
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


def member_of(signature: Signature, queue: str, terms: Terms) -> Member | None:
    """
    Return a task's place in its chord, or ``None`` where it has none.

    Args:
        signature: The task.
        queue: One that this worker consumes: somebody looks there if it dies.
        terms: See `Terms`.
    """
    callback = signature.chord_callback
    if callback is None or not signature.group_uuid or signature.group_task_count < 1:
        return None
    # What Go workers share is not counted, so that it needs no place in common.
    callback = copy_signature(callback)
    inherit_headers(signature, callback)
    home = queue if terms.shared_groups else callback.routing_key or terms.default_queue
    return Member(
        home,
        signature.group_uuid,
        signature.uuid,
        0 if terms.shared_groups else signature.group_task_count,
        encode_signature(callback),
        queue,
    )


def buried(claim: Claim, reason: str, now_ns: int) -> Finish:
    """Return the move that ends a claim as a dead letter, named after the claim."""
    envelope = encode_letter(
        reason=reason,
        payload=claim.payload,
        crash_count=claim.crash_count,
        worker_id=claim.worker_id,
        buried_ms=now_ns // 1_000_000,
    )
    return Finish(claim=claim, letter=(claim.id, envelope))
