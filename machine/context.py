"""
What a running task may know about its own run, and say about it.

Whoever runs a task makes its context and sets it; `registry.current_task`
hands it to the task. Nothing here sends or writes.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from machine.signature import Signature


class TaskContext(NamedTuple):
    """
    What a running task may know about its own run.

    Attributes:
        signature: The message it was started by; read it, do not change it.
        attempt: 1 on the first run, one more on each retry.
        fence: Grows with every claim of a queue; a store that keeps the highest
            fence it saw can refuse writes of a run that was given up. 0 when eager.
    """

    signature: Signature
    attempt: int = 1
    fence: int = 0


#: The task that runs in this context; whoever runs tasks sets it and resets it.
running_task: ContextVar[TaskContext | None] = ContextVar("running_task", default=None)
