"""What a signature or a workflow hands itself over to when it is sent: the server, as a port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from machine.errors import SignatureError
from machine.results.task import AsyncResult
from machine.wire.signature import Signature


class Sender(Protocol):
    """
    What can send: the server. Each method has an asyncio twin with an ``a`` in front.

    Workflows and their results are typed where they are made, in `workflow`.
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


def found(sender: SenderOf | None) -> Sender:
    """
    Return what sends.

    Raises:
        SignatureError: Nobody knows a server.
    """
    if sender is None:
        raise SignatureError(
            "Nothing here knows a server to send to: these signatures were made by hand. "
            "Use server.send_task(), send_chain(), send_group() or send_chord()."
        )
    return sender()
