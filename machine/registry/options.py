"""
What `@task` can be told about a function, and the headers that this puts into its messages.

An option of `@task` holds for every message of the task; the options of one
sending are in `workflow.options`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypedDict

from machine.errors import SignatureError
from machine.wire.headers import (
    ON_CRASH_HEADER,
    ON_DUPLICATE_HEADER,
    UNIQUE_HEADER,
    OnDuplicate,
    check_on_duplicate,
    check_unique_key,
)
from machine.wire.messages import encode_signature
from machine.wire.signature import JSON, Arg, Signature
from machine.workflow import options as sending_options

#: True makes a key of a call's name and arguments; a function makes it of the arguments.
UniqueBy = bool | Callable[..., str]
OnCrash = Literal["retry", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """
    The options of ``@task``. `Task` checks them, because its errors name the task.

    Attributes:
        name: Its name in messages; "" is the function's own name.
        queue: The queue of its messages; "" is the default queue.
        retry_count: Runs allowed after the first one fails; 0 or more.
        retry_timeout: Seconds, 0 or more; the first retry waits the next Fibonacci number.
        on_crash: What happens when a worker dies while it runs the task: "retry" runs the task
            again, so it may run twice; "fail" records a failure, so it runs at most once.
        expires: Seconds that a message may wait before it is too late to start; ``None`` is no
            limit.
        unique: Allow one at a time: True for all calls with the same arguments; or a
            function of the arguments that returns a key, as ``lambda user, **_: f"u:{user}"``.
        on_duplicate: What sending another one does meanwhile; see `TypedSignature.options`.
    """

    name: str = ""
    queue: str = ""
    retry_count: int = 0
    retry_timeout: int = 0
    on_crash: OnCrash = "retry"
    expires: float | timedelta | None = None
    unique: UniqueBy = False
    on_duplicate: OnDuplicate = "join"


class TaskKeywords(TypedDict, total=False):
    """The fields of `TaskOptions` again: type checkers take keywords from no dataclass."""

    name: str
    queue: str
    retry_count: int
    retry_timeout: int
    on_crash: OnCrash
    expires: float | timedelta | None
    unique: UniqueBy
    on_duplicate: OnDuplicate


class TaskHeaders:
    """
    The headers that a task's options put into its messages.

    Args:
        name: The task's name.
        options: Its options.

    Raises:
        SignatureError: An option is out of bounds.
    """

    def __init__(self, name: str, options: TaskOptions) -> None:
        self._name = name
        self._unique = options.unique
        self._always: dict[str, JSON] = {}
        if options.on_crash not in ("retry", "fail"):
            raise SignatureError(
                f"Task {name!r}: on_crash is {options.on_crash!r}; give 'retry' or 'fail'."
            )
        if not isinstance(options.unique, bool) and not callable(options.unique):
            raise SignatureError(
                f"Task {name!r}: unique is {options.unique!r}; give True, or a function that makes "
                "a text of the task's arguments."
            )
        if options.on_crash == "fail":
            self._always[ON_CRASH_HEADER] = "fail"
        try:
            check_on_duplicate(options.on_duplicate)
            if options.expires is not None:
                self._always |= sending_options.make_expiry_headers(options.expires)
        except SignatureError as error:
            raise SignatureError(f"Task {name!r}: {error}") from None
        self._on_duplicate = options.on_duplicate

    def always(self) -> dict[str, JSON] | None:
        """Return the headers that every message has; ``None`` for none."""
        return dict(self._always) if self._always else None

    def of_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], encoded: Sequence[Arg]
    ) -> dict[str, JSON] | None:
        """
        Return the headers of one call's message; ``None`` for none.

        Args:
            args: The call's values, for a function that makes the key.
            kwargs: The same.
            encoded: The call's arguments on the wire, from which `unique=True` makes the key.

        Raises:
            SignatureError: The function returned no usable key.
        """
        if not self._unique:
            return self.always()
        if callable(self._unique):
            try:
                key = check_unique_key(self._unique(*args, **kwargs))
            except SignatureError as error:
                raise SignatureError(f"Task {self._name!r}: {error}") from None
        else:
            call = encode_signature(Signature(name=self._name, args=list(encoded)))
            key = f"{self._name}:{hashlib.sha256(call).hexdigest()}"
        return {
            **self._always,
            UNIQUE_HEADER: key,
            ON_DUPLICATE_HEADER: self._on_duplicate,
        }
