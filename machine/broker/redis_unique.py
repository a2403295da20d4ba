"""
Unique tasks on Redis: one script that looks who has the key, and queues or does not.

A script may only touch keys it is told, and the key's holder is known to the server
alone: so the first call learns who that is, and the second one names it.
"""

from __future__ import annotations

from typing import Any

from machine import keys
from machine.connection import Connections
from machine.connection_link import Command, script
from machine.errors import BrokerRefused
from machine.ports.broker import Admitted
from machine.ports.moves import Enqueued, Message
from machine.wire.limits import is_result_id
from machine.wire.states import CANCELED
from machine.wire.text import quote

_CHANGED = 2
#: Calls after which a key that changes hands between any two of them is given up.
_MOST_CALLS = 100


class RedisUnique:
    """The part of `RedisBroker` that sends unique tasks."""

    _connections: Connections
    _default_queue: str
    _delayed_key: str
    _canceled_key: str
    _kept_s: int
    _pending_s: int
    _max_queue_length: int
    _patient: bool

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        """Queue a message unless a task with this key is there; see `Broker.enqueue_unique`."""
        holder = ""
        for _ in range(_MOST_CALLS):
            command = self._unique_command(message, key, holder, replace=replace)
            [answer] = self._connections.execute([command], retry=self._patient)
            admitted, holder = self._admitted(message, answer)
            if admitted is not None:
                return admitted
        raise _restless(key)

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        """Do what `enqueue_unique` does, without blocking the event loop."""
        from machine.connection_aio import links_of  # noqa: PLC0415 - asyncio where it is used

        holder = ""
        for _ in range(_MOST_CALLS):
            command = self._unique_command(message, key, holder, replace=replace)
            [answer] = await links_of(self._connections).execute([command])
            admitted, holder = self._admitted(message, answer)
            if admitted is not None:
                return admitted
        raise _restless(key)

    def _unique_command(self, message: Message, key: str, holder: str, *, replace: bool) -> Command:
        names: list[Any] = [
            keys.unique(self._default_queue, key),
            holder or message.uuid,
            self._canceled_key,
            self._delayed_key,
            message.uuid,
            message.queue,
        ]
        args: list[Any] = [
            self._max_queue_length,
            self._pending_s,
            message.payload,
            message.pending,
            message.due_ns,
            int(replace),
            self._kept_s,
            quote(f"{CANCELED}: replaced by {message.uuid}"),
        ]
        return script("enqueue_unique").call(names, args)

    def _admitted(self, message: Message, answer: tuple[int, bytes]) -> tuple[Admitted | None, str]:
        """Return what became of it; or ``None``, and the holder to ask again with."""
        code, uuid = answer[0], answer[1].decode(errors="replace")
        if code != _CHANGED:
            return Admitted(Enqueued(code), uuid or message.uuid), ""
        if not is_result_id(uuid, delayed_key=self._delayed_key):
            # Not ours: with such a name the script would read whatever key it likes.
            return Admitted(Enqueued.BAD_KEY, message.uuid), ""
        return None, uuid


def _restless(key: str) -> BrokerRefused:
    return BrokerRefused(
        f"The unique key {key!r} changed hands each of {_MOST_CALLS} times we looked; nothing was "
        "sent. Send again, or send less often with one key."
    )
