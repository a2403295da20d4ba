"""
The broker on Redis: four roles over one set of links, and nothing of its own.

What each role does stands in `queues`, `claims`, `upkeep` and `inspector`;
what each method promises stands in `ports.broker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine.ports.broker import Admitted, Reaped, Roster, Survey
from machine.ports.moves import (
    Canceled,
    ChordShot,
    Claim,
    DeadLetter,
    Enqueued,
    Exchange,
    Message,
    Move,
    Verdict,
)
from machine.redis.claims import RedisClaims
from machine.redis.connections import Connections
from machine.redis.inspector import RedisInspector
from machine.redis.queues import RedisQueues
from machine.redis.roles import QueueSettings
from machine.redis.upkeep import RedisUpkeep
from machine.redis.waker import RedisWaker


class RedisBroker:
    """
    Queues on one Redis or Valkey server. See `Broker`.

    Args:
        connections: Where the server is; closed with the broker.
        settings: How queues are kept.
    """

    def __init__(self, connections: Connections, settings: QueueSettings) -> None:
        self.keeps_states = settings.keeps_states
        self._connections = connections
        self._queues = RedisQueues(connections, settings)
        self._claims = RedisClaims(connections, settings)
        self._upkeep = RedisUpkeep(connections, settings)
        self._inspector = RedisInspector(connections, settings)

    # -- Queues ----------------------------------------------------------------------------
    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return self._queues.enqueue(messages)

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return await self._queues.aenqueue(messages)

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        return self._queues.enqueue_unique(message, key, replace=replace)

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        return await self._queues.aenqueue_unique(message, key, replace=replace)

    def cancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        return self._queues.cancel(uuids, ahead=ahead)

    async def acancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        return await self._queues.acancel(uuids, ahead=ahead)

    # -- Claims ----------------------------------------------------------------------------
    def register(self, worker_id: str, queues: Sequence[str]) -> None:
        self._claims.register(worker_id, queues)

    def unregister(self, worker_id: str, queues: Sequence[str]) -> None:
        self._claims.unregister(worker_id, queues)

    def exchange(
        self, worker_id: str, queues: Sequence[str], moves: Sequence[Move], want: int
    ) -> Exchange:
        return self._claims.exchange(worker_id, queues, moves, want)

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        return self._claims.canceled(uuids)

    def waker(self, queues: Sequence[str]) -> RedisWaker:
        return self._claims.waker(queues)

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        return self._claims.held(queue, worker_id)

    def unpark(self, queue: str, knows: Callable[[str], bool]) -> int:
        return self._claims.unpark(queue, knows)

    # -- Upkeep ----------------------------------------------------------------------------
    def heartbeat(self, queue: str, worker_ids: Sequence[str]) -> list[int | None]:
        return self._upkeep.heartbeat(queue, worker_ids)

    def roster(self, queue: str) -> Roster:
        return self._upkeep.roster(queue)

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        return self._upkeep.reap(queue, worker_id, stamp, heir, convict)

    def promote(self, most: int) -> int:
        return self._upkeep.promote(most)

    def armed(self, queue: str, cursor: int, most: int) -> tuple[int, list[tuple[str, bytes]]]:
        return self._upkeep.armed(queue, cursor, most)

    def fire_chord(self, shot: ChordShot) -> Verdict:
        return self._upkeep.fire_chord(shot)

    # -- Inspector -------------------------------------------------------------------------
    def pending(self, queue: str, most: int = -1) -> list[bytes]:
        return self._inspector.pending(queue, most)

    def delayed(self, most: int = -1) -> list[bytes]:
        return self._inspector.delayed(most)

    def dead(self, queue: str, most: int = 100) -> list[DeadLetter]:
        return self._inspector.dead(queue, most)

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        return self._inspector.replay(queue, ids)

    def purge_dead(self, queue: str, ids: Sequence[str]) -> int:
        return self._inspector.purge_dead(queue, ids)

    def survey(self, queues: Sequence[str]) -> Survey:
        return self._inspector.survey(queues)

    def ping(self) -> None:
        self._inspector.ping()

    def eviction_policy(self) -> str:
        return self._inspector.eviction_policy()

    # -- all -------------------------------------------------------------------------------
    def close(self) -> None:
        self._connections.close()

    async def aclose(self) -> None:
        from machine.redis.aio import links_of  # noqa: PLC0415 - asyncio where it is used

        await links_of(self._connections).close()
        self.close()
