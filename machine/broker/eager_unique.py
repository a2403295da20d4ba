"""Unique tasks in one process's memory: who has which key, beside the queues."""

from __future__ import annotations

import threading

from machine.broker.eager_store import EagerStore
from machine.ports.broker import Admitted
from machine.ports.moves import Enqueued, Message
from machine.wire.states import CANCELED

#: Keys are looked through for those whose tasks have ended when so many are kept.
_SWEEP_FROM = 1024


class EagerUnique:
    """
    The part of `EagerBroker` that sends unique tasks.

    Attributes:
        holders: Key -> id of the last task that was sent with it.
    """

    _lock: threading.Condition
    store: EagerStore
    holders: dict[str, str]

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        """Queue a message unless a task with this key is there; see `Broker.enqueue_unique`."""
        with self._lock:
            return self._admit(message, key, replace=replace)

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        """Do what `enqueue_unique` does; nothing here waits."""
        return self.enqueue_unique(message, key, replace=replace)

    def _admit(self, message: Message, key: str, *, replace: bool) -> Admitted:
        refused = self.store.refusal(message)
        holder = self.holders.get(key)
        taken = holder is not None and holder != message.uuid and self.store.is_open(holder)
        # As on Redis: an id that is known comes first, then a key of another kind, then the
        # holder; only what would be added can find the queue full.
        if refused not in (Enqueued.DUPLICATE, Enqueued.BAD_KEY):
            if taken and not replace:
                return Admitted(Enqueued.DUPLICATE, str(holder))
            if taken and refused is None:
                self.store.cancel(str(holder), error=f"{CANCELED}: replaced by {message.uuid}")
        outcome = self.store.enqueue(message)
        if outcome is Enqueued.QUEUED:
            self._sweep()
            self.holders[key] = message.uuid
        return Admitted(outcome, message.uuid)

    def _sweep(self) -> None:
        if len(self.holders) >= _SWEEP_FROM:
            self.holders = {k: u for k, u in self.holders.items() if self.store.is_open(u)}
