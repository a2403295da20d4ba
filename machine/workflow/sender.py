"""The port through which signatures and workflows are sent; `Server` implements it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from machine.errors import SignatureError
from machine.results.task import AsyncResult
from machine.wire.signature import Signature


class Sender(Protocol):
    """
    Sends tasks and workflows. Each method has an asyncio twin with an ``a`` in front.

    Workflows and their results are typed where they are made, in `pieces`.
    """

    def send_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Send one task."""
        ...

    def send_chain(self, chain: Any, /) -> Any:
        """Send the first step of a chain; each sends the next."""
        ...

    def send_group(self, group: Any, /, send_concurrency: int = 0) -> Any:
        """Send all members of a group."""
        ...

    def send_chord(self, chord: Any, /, send_concurrency: int = 0) -> Any:
        """Send all members of a chord; the last one to end sends the callback."""
        ...

    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Send one task."""
        ...

    async def asend_chain(self, chain: Any, /) -> Any:
        """Send the first step of a chain."""
        ...

    async def asend_group(self, group: Any, /, send_concurrency: int = 0) -> Any:
        """Send all members of a group."""
        ...

    async def asend_chord(self, chord: Any, /, send_concurrency: int = 0) -> Any:
        """Send all members of a chord."""
        ...


#: Finds the sender when something is sent, not when it is built.
SenderOf = Callable[[], Sender]


def require_sender(sender: SenderOf | None) -> Sender:
    """
    Return the sender.

    Raises:
        SignatureError: There is none: no signature was made by a task.
    """
    if sender is None:
        raise SignatureError(
            "Nothing here knows a server to send to: these signatures were made by hand. "
            "Use server.send_task(), send_chain(), send_group() or send_chord()."
        )
    return sender()
