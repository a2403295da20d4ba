"""
Every error that a user can meet.

MachineError
├── ConfigError (ValueError)            a setting is unknown, mistyped or out of bounds
├── SignatureError (ValueError)         a signature cannot be built or bound to its task
│   └── TaskNotRegistered (LookupError)
├── WireError (ValueError)              bytes that are not a message
├── BrokerUnavailable (ConnectionError) Redis did not answer (the cause is kept)
├── BrokerRefused                       Redis answered with an error that a retry cannot cure
├── DuplicateTask                       a task with the same unique key is there already
├── QueueFull                           the queue is at its limit, or Redis is out of memory
├── LeaseLost                           reserved: another worker holds the task; never raised today
├── TaskFailed                          raised by ``AsyncResult.get()``: the task's own error text
│   ├── TaskCanceled                    somebody canceled the task
│   └── TaskExpired                     the task was not started in time
├── ResultNotFound (LookupError)        no state is kept under this id
└── ResultTimeout (TimeoutError)        no final state within the time given

Exception
└── RetryLater                          raised by a task to run again; no error, so no MachineError

A class's docstring is the text of an error that was made without one.
"""

from __future__ import annotations

from datetime import timedelta


class MachineError(Exception):
    """Something went wrong in the machine."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigError(MachineError, ValueError):
    """A setting is unknown, mistyped or out of bounds."""


class SignatureError(MachineError, ValueError):
    """A signature cannot be built or bound to its task."""


class TaskNotRegistered(SignatureError, LookupError):
    """No task is registered under this name."""


class WireError(MachineError, ValueError):
    """These bytes are not a message."""


class BrokerUnavailable(MachineError, ConnectionError):
    """Redis did not answer."""


class BrokerRefused(MachineError):
    """Redis refused the command; trying again cannot help."""


class QueueFull(MachineError):
    """The queue is at its limit."""


class DuplicateTask(MachineError):
    """
    A task with the same unique key is there already.

    Attributes:
        uuid: The id of the task that has the key.
    """

    def __init__(self, message: str, *, uuid: str = "") -> None:
        super().__init__(message)
        self.uuid = uuid


class LeaseLost(MachineError):
    """Someone else holds the task now."""


class TaskFailed(MachineError):
    """
    The task failed; the text is the error it failed with, unchanged.

    Attributes:
        uuid: The id of the task that failed.
        task_name: Its registered name, or "" if its state does not hold it.
    """

    def __init__(self, message: str, *, uuid: str = "", task_name: str = "") -> None:
        super().__init__(message)
        self.uuid = uuid
        self.task_name = task_name


class TaskCanceled(TaskFailed):
    """
    The task was canceled, before it ran or while it did.

    Raised by ``get()``, and inside a task by ``current_task().raise_if_canceled()``.
    """

    def __init__(self, message: str = "canceled", *, uuid: str = "", task_name: str = "") -> None:
        super().__init__(message, uuid=uuid, task_name=task_name)


class TaskExpired(TaskFailed):
    """The task expired before a worker could start it, and did not run."""


class ResultNotFound(MachineError, LookupError):
    """No state is kept under this id: it never existed, or it expired."""


class ResultTimeout(MachineError, TimeoutError):
    """Timeout reached"""


class RetryLater(Exception):
    """
    Raise it in a task to run the same task again after a delay.

    It does not count against ``RetryCount`` (Machinery's ErrRetryTaskLater).

    Args:
        delay_s: Seconds until the next run, or a ``timedelta``; ≤ 0 means at once.
        message: Why, for the log.
    """

    def __init__(self, delay_s: float | timedelta = 0.0, message: str = "try again later") -> None:
        self.delay_s = delay_s.total_seconds() if isinstance(delay_s, timedelta) else float(delay_s)
        self.message = message
        super().__init__(f"Task error: {message} Will retry in: {self.delay_s:g}s")
