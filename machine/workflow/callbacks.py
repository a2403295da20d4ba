"""
What follows an outcome: callbacks, the next attempt, a chord's callback.

Pure functions from values to signatures. Called again with the same values they return
the same signatures, ids included: a worker that repeats a step, because an answer was
lost or another worker died, sends the same messages, and no task runs twice for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID, uuid5

from machine.execution import Again, Failed, Outcome, Succeeded
from machine.wire.headers import ATTEMPT_HEADER, attempt_of, inherit_headers
from machine.wire.signature import Arg, Signature, TaskResult, TaskState, copy_signature

#: Root of the ids given to callbacks that came without one.
_NAMESPACE = UUID("9f2d7a54-6d0c-5a1e-8e57-3c1b0f4a6d21")
#: Characters that the collected errors of a chord's members may have together.
_MOST_FAILURES_TEXT = 6000


def choose_follow_ups(signature: Signature, outcome: Outcome) -> list[Signature]:
    """
    Return what is to be sent after this outcome, in order; the callbacks are copied.

    Success sends each ``on_success`` with the results *appended* to its
    arguments, unless the finished ``signature`` is immutable (the flag of the
    parent decides, as in Machinery). Failure sends each ``on_error`` with the
    error text *prepended*. A retry sends nothing.

    A callback without an id gets ``task_`` and a uuid5 of its parent's id, its
    kind and its place; an empty ``routing_key`` stays empty.
    """
    if isinstance(outcome, Succeeded):
        results = [] if signature.immutable else list(_to_args(outcome.results))
        return [
            _make_callback(signature, "on_success", index, [*callback.args, *results])
            for index, callback in enumerate(signature.on_success)
        ]
    if isinstance(outcome, Failed):
        error = Arg("string", outcome.error)
        return [
            _make_callback(signature, "on_error", index, [error, *callback.args])
            for index, callback in enumerate(signature.on_error)
        ]
    return []


def _make_callback(parent: Signature, kind: str, index: int, args: list[Arg]) -> Signature:
    source = parent.on_success if kind == "on_success" else parent.on_error
    callback = _copy_to_send(source[index])
    callback.args = args
    inherit_headers(parent, callback)
    if not callback.uuid:
        callback.uuid = f"task_{uuid5(_NAMESPACE, f'{parent.uuid} {kind} {index}')}"
    return callback


def _copy_to_send(signature: Signature) -> Signature:
    copy = copy_signature(signature)
    # Machinery writes {} when it sends, and null in what is still nested.
    copy.headers = copy.headers or {}
    return copy


def _to_args(results: Sequence[TaskResult] | None) -> Iterator[Arg]:
    return (Arg(result.type, result.value) for result in results or ())


def list_never_run(signature: Signature) -> list[Signature]:
    """
    Return the tasks that were to follow this one's success, and what was to follow theirs.

    Once it has failed for good, nobody will send them. They are copies, with the
    ids they would have had; chords they are members of are the caller's to count.
    """
    below: list[Signature] = []
    todo = [signature]
    for parent in todo:  # grows meanwhile; chains may nest deeper than Python's stack
        for index, callback in enumerate(parent.on_success):
            todo.append(_make_callback(parent, "on_success", index, callback.args))
            below.append(todo[-1])
    return below


def make_retry(signature: Signature, retry: Again, now_ns: int) -> Signature:
    """
    Return the message of the next attempt: same id, same group, same callbacks.

    A counted retry uses up one of ``retry_count`` and waits the next Fibonacci
    number of seconds after ``retry_timeout``, which it also becomes; its own
    ``delay_s`` is not asked. An uncounted one (`RetryLater`) waits ``delay_s``
    and leaves both.

    Args:
        signature: The message that ran.
        retry: How it is to run again.
        now_ns: Unix nanoseconds the delay counts from.
    """
    again = copy_signature(signature)
    again.headers = {**(again.headers or {}), ATTEMPT_HEADER: str(attempt_of(signature) + 1)}
    if retry.counted:
        again.retry_count = max(0, signature.retry_count - 1)
        again.retry_timeout = fibonacci_next(signature.retry_timeout)
        again.eta_ns = now_ns + again.retry_timeout * 1_000_000_000
    else:
        again.eta_ns = now_ns + round(retry.delay_s * 1e9)
    return again


def make_chord_callback(
    callback: Signature, states: Sequence[TaskState | None], uuids: Sequence[str] = ()
) -> Signature | Failed:
    """
    Return the callback to send once all members ended, or why it cannot run.

    Its arguments are its own, then all members' results in group order, unless
    the callback itself is immutable.

    Args:
        callback: As it stands in the members' ``chord_callback``.
        states: The members' states in group order; ``None`` where none is kept.
        uuids: The members' ids in the same order, to name a missing one by.

    Returns:
        A copy of the callback; or the failures of the members, collected, else
        what is wrong with the first one that has no usable result.
    """
    failed = [state for state in states if state is not None and state.is_failure]
    if len(failed) == 1:
        return Failed(f"chord member {failed[0].task_uuid} failed: {failed[0].error}")
    if failed:
        # A state's error is cut at 8 KiB: each failure gets its share of what is kept.
        most = max(20, _MOST_FAILURES_TEXT // len(failed))
        each = "; ".join(f"{state.task_uuid}: {state.error[:most]}" for state in failed)
        return Failed(f"{len(failed)} of {len(states)} chord members failed: {each}")
    ready = _copy_to_send(callback)
    for index, state in enumerate(states):
        if state is None:
            member = uuids[index] if index < len(uuids) else f"{index + 1} of {len(states)}"
            return Failed(f"chord member {member} has no result any more")
        if not state.is_success:
            return Failed(f"chord member {state.task_uuid} has not ended: it is {state.state}")
        if not callback.immutable:
            ready.args.extend(_to_args(state.results))
    if not ready.uuid:
        members = " ".join(state.task_uuid for state in states if state is not None)
        ready.uuid = f"chord_{uuid5(_NAMESPACE, members)}"
    return ready


def fibonacci_next(start: int) -> int:
    """
    Return the first Fibonacci number greater than ``start``, in seconds.

    0→1 1→2 2→3 3→5 4→5 5→8: delays from 0 are 1, 2, 3, 5, 8, 13 …
    Source: Machinery's ``retry.FibonacciNext``.
    """
    a, b = 0, 1
    while b <= start:
        a, b = b, a + b
    return b
