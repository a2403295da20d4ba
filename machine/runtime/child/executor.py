"""
Runs one task and returns its `Outcome`.

Nothing here raises, and nothing here writes: the outcome is a value that
`settle` turns into one change of state. It is the same in a thread, on the main
thread, and on an event loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from machine.errors import MachineError, RetryLater, SignatureError, WireError
from machine.execution import Again, Failed, Hooks, Outcome, Succeeded, TaskContext, running_task
from machine.registry.task import Task
from machine.wire import gotypes
from machine.wire.signature import Signature, TaskResult
from machine.wire.states import CANCELED

#: What `_bind` may return instead of arguments. Kept: to make a union for each task costs more
#: than the check.
_REFUSED = (Failed, Again)
#: The longest delay a task may ask for, seconds: a year.
_MOST_DELAY_S = 31_536_000.0
#: Makes a `TaskResult` of a pair; faster than the named tuple's own constructor.
_result = partial(tuple.__new__, TaskResult)
#: The hook of this name.
PreTask = Callable[[Signature], None] | None
_log = logging.getLogger("machine.task")
_worker_log = logging.getLogger("machine.worker")


def execute(task: Task[..., Any], context: TaskContext, pre_task: PreTask = None) -> Outcome:
    """
    Run a synchronous task and return its outcome.

    Args:
        task: The registered task of the signature's name.
        context: This run, with its message; arguments are untrusted until bound here.
        pre_task: Called first; what it raises counts as raised by the task.
    """
    signature = context.signature
    bound = _bind(task, context)
    if isinstance(bound, _REFUSED):
        return bound
    token = running_task.set(context)
    try:
        if pre_task is not None:
            pre_task(signature)
        return outcome_of_value(task.fn(*bound[0], **bound[1]), task.parameters.result_type)
    except BaseException as error:  # noqa: BLE001 - a task may raise anything, and the worker must go on
        return outcome_of_error(error, context)
    finally:
        running_task.reset(token)


async def aexecute(task: Task[..., Any], context: TaskContext, pre_task: PreTask = None) -> Outcome:
    """Run an ``async def`` task on the running loop; see `execute`."""
    signature = context.signature
    bound = _bind(task, context)
    if isinstance(bound, _REFUSED):
        return bound
    token = running_task.set(context)
    try:
        if pre_task is not None:
            pre_task(signature)
        return outcome_of_value(await task.fn(*bound[0], **bound[1]), task.parameters.result_type)
    except BaseException as error:  # noqa: BLE001 - as above
        return outcome_of_error(error, context)
    finally:
        running_task.reset(token)


def _bind(
    task: Task[..., Any], context: TaskContext
) -> tuple[list[Any], dict[str, Any]] | Failed | Again:
    try:
        return task.bind(context.signature.args)
    except WireError as error:
        # Machinery does not retry what can never be converted.
        return Failed(f"Reflect task args error: {error}")
    except TypeError as error:
        return outcome_of_error(error, context)


def outcome_of_value(value: Any, declared: str | None = None) -> Outcome:
    """
    Return the outcome of a returned value.

    ``None`` is no result, a tuple is several. A value that JSON cannot hold fails
    the task, because its result cannot be stored.

    Args:
        value: What the task returned.
        declared: The Go type of its return annotation. A value that fits gets this type,
            so that a task ``-> float`` that returns 1 sends ``float64`` to a Go task
            behind it, which would refuse ``int64``.
    """
    try:
        if value is None:
            return Succeeded([])
        if type(value) is Succeeded:  # from `plan.gather`, which passes results on
            return value
        if type(value) is tuple:
            return Succeeded([_result(gotypes.infer_result(one)) for one in value])
        return Succeeded([_typed_result(value, declared)])
    except (MachineError, ValueError, TypeError, RecursionError) as error:
        return Failed(f"The task's result cannot be stored: {error}")


def _typed_result(value: Any, declared: str | None) -> TaskResult:
    """Return a value with its declared type if it fits, else with its own."""
    if declared is not None and declared != "[]byte":
        with contextlib.suppress(SignatureError):  # the annotation is wrong; the value counts
            return _result((declared, gotypes.coerce(declared, value, "the result")))
    return _result(gotypes.infer_result(value))


def outcome_of_error(error: BaseException, context: TaskContext) -> Failed | Again:
    """Return the outcome of an exception: a retry, or a failure, also by cancellation."""
    signature = context.signature
    context.error_type = type(error).__name__
    if context.canceled:
        return Failed(CANCELED)
    if isinstance(error, RetryLater):
        if not error.delay_s <= _MOST_DELAY_S:  # written so that it refuses NaN too
            return Failed(
                f"RetryLater({error.delay_s:g}): the delay must be at most {_MOST_DELAY_S:.0f} s"
            )
        return Again(max(0.0, error.delay_s), error.message, counted=False)
    text = _error_text(error)
    if signature.retry_count > 0:
        return Again(0.0, text, counted=True)
    _log.error("task %s %s failed: %s", signature.name, signature.uuid, text, exc_info=error)
    return Failed(text)


def _error_text(error: BaseException) -> str:
    """Return the error's text, like Go's ``err.Error()``; if it is empty, its type's name."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - __str__ is the task's code too
        text = ""
    return text or type(error).__name__


def call_after_hooks(hooks: Hooks, signature: Signature, outcome: Outcome) -> None:
    """Call `post_task` and, after a failure, `on_error`; log what they raise."""
    try:
        if hooks.post_task is not None:
            hooks.post_task(signature)
        if hooks.on_error is not None and isinstance(outcome, Failed):
            hooks.on_error(outcome.error, signature)
    except Exception:  # noqa: BLE001 - a hook is your code, and the task has ended already
        _worker_log.exception("a hook failed after task %s %s", signature.name, signature.uuid)
