"""
Renews the leases of all children.

The supervisor does it, which runs no tasks: a task that holds its child for
hours cannot let the child's lease run out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine.ports.broker import Broker
from machine.runtime.loop import Loop


class Heartbeat(Loop):
    """
    Renews the leases of a changing set of workers, one call for each queue.

    Args:
        broker: Where the leases are.
        queues: The queues of all these workers.
        worker_ids: Called at each heartbeat for the ids of the children.
        period_s: Seconds between heartbeats; under half of the lease.
        own_id: The supervisor's own id, registered again when its lease ran out.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        worker_ids: Callable[[], Sequence[str]],
        period_s: float,
        own_id: str,
    ) -> None:
        super().__init__("heartbeat", period_s)
        self._broker, self._queues = broker, queues
        self._worker_ids, self._own_id = worker_ids, own_id

    def run_once(self, _now_s: float) -> None:
        """Renew all leases. A child whose lease ran out learns it from its next exchange."""
        worker_ids = [self._own_id, *self._worker_ids()]
        for queue in self._queues:
            if self._broker.heartbeat(queue, worker_ids)[0] is None:
                self._broker.register(self._own_id, [queue])
