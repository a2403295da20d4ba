"""Leases renewed for every child, from a process that runs no tasks and so never stalls."""

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
        worker_ids: Asked anew at each beat.
        period_s: Seconds between beats; a third of the lease.
        own_id: The supervisor's own id, registered again when it is lost.
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
        self._broker, self._queues, self._worker_ids, self._own_id = (
            broker,
            queues,
            worker_ids,
            own_id,
        )

    def run_once(self, _now_s: float) -> None:
        """Renew all leases. A child that is lost learns it from its next claim."""
        worker_ids = [self._own_id, *self._worker_ids()]
        for queue in self._queues:
            if self._broker.heartbeat(queue, worker_ids)[0] is None:
                self._broker.register(self._own_id, [queue])
