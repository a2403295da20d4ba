"""What is called after a task has ended: hooks of yours, which must not harm the worker."""

from __future__ import annotations

import logging

from machine.execution import Failed, Hooks, Outcome
from machine.wire.signature import Signature

_log = logging.getLogger("machine.worker")


def tell(hooks: Hooks, signature: Signature, outcome: Outcome) -> None:
    """Call the hooks that are meant for after a task; what they raise is logged."""
    try:
        if hooks.post_task is not None:
            hooks.post_task(signature)
        if hooks.on_error is not None and isinstance(outcome, Failed):
            hooks.on_error(outcome.error, signature)
    except Exception:  # noqa: BLE001 - yours, and the task has ended already
        _log.exception("a hook failed after task %s %s", signature.name, signature.uuid)
