"""
Canceling what was sent, by its id: queued, delayed, retrying or running, from anywhere.

Canceling sets a mark that workers look for, and makes the task's state a failure. Where
results are kept beside the queues, one script does both. Elsewhere the state is
recorded first: if this process dies between the two, a worker still runs the task, but
the state stays "canceled", because the first final state is never written over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from machine.errors import BrokerRefused, ConfigError, ResultNotFound
from machine.ports.backend import Backend
from machine.ports.broker import Queues
from machine.ports.moves import Canceled
from machine.wire.signature import State, TaskState
from machine.wire.states import CANCELED


class Canceling:
    """
    Cancels tasks: a `Canceler` for handles.

    Args:
        queues: Where the messages are.
        backend: Where the states are.
    """

    def __init__(self, queues: Queues, backend: Backend | None) -> None:
        self._queues, self._backend = queues, backend

    def cancel(self, uuid: str) -> bool:
        return _was_canceled(uuid, self.cancel_all([uuid])[0])

    async def acancel(self, uuid: str) -> bool:
        return _was_canceled(uuid, (await self.acancel_all([uuid]))[0])

    def cancel_all(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        if self._queues.keeps_states or not (uuids or ahead):
            return self._queues.cancel(uuids, ahead=ahead)
        codes = self._record(uuids, ahead)
        self._queues.cancel(_ids_to_mark(uuids, ahead, codes))
        return codes

    async def acancel_all(
        self, uuids: Sequence[str], *, ahead: Sequence[str] = ()
    ) -> list[Canceled]:
        if self._queues.keeps_states or not (uuids or ahead):
            return await self._queues.acancel(uuids, ahead=ahead)
        codes = await asyncio.to_thread(self._record, uuids, ahead)
        await self._queues.acancel(_ids_to_mark(uuids, ahead, codes))
        return codes

    def _record(self, uuids: Sequence[str], ahead: Sequence[str]) -> list[Canceled]:
        """Record the states where they are kept elsewhere; the first final one stays."""
        backend = self._backend
        if backend is None:
            raise ConfigError("Result backend required: a canceled task is known by its state.")
        everyone = [*uuids, *ahead]
        codes = []
        for place, (uuid, state) in enumerate(zip(everyone, backend.read(everyone), strict=True)):
            if state is None and place < len(uuids):
                codes.append(Canceled.UNKNOWN)
            elif state is not None and state.is_completed:
                was = state.is_failure and state.error.startswith(CANCELED)
                codes.append(Canceled.DONE if was else Canceled.ENDED)
            else:
                failed = TaskState(task_uuid=uuid, state=State.FAILURE, error=CANCELED)
                backend.record(failed)
                codes.append(Canceled.DONE)
        return codes


def _ids_to_mark(
    uuids: Sequence[str], ahead: Sequence[str], codes: Sequence[Canceled]
) -> list[str]:
    everyone = zip([*uuids, *ahead], codes, strict=True)
    return [uuid for uuid, code in everyone if code is Canceled.DONE]


def _was_canceled(uuid: str, code: Canceled) -> bool:
    if code is Canceled.UNKNOWN:
        raise ResultNotFound(
            f"No state is kept under {uuid!r}: nothing was sent under this id, or it expired."
        )
    if code is Canceled.BAD_KEY:
        raise BrokerRefused(
            f"Task id {uuid!r} names a key that holds something else; nothing was changed."
        )
    return code is Canceled.DONE
