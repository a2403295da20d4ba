"""
The broker of eager mode: ordinary queues, of which nothing waits for its time.

What a process sends it runs itself, so it belongs to one process, and due
times become "now" on the way in, as in Machinery's eager mode.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from machine.errors import BrokerRefused
from machine.ports.broker import Admitted
from machine.ports.clock import Clock
from machine.ports.moves import ChordShot, Enqueued, Exchange, Finish, Message, Move, Retry, Verdict
from machine.ports.periodic import Tick, Ticked, Watermarks
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections
from machine.redis.periodic import RedisPeriodicStore
from machine.redis.roles import QueueSettings


class InlineBroker(RedisBroker):
    """
    Queues of this process, on a server of its own.

    Attributes:
        queues: Names of the queues that anything was sent to, in the order of
            the first message.
    """

    def __init__(self, connections: Connections, settings: QueueSettings) -> None:
        super().__init__(connections, settings)
        self._pid = os.getpid()
        self._names: dict[str, None] = {}

    @property
    def queues(self) -> Sequence[str]:
        """See the class."""
        return tuple(self._names)

    def add_queues(self, names: Iterable[str]) -> None:
        """Remember queues that were filled by another way."""
        self._names |= dict.fromkeys(names)

    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return self._remember(messages, super().enqueue(self._due_now(messages)))

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return self._remember(messages, await super().aenqueue(self._due_now(messages)))

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        [now] = self._due_now([message])
        admitted = super().enqueue_unique(now, key, replace=replace)
        self._remember([message], [admitted.outcome])
        return admitted

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        [now] = self._due_now([message])
        admitted = await super().aenqueue_unique(now, key, replace=replace)
        self._remember([message], [admitted.outcome])
        return admitted

    def exchange(
        self, worker_id: str, queues: Sequence[str], moves: Sequence[Move], want: int
    ) -> Exchange:
        for move in moves:
            if isinstance(move, Finish) and move.follow_ups:
                move.follow_ups = self._due_now(move.follow_ups)
            elif isinstance(move, Retry):
                move.due_ns = 0
        exchange = super().exchange(worker_id, queues, moves, want)
        for move, verdict in zip(moves, exchange.verdicts, strict=True):
            if verdict in (Verdict.DONE, Verdict.ARMED):
                if isinstance(move, Retry):
                    self.add_queues([move.queue])
                elif isinstance(move, Finish):
                    self.add_queues(message.queue for message in move.follow_ups)
        return exchange

    def fire_chord(self, shot: ChordShot) -> Verdict:
        verdict = super().fire_chord(shot._replace(messages=self._due_now(shot.messages)))
        self.add_queues(message.queue for message in shot.messages)
        return verdict

    def _remember(self, messages: Sequence[Message], outcomes: list[Enqueued]) -> list[Enqueued]:
        """Remember the queues; not one whose name is a key of another kind: it cannot be read."""
        self.add_queues(
            message.queue
            for message, outcome in zip(messages, outcomes, strict=True)
            if outcome is not Enqueued.BAD_KEY
        )
        return outcomes

    def _due_now(self, messages: Sequence[Message]) -> list[Message]:
        if os.getpid() != self._pid:
            raise BrokerRefused(
                f"This eager server belongs to process {self._pid}, which forked this one; its "
                "connections cannot be shared. Call machine.connect(Config(broker='eager')) here."
            )
        return [message._replace(due_ns=0) for message in messages]


class InlinePeriodicStore(RedisPeriodicStore):
    """
    Watermarks of a timetable whose time is that of a clock of this process.

    Args:
        connections: Where the server is.
        settings: How queues are kept.
        broker: Told of the queues that runs are sent to.
        clock: Says what time it is.
    """

    def __init__(
        self,
        connections: Connections,
        settings: QueueSettings,
        broker: InlineBroker,
        clock: Clock,
    ) -> None:
        super().__init__(connections, settings)
        self._broker, self._clock = broker, clock

    def read_watermarks(self, home: str) -> Watermarks:
        return super().read_watermarks(home)._replace(now_ms=self._clock.now_ns() // 1_000_000)

    async def aread_watermarks(self, home: str) -> Watermarks:
        found = await super().aread_watermarks(home)
        return found._replace(now_ms=self._clock.now_ns() // 1_000_000)

    def tick(self, ticks: Sequence[Tick]) -> list[Ticked]:
        outcomes = super().tick(ticks)
        for tick, outcome in zip(ticks, outcomes, strict=True):
            if outcome is Ticked.QUEUED:
                self._broker.add_queues(message.queue for message in tick.messages)
        return outcomes
