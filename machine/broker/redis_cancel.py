"""Cancellations -> script calls, and their answers. Pure: nothing is sent here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from machine.broker.redis_moves import MOST_MOVES, Terms
from machine.connection_link import Command, script
from machine.ports.moves import Canceled
from machine.wire.signature import State, TaskState
from machine.wire.states import CANCELED, encode_state
from machine.wire.text import now_text

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
