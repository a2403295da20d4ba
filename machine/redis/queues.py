"""What callers do to queues on Redis: unique sends and cancellations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from machine.errors import BrokerRefused
from machine.ports.broker import Admitted
from machine.ports.moves import Canceled, Enqueued, Message
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import Command, script
from machine.redis.moves import MOST_MOVES, Terms
from machine.wire.limits import is_result_id
from machine.wire.signature import State, TaskState
from machine.wire.states import CANCELED, encode_state
from machine.wire.text import now_text, quote

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
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

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


_CODES = {int(code): code for code in Canceled}


def cancel_commands(
    uuids: Sequence[str], ahead: Sequence[str], terms: Terms, *, keeps_states: bool
) -> list[Command]:
    """Return the calls of ``cancel.lua`` for these tasks, 500 in each."""
    created_at = now_text(time.time_ns())
    entries = [(uuid, 0) for uuid in uuids] + [(uuid, 1) for uuid in ahead]
    commands = []
    for start in range(0, len(entries), MOST_MOVES):
        names: list[Any] = [terms.canceled_key]
        args: list[Any] = [terms.kept_s, terms.pending_s, f'"{CANCELED}"']
        for uuid, is_ahead in entries[start : start + MOST_MOVES]:
            state = TaskState(
                task_uuid=uuid, state=State.FAILURE, error=CANCELED, created_at=created_at
            )
            names.append(uuid if keeps_states else terms.canceled_key)
            args += (uuid, encode_state(state) if keeps_states else b"", is_ahead)
        commands.append(script("cancel").call(names, args))
    return commands


def cancel_codes(answers: Sequence[Sequence[int]]) -> list[Canceled]:
    """Return what became of each task, in the order asked."""
    return [_CODES[code] for answer in answers for code in answer]
