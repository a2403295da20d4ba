"""Queues on Redis as callers use them: enqueue, enqueue one at a time for a key, cancel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from machine.errors import BrokerRefused
from machine.ports.broker import Admitted
from machine.ports.moves import Canceled, Enqueued, Message
from machine.redis import keys
from machine.redis.link import Command, script
from machine.redis.moves import MOST_MOVES, message_words
from machine.redis.roles import RedisRole
from machine.wire.limits import is_result_id
from machine.wire.signature import State, TaskState
from machine.wire.states import CANCELED, encode_state
from machine.wire.text import format_time, quote

_CHANGED = 2
_ENQUEUED = {int(code): code for code in Enqueued}
_CANCELED = {int(code): code for code in Canceled}
#: Calls after which a key that changes hands between any two of them is given up.
_MOST_CALLS = 100


class RedisQueues(RedisRole):
    """The broker's side for callers, on one Redis or Valkey server. See `Queues`."""

    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Write each PENDING state and queue its message; one call for each 500."""
        return _read_enqueued(self._execute(self._enqueue_commands(messages)))

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        commands = self._enqueue_commands(messages)
        return _read_enqueued(await links_of(self._connections).execute(commands))

    def _enqueue_commands(self, messages: Sequence[Message]) -> list[Command]:
        commands = []
        for start in range(0, len(messages), MOST_MOVES):
            names, args = message_words(messages[start : start + MOST_MOVES])
            names.insert(0, self._settings.delayed_key)
            args[:0] = (self._settings.max_queue_length, self._pending_s)
            commands.append(script("enqueue").call(names, args))
        return commands

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        holder = ""
        for _ in range(_MOST_CALLS):
            command = self._unique_command(message, key, holder, replace=replace)
            [answer] = self._execute([command])
            admitted, holder = self._read_admitted(message, answer)
            if admitted is not None:
                return admitted
        raise _unsettled_error(key)

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        holder = ""
        for _ in range(_MOST_CALLS):
            command = self._unique_command(message, key, holder, replace=replace)
            [answer] = await links_of(self._connections).execute([command])
            admitted, holder = self._read_admitted(message, answer)
            if admitted is not None:
                return admitted
        raise _unsettled_error(key)

    def _unique_command(self, message: Message, key: str, holder: str, *, replace: bool) -> Command:
        names: list[Any] = [
            keys.unique(self._settings.default_queue, key),
            holder or message.uuid,
            self._canceled_key,
            self._settings.delayed_key,
            message.uuid,
            message.queue,
        ]
        args: list[Any] = [
            self._settings.max_queue_length,
            self._pending_s,
            message.payload,
            message.pending,
            message.due_ns,
            int(replace),
            self._settings.results_expire_s,
            quote(f"{CANCELED}: replaced by {message.uuid}"),
        ]
        return script("enqueue_unique").call(names, args)

    def _read_admitted(
        self, message: Message, answer: tuple[int, bytes]
    ) -> tuple[Admitted | None, str]:
        """Return what became of it; or ``None``, and the holder to ask again with."""
        code, uuid = answer[0], answer[1].decode(errors="replace")
        if code != _CHANGED:
            return Admitted(Enqueued(code), uuid or message.uuid), ""
        if not is_result_id(uuid, delayed_key=self._settings.delayed_key):
            # Not ours: with such a name the script would read whatever key it likes.
            return Admitted(Enqueued.BAD_KEY, message.uuid), ""
        return None, uuid

    def cancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        return _read_canceled(self._execute(self._cancel_commands(uuids, ahead)))

    async def acancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        commands = self._cancel_commands(uuids, ahead)
        return _read_canceled(await links_of(self._connections).execute(commands))

    def _cancel_commands(self, uuids: Sequence[str], ahead: Sequence[str]) -> list[Command]:
        keeps_states = self._settings.keeps_states
        created_at = format_time(time.time_ns())
        entries = [(uuid, 0) for uuid in uuids] + [(uuid, 1) for uuid in ahead]
        commands = []
        for start in range(0, len(entries), MOST_MOVES):
            names: list[Any] = [self._canceled_key]
            args: list[Any] = [self._settings.results_expire_s, self._pending_s, f'"{CANCELED}"']
            for uuid, is_ahead in entries[start : start + MOST_MOVES]:
                state = TaskState(
                    task_uuid=uuid, state=State.FAILURE, error=CANCELED, created_at=created_at
                )
                names.append(uuid if keeps_states else self._canceled_key)
                args += (uuid, encode_state(state) if keeps_states else b"", is_ahead)
            commands.append(script("cancel").call(names, args))
        return commands


def _read_enqueued(answers: list[list[int]]) -> list[Enqueued]:
    return [_ENQUEUED[code] for answer in answers for code in answer]


def _read_canceled(answers: Sequence[Sequence[int]]) -> list[Canceled]:
    return [_CANCELED[code] for answer in answers for code in answer]


def _unsettled_error(key: str) -> BrokerRefused:
    return BrokerRefused(
        f"The unique key {key!r} changed hands each of {_MOST_CALLS} times we looked; nothing was "
        "sent. Send again, or send less often with one key."
    )
