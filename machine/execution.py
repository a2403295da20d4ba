"""
One run of a task: its context, its outcome, and the user's hooks around it.

The executor makes a `TaskContext`, calls the task, and returns an `Outcome`.
`runtime.settle` makes of it the one change of state that is written to Redis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from machine.errors import MachineError, SignatureError, TaskCanceled
from machine.wire.headers import attempt_of
from machine.wire.signature import Progress, Signature, TaskResult


class Succeeded(NamedTuple):
    """The task returned; ``results`` are its values with their Go types, in order."""

    results: list[TaskResult]


class Again(NamedTuple):
    """
    The task is to run again.

    Attributes:
        delay_s: Seconds from now, ≥ 0.
        error: The text of the error, or of the `RetryLater`.
        counted: Whether this uses up one of the signature's retries: an error does, and
            `RetryLater` does not.
    """

    delay_s: float
    error: str
    counted: bool


class Failed(NamedTuple):
    """The task failed for good with this text."""

    error: str


Outcome = Succeeded | Again | Failed


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """
    Functions of yours, each called on the thread that runs the task.

    Attributes:
        pre_consume: Called before messages are taken. If it returns false, none are taken,
            and it is called again after 50 ms. Machinery's SetPreConsumeHandler.
        pre_task: Called with the signature before its task runs; an error in it counts
            as an error of the task.
        post_task: Called with the signature after its task has ended in any way.
        on_error: Called with the error's text and the signature when a task failed
            for good; not for a retry.

    An error in one of the last two is logged and has no other effect.
    """

    pre_consume: Callable[[], bool] | None = None
    pre_task: Callable[[Signature], None] | None = None
    post_task: Callable[[Signature], None] | None = None
    on_error: Callable[[str, Signature], None] | None = None


class TaskContext:
    """
    One run of one task.

    Attributes:
        signature: The message it was started by; read it, do not change it.
        fence: A number that grows with every claim of a queue. A store of yours that keeps the
            highest fence it saw can refuse writes of a run that lost its task.
        canceled: Whether somebody asked for this task to be canceled. A worker looks about
            once a second. The result of a canceled task is not kept.
        said: The progress last reported, or ``None``.
        error_type: The name of the last error's type, "" if there was none.
        trace: The ids of this run's trace and span, in hexadecimal; ``None`` if it is not traced.
    """

    __slots__ = ("canceled", "error_type", "fence", "said", "signature", "trace")

    def __init__(self, signature: Signature, fence: int = 0) -> None:
        self.signature = signature
        self.fence = fence
        self.canceled = False
        self.said: Progress | None = None
        self.error_type = ""
        self.trace: tuple[str, str] | None = None

    @property
    def attempt(self) -> int:
        """Return 1 on the first run, one more on each retry."""
        return attempt_of(self.signature)

    def progress(self, fraction: float, note: str = "") -> None:
        """
        Report how far this task is; callers see it in the task's state.

        It is cheap: the last report is written a few times a second at most.

        Args:
            fraction: 0 to 1.
            note: Text for people; 1 KiB of it is kept.

        Raises:
            SignatureError: The fraction is not between 0 and 1.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise SignatureError(f"progress {fraction!r} is out of bounds; give 0 to 1.")
        self.said = Progress(float(fraction), str(note))

    def raise_if_canceled(self) -> None:
        """Raise `TaskCanceled` if somebody asked for this task to be canceled."""
        if self.canceled:
            raise TaskCanceled(uuid=self.signature.uuid, task_name=self.signature.name)


#: The task that runs in this context; executors set it before the call and reset it after.
running_task: ContextVar[TaskContext | None] = ContextVar("running_task", default=None)


def current_task() -> TaskContext:
    """
    Return the context of the task that calls this.

    Raises:
        MachineError: No task runs here.
    """
    context = running_task.get()
    if context is None:
        raise MachineError(
            "No task is running here; current_task() answers only inside a task, and not in "
            "threads it starts itself."
        )
    return context
