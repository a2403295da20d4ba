"""
What a running task may know about its own run, and say about it.

Whoever runs a task makes its context and sets it; `registry.current_task`
hands it to the task. Nothing here sends or writes: the worker looks at what
was said, and tells what it learned, by the context's own fields.
"""

from __future__ import annotations

import math
from contextvars import ContextVar

from machine.errors import SignatureError, TaskCanceled
from machine.wire.headers import attempt
from machine.wire.signature import Progress, Signature


class TaskContext:
    """
    One run of one task.

    Attributes:
        signature: The message it was started by; read it, do not change it.
        fence: Grows with every claim of a queue; a store that keeps the highest
            fence it saw can refuse writes of a run that was given up. 0 when eager.
        canceled: Whether somebody asked for this task to be canceled; a worker
            looks about once a second. Its result will not be kept.
        said: The progress last reported, or ``None``.
        error_type: The name of the last error's type, "" where it raised none.
        trace: The ids of this run's trace and span, in hexadecimal; ``None`` where not traced.
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
        return attempt(self.signature)

    def progress(self, fraction: float, note: str = "") -> None:
        """
        Say how far this task is; callers see it in the task's state.

        Only the last word counts, and it is shown a few times a second at most.

        Args:
            fraction: 0 to 1.
            note: A word about it, for people; 1 KiB of it is kept.

        Raises:
            SignatureError: The fraction is not between 0 and 1.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise SignatureError(f"progress {fraction!r} is out of bounds; give 0 to 1.")
        self.said = Progress(float(fraction), str(note))

    def raise_if_canceled(self) -> None:
        """Raise `TaskCanceled` where somebody asked for this task to be canceled."""
        if self.canceled:
            raise TaskCanceled(uuid=self.signature.uuid, task_name=self.signature.name)


#: The task that runs in this context; whoever runs tasks sets it and resets it.
running_task: ContextVar[TaskContext | None] = ContextVar("running_task", default=None)
