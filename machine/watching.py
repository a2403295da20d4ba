"""
A server that lets others look on while it sends: metrics and traces.

Where nothing looks on, a plain `Server` is made, and sending costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from machine.results.task import AsyncResult
from machine.sending.messages import MessageMaker
from machine.sending.workflows import NO_GROUPS, Groups
from machine.server import Server
from machine.wire.headers import Unique
from machine.wire.signature import Signature


class SendWatcher(Protocol):
    """Looks on while messages are sent."""

    def sending(self, signatures: Sequence[Signature]) -> AbstractContextManager[None]:
        """
        Return what is entered before messages are written, and left when they are, or not.

        Args:
            signatures: At least one, complete; headers may be added.
        """
        ...


class WatchedServer(Server):
    """A `Server` with watchers."""

    _watchers: Sequence[SendWatcher] = ()

    def watch(self, watchers: Sequence[SendWatcher], *, stamps: bool) -> None:
        """
        Let these look on from now on.

        Args:
            watchers: Each is entered around every sending, the first one outermost.
            stamps: Whether messages are to say when they were sent, whatever the settings say.
        """
        self._watchers = watchers
        self._messages = MessageMaker.of(
            self.config, self.registry, keeps_states=self.broker.keeps_states, stamps=stamps
        )

    def _send(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        with self._watched(signatures):
            super()._send(signatures, groups)

    async def _asend(self, signatures: Sequence[Signature], groups: Groups = NO_GROUPS) -> None:
        with self._watched(signatures):
            await super()._asend(signatures, groups)

    def _send_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        with self._watched([own]):
            return super()._send_unique(own, asked)

    async def _asend_unique(self, own: Signature, asked: Unique) -> AsyncResult[Any]:
        with self._watched([own]):
            return await super()._asend_unique(own, asked)

    def _watched(self, signatures: Sequence[Signature]) -> ExitStack:
        with ExitStack() as stack:
            if signatures:
                for watcher in self._watchers:
                    stack.enter_context(watcher.sending(signatures))
            return stack.pop_all()
