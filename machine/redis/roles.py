"""What the four roles of the broker on Redis share: settings, and the way to the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from machine.config import Config
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.link import Command
from machine.redis.moves import ScriptContext
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.text import format_time

#: A state that is not final outlives a long queue, whatever the results' own time.
PENDING_AT_LEAST_S = 86_400


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """
    How queues are kept; `of` takes all of it from a `Config`.

    Attributes:
        default_queue: Where a delayed message without a routing key goes.
        delayed_key: Name of the delayed set.
        results_expire_s: Seconds a final state lives, ≥ 1.
        max_queue_length: `Enqueued.FULL` from this length on.
        max_deliveries: Workers that one message may kill before it is convicted.
        lease_s: Seconds a worker may be silent.
        block_s: Seconds that one blocking wait lasts at most.
        keeps_states: Whether results live on this server too.
        is_worker: Whether this is a worker's side, which waits for an absent
            server in its own loop, not in here.
    """

    default_queue: str
    delayed_key: str
    results_expire_s: int
    max_queue_length: int
    max_deliveries: int
    lease_s: float
    block_s: float
    keeps_states: bool
    is_worker: bool = False

    @classmethod
    def of(cls, config: Config, *, is_worker: bool = False) -> Self:
        """Return what these settings say."""
        return cls(
            default_queue=config.default_queue,
            delayed_key=config.redis.delayed_tasks_key or DELAYED_DEFAULT,
            results_expire_s=config.results_expire_in,
            max_queue_length=config.max_queue_length,
            max_deliveries=config.worker_max_deliveries,
            lease_s=config.worker_lease_s,
            block_s=config.worker_block_s,
            # Only then can one script write a message and its state.
            keeps_states=config.keeps_states,
            is_worker=is_worker,
        )


class RedisRole:
    """One role of the broker: its settings, and commands that wait for an absent server."""

    def __init__(self, connections: Connections, settings: QueueSettings) -> None:
        self._connections = connections
        self._settings = settings
        self._canceled_key = keys.canceled(settings.default_queue)
        self._pending_s = max(settings.results_expire_s, PENDING_AT_LEAST_S)
        self._lease_ms = int(settings.lease_s * 1000)
        self._is_patient = not settings.is_worker

    def _execute(self, commands: Sequence[Command]) -> list[Any]:
        return self._connections.execute(commands, retry=self._is_patient)

    def _context(self) -> ScriptContext:
        return ScriptContext(
            delayed_key=self._settings.delayed_key,
            kept_s=self._settings.results_expire_s,
            pending_s=self._pending_s,
            created=f'"CreatedAt":"{format_time(time.time_ns())}"',
            canceled_key=self._canceled_key,
        )
