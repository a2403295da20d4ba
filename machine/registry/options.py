"""
The headers that a task's own options put into every message of it.

``@task(on_crash=…, expires=…, unique=…)`` say once what `options` says of one sending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from machine.errors import SignatureError
from machine.wire.headers import (
    ON_CRASH_HEADER,
    ON_DUPLICATE_HEADER,
    UNIQUE_HEADER,
    policy,
    unique_key,
)
from machine.wire.messages import encode_signature
from machine.wire.signature import JSON, Arg, Signature
from machine.workflow import options

#: What to do when another task has the key.
OnDuplicate = Literal["join", "refuse", "replace"]
#: Whether a task is unique: by all its arguments (True), or by what this makes of them.
UniqueBy = bool | Callable[..., str]


class TaskHeaders:
    """
    What stands in the headers of one task's messages.

    Args:
        name: The task's.
        on_crash: See ``@task``, as for the others.
        expires: Seconds that a message may wait.
        unique: By what it is unique.
        on_duplicate: What happens when another has the key.

    Raises:
        SignatureError: An option is out of bounds.
    """

    def __init__(
        self,
        name: str,
        on_crash: Literal["retry", "fail"],
        expires: float | timedelta | None,
        unique: UniqueBy,
        on_duplicate: OnDuplicate,
    ) -> None:
        self._name = name
        self._unique = unique
        self._always: dict[str, JSON] = {}
        if on_crash not in ("retry", "fail"):
            raise SignatureError(
                f"Task {name!r}: on_crash is {on_crash!r}; give 'retry' or 'fail'."
            )
        if not isinstance(unique, bool) and not callable(unique):
            raise SignatureError(
                f"Task {name!r}: unique is {unique!r}; give True, or a function that makes a text "
                "of the task's arguments."
            )
        if on_crash == "fail":
            self._always[ON_CRASH_HEADER] = "fail"
        try:
            policy(on_duplicate)
            if expires is not None:
                self._always |= options.make_expiry_headers(expires)
        except SignatureError as error:
            raise SignatureError(f"Task {name!r}: {error}") from None
        self._on_duplicate = on_duplicate

    def always(self) -> dict[str, JSON] | None:
        """Return the headers of every message; ``None`` for none."""
        return dict(self._always) if self._always else None

    def of_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], encoded: Sequence[Arg]
    ) -> dict[str, JSON] | None:
        """
        Return the headers of one call's message; ``None`` for none.

        Args:
            args: Of the call.
            kwargs: Of the call.
            encoded: The same as they travel.

        Raises:
            SignatureError: The call has no usable key.
        """
        if not self._unique:
            return self.always()
        if callable(self._unique):
            try:
                key = unique_key(self._unique(*args, **kwargs))
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
