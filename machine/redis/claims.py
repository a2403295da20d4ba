"""
Messages of unknown tasks on Redis, and the worker that knows them at last.

Which of the delayed messages were put aside is asked first and decided here,
because only we can read names; the change itself is one script, which looks again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from machine.errors import WireError
from machine.ports.broker import UNPARK_MOST, UNPARK_WITHIN_S
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import Command, script
from machine.wire.messages import decode_signature

#: Messages asked about, or changed, in one command: about 1 ms of the server.
_BATCH = 500


class RedisParked:
    """The part of `RedisBroker` that lets what was put aside come back early."""

    _connections: Connections
    _default_queue: str
    _delayed_key: str
    _patient: bool

    def unpark(self, queue: str, knows: Callable[[str], bool]) -> int:
        """Make due what was put aside and is known now; see `Broker.unpark`."""
        parked = keys.parked(queue)
        count, now = self._ask([("HLEN", parked), ("TIME",)])
        if not count:
            return 0
        now_ns = (int(now[0]) * 1_000_000 + int(now[1])) * 1000
        last_ns = now_ns + UNPARK_WITHIN_S * 1_000_000_000
        limits = ("BYSCORE", "LIMIT", 0, UNPARK_MOST)
        [soon] = self._ask([("ZRANGE", self._delayed_key, now_ns, last_ns, *limits)])
        ours: list[bytes] = []
        for messages in _in_batches(soon):
            digests = [hashlib.sha1(m, usedforsecurity=False).hexdigest() for m in messages]
            [times] = self._ask([("HMGET", parked, *digests)])
            aside = [m for m, time in zip(messages, times, strict=True) if time is not None]
            ours += [m for m in aside if self._is_for(queue, m, knows)]
        names = [parked, self._delayed_key]
        calls = [script("unpark").call(names, messages) for messages in _in_batches(ours)]
        return sum(self._ask(calls))

    def _is_for(self, queue: str, message: bytes, knows: Callable[[str], bool]) -> bool:
        try:
            signature = decode_signature(message, delayed_key=self._delayed_key)
        except WireError:
            return False  # `promote` buries it when its time comes
        return (signature.routing_key or self._default_queue) == queue and knows(signature.name)

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        return self._connections.execute(commands, retry=self._patient) if commands else []


def _in_batches(messages: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [messages[start : start + _BATCH] for start in range(0, len(messages), _BATCH)]
