"""
What a worker calls around your tasks, if you say so.

Put one `Hooks` beside your tasks, in a module of ``tasks_modules``; a worker
finds it there as it finds the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from machine.wire.signature import Signature


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """
    Functions of yours, each called on the thread that runs the task.

    Attributes:
        pre_consume: Asked before messages are taken; false takes none for now
            (asked again 20 times a second). Machinery's SetPreConsumeHandler.
        pre_task: Called with the signature before its task runs; what it raises
            counts as raised by the task.
        post_task: Called with the signature after its task has ended, well or not.
        on_error: Called with the error's text and the signature when a task failed
            for good; not for a retry.

    What the last two raise is logged, and changes nothing.
    """

    pre_consume: Callable[[], bool] | None = None
    pre_task: Callable[[Signature], None] | None = None
    post_task: Callable[[Signature], None] | None = None
    on_error: Callable[[str, Signature], None] | None = None
