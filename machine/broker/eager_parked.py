"""Messages of unknown tasks in one process's memory, and the worker that knows them at last."""

from __future__ import annotations

import threading
from collections.abc import Callable

from machine.broker.eager_line import digest_of
from machine.broker.eager_store import EagerStore
from machine.errors import WireError
from machine.ports.broker import UNPARK_MOST, UNPARK_WITHIN_S
from machine.wire.messages import decode_signature


class EagerParked:
    """The part of `EagerBroker` that lets what was put aside come back early."""

    _lock: threading.Condition
    store: EagerStore

    def unpark(self, queue: str, knows: Callable[[str], bool]) -> int:
        """Make due what was put aside and is known now; see `Broker.unpark`."""
        with self._lock:
            parked = self.store.line(queue).parked
            now_ns = self.store.now_ms() * 1_000_000
            last_ns = now_ns + UNPARK_WITHIN_S * 1_000_000_000
            soon = sorted(
                (due_ns, message)
                for message, due_ns in self.store.delayed.items()
                if now_ns <= due_ns <= last_ns
            )
            count = 0
            for due_ns, message in soon[:UNPARK_MOST]:
                if digest_of(message) in parked and self._is_for(queue, message, knows):
                    self.store.delayed[message] = min(now_ns, due_ns)
                    del parked[digest_of(message)]
                    count += 1
            return count

    def _is_for(self, queue: str, message: bytes, knows: Callable[[str], bool]) -> bool:
        rules = self.store.rules
        try:
            signature = decode_signature(message, delayed_key=rules.delayed_key)
        except WireError:
            return False  # `promote` buries it when its time comes
        return (signature.routing_key or rules.default_queue) == queue and knows(signature.name)
