"""
Waiting for work without taking it: one blocking move for each queue.

``BLMOVE queue → landing list`` is only a wake-up. What it moved belongs to
nobody, and the next claim of *any* worker takes it first; so a lost answer or
a kill between the move and the claim strands nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from machine.errors import BrokerUnavailable
from machine.redis import keys
from machine.redis.connections import Connections

#: Seconds after its time that a blocking move's answer is given up.
_LATE_S = 3.0


class RedisWaker:
    """One connection with one blocking move for each queue. See `Waker`."""

    def __init__(self, connections: Connections, queues: Sequence[str], block_s: float) -> None:
        self._connections = connections
        self._block_s = block_s
        self._links = {queue: connections.link(waits=True) for queue in queues}
        #: Queue -> monotonic second when its move was sent.
        self._asked: dict[str, float] = {}

    def arm(self) -> None:
        """Send a blocking move for each queue that has none under way."""
        now_s = time.monotonic()
        for queue, link in self._links.items():
            asked_s = self._asked.get(queue)
            if asked_s is not None and now_s - asked_s > self._block_s + _LATE_S:
                link.close()  # an answer so late will not come: the network swallows it
                del self._asked[queue]
            if queue not in self._asked:
                link.send([("BLMOVE", queue, keys.hop(queue), "LEFT", "RIGHT", self._block_s)])
                self._asked[queue] = now_s

    def filenos(self) -> list[int]:
        return [self._links[queue].fileno() for queue in self._asked]

    def collect(self) -> bool:
        """
        Read the answers that are there; say whether one of them was a message.

        A refused move (out of memory, wrong type) counts as "nothing": the
        claim that follows works without memory and reports what is wrong.
        """
        woken = False
        for queue in list(self._asked):
            link = self._links[queue]
            if not link.can_read():
                continue
            del self._asked[queue]
            try:
                answer = link.receive()
            except BrokerUnavailable:
                self._asked.clear()
                self._close_links()
                raise
            woken = woken or (answer is not None and not isinstance(answer, Exception))
        return woken

    def give_back(self) -> None:
        """Move what woke us, and we have no room for, back to the heads of the queues."""
        moves = [("LMOVE", keys.hop(q), q, "RIGHT", "LEFT") for q in self._links]
        self._connections.execute(moves, retry=False)

    def close(self) -> None:
        """Close the connections; the landing lists are emptied by the next claim."""
        self._asked.clear()
        self._close_links()

    def _close_links(self) -> None:
        for link in self._links.values():
            link.close()
