"""
Canceling what was sent, by its id: queued, delayed, retrying or running, from anywhere.

One step in Redis where results are kept beside the queues; elsewhere the state
is recorded first and the mark set second. What a worker does about it is its
own business (`runtime.marks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from machine.errors import BrokerRefused, ConfigError, ResultNotFound
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.moves import Canceled
from machine.wire.signature import State, TaskState
from machine.wire.states import CANCELED


class Canceling:
    """
    The part of a server that cancels.

    Attributes:
        broker: Where the messages are.
        backend: Where the states are.
    """

    broker: Broker
    backend: Backend | None

    def cancel(self, uuid: str) -> bool:
        """
        Cancel a task that anybody sent: its state is FAILURE at once, with the error "canceled".

        A task that has not started never runs, however long it waits. One that
        runs is told (``current_task().canceled``), an ``async def`` one is
        interrupted; whatever it returns is dropped. Its error callbacks are sent,
        what was to follow its success is not. A Go worker does not ask, and runs it.

        Args:
            uuid: The task's id.

        Returns:
            True when it is canceled, now or before; false when it had ended.

        Raises:
            ResultNotFound: No state is kept under this id.
            BrokerRefused: The id names a key of another kind.
        """
        return _verdict(uuid, self.cancel_all([uuid])[0])

    async def acancel(self, uuid: str) -> bool:
        """Do what `cancel` does, without blocking the event loop."""
        return _verdict(uuid, (await self.acancel_all([uuid]))[0])

    def cancel_all(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """
        Cancel several tasks, each by itself, in one round trip.

        Args:
            uuids: Ids of tasks that were sent.
            ahead: Ids of tasks that others are to send later: they never will be.

        Returns:
            What became of each: of ``uuids`` first, then of ``ahead``.
        """
        if self.broker.keeps_states or not (uuids or ahead):
            return self.broker.cancel(uuids, ahead=ahead)
        codes = self._record(uuids, ahead)
        marked = [u for u, code in zip([*uuids, *ahead], codes, strict=True) if _is_done(code)]
        self.broker.cancel(marked)
        return codes

    async def acancel_all(
        self, uuids: Sequence[str], *, ahead: Sequence[str] = ()
    ) -> list[Canceled]:
        """Do what `cancel_all` does, without blocking the event loop."""
        if self.broker.keeps_states or not (uuids or ahead):
            return await self.broker.acancel(uuids, ahead=ahead)
        codes = await asyncio.to_thread(self._record, uuids, ahead)
        marked = [u for u, code in zip([*uuids, *ahead], codes, strict=True) if _is_done(code)]
        await self.broker.acancel(marked)
        return codes

    def _record(self, uuids: Sequence[str], ahead: Sequence[str]) -> list[Canceled]:
        """Record the states where they are kept elsewhere; the first final one stays."""
        backend = self.backend
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


def _is_done(code: Canceled) -> bool:
    return code is Canceled.DONE


def _verdict(uuid: str, code: Canceled) -> bool:
    if code is Canceled.UNKNOWN:
        raise ResultNotFound(
            f"No state is kept under {uuid!r}: nothing was sent under this id, or it expired."
        )
    if code is Canceled.BAD_KEY:
        raise BrokerRefused(
            f"Task id {uuid!r} names a key that holds something else; nothing was changed."
        )
    return code is Canceled.DONE
