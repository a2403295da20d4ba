"""
One signature -> one Outcome.

Calls your function and says what it came to. It never raises and never
writes; the same in a thread, inline, or on an event loop.
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

#: What `_bind` gives instead of arguments; a union made anew costs more than asking it.
_REFUSED = (Failed, Again)
#: The longest delay a task may ask for, seconds: a year.
_MOST_DELAY_S = 31_536_000.0
#: Makes a `TaskResult` of a pair without the named tuple's own constructor, which takes longer.
_result = partial(tuple.__new__, TaskResult)
#: `Hooks.pre_task`.
Before = Callable[[Signature], None] | None
_log = logging.getLogger("machine.task")
_worker_log = logging.getLogger("machine.worker")


def execute(task: Task[..., Any], context: TaskContext, before: Before = None) -> Outcome:
    """
    Run a synchronous task and return what it came to.

    Args:
        task: The registered task of the signature's name.
        context: This run, with its message; arguments are untrusted until bound here.
        before: Called first (`Hooks.pre_task`).
    """
    signature = context.signature
    bound = _bind(task, context)
    if isinstance(bound, _REFUSED):
        return bound
    token = running_task.set(context)
    try:
        if before is not None:
            before(signature)
        return succeeded(task.fn(*bound[0], **bound[1]), task.parameters.result_type)
    except BaseException as error:  # noqa: BLE001 - a task may raise anything; none of it is ours
        return ended_by(error, context)
    finally:
        running_task.reset(token)


async def aexecute(task: Task[..., Any], context: TaskContext, before: Before = None) -> Outcome:
    """Run an ``async def`` task on the running loop; see `execute`."""
    signature = context.signature
    bound = _bind(task, context)
    if isinstance(bound, _REFUSED):
        return bound
    token = running_task.set(context)
    try:
        if before is not None:
            before(signature)
        return succeeded(await task.fn(*bound[0], **bound[1]), task.parameters.result_type)
    except BaseException as error:  # noqa: BLE001 - as above
        return ended_by(error, context)
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
        return ended_by(error, context)


def succeeded(value: Any, declared: str | None = None) -> Outcome:
    """
    Return the outcome of a returned value.

    Nothing, one value, or a tuple of several. A value that JSON cannot hold
    fails the task: its result could not be kept.

    Args:
        value: What the task returned.
        declared: The Go type of its return annotation, which a value that fits it
            gets: a Go task behind it takes ``float64`` for one, and no ``int64``.
    """
    try:
        if value is None:
            return Succeeded([])
        if type(value) is Succeeded:  # as from `nesting.gather`
            return value
        if type(value) is tuple:
            return Succeeded([_result(gotypes.infer_result(one)) for one in value])
        return Succeeded([_typed(value, declared)])
    except (MachineError, ValueError, TypeError, RecursionError) as error:
        return Failed(f"The task's result cannot be stored: {error}")


def _typed(value: Any, declared: str | None) -> TaskResult:
    """Return a value with its declared type where it fits, else with its own."""
    if declared is not None and declared != "[]byte":
        with contextlib.suppress(SignatureError):  # it returns something else than it says
            return _result((declared, gotypes.coerce(declared, value, "the result")))
    return _result(gotypes.infer_result(value))


def ended_by(error: BaseException, context: TaskContext) -> Failed | Again:
    """Return the outcome of an exception: canceled, later, again, or failed."""
    signature = context.signature
    context.error_type = type(error).__name__
    if context.canceled:
        return Failed(CANCELED)
    if isinstance(error, RetryLater):
        if not error.delay_s <= _MOST_DELAY_S:  # so that NaN is too much as well
            return Failed(
                f"RetryLater({error.delay_s:g}): the delay must be at most {_MOST_DELAY_S:.0f} s"
            )
        return Again(max(0.0, error.delay_s), error.message, counted=False)
    text = _text(error)
    if signature.retry_count > 0:
        return Again(0.0, text, counted=True)
    _log.error("task %s %s failed: %s", signature.name, signature.uuid, text, exc_info=error)
    return Failed(text)


def _text(error: BaseException) -> str:
    """Return the error's own text, as Go's ``err.Error()``; its type's name where it has none."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - its __str__ is the task's code too
        text = ""
    return text or type(error).__name__


def call_after_hooks(hooks: Hooks, signature: Signature, outcome: Outcome) -> None:
    """Call the hooks that are meant for after a task; what they raise is logged."""
    try:
        if hooks.post_task is not None:
            hooks.post_task(signature)
        if hooks.on_error is not None and isinstance(outcome, Failed):
            hooks.on_error(outcome.error, signature)
    except Exception:  # noqa: BLE001 - yours, and the task has ended already
        _worker_log.exception("a hook failed after task %s %s", signature.name, signature.uuid)
