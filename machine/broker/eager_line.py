"""One queue in memory, and the limits it goes by: the nouns of `eager_store`."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from machine.ports.moves import Claim


@dataclass(slots=True)
class Line:
    """
    One queue and all that belongs to it.

    Attributes:
        ready: Messages, next first.
        stamps: Worker id -> lease deadline in Unix ms.
        held: Worker id -> claim id -> message. An entry *is* the ownership.
        fence: The last number given out.
        crashes: Digest of a message -> how many workers died holding it.
        parked: Digest of a message of an unknown task -> how often it was put aside.
        dead: Letter id -> (Unix ms when it was buried, envelope), oldest first.
        armed: Group -> callback of a chord that has not fired.
        ended: Group -> (ids of its ended members, Unix ns when this is forgotten).
    """

    ready: deque[bytes] = field(default_factory=deque)
    stamps: dict[str, int] = field(default_factory=dict)
    held: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fence: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    parked: dict[str, int] = field(default_factory=dict)
    dead: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    armed: dict[str, bytes] = field(default_factory=dict)
    ended: dict[str, tuple[set[str], int]] = field(default_factory=dict)

    def let_go(self, claim: Claim) -> bytes:
        """Take the message out of its holder's hands and return it."""
        mine = self.held[claim.worker_id]
        payload = mine.pop(claim.id)
        if not mine:
            del self.held[claim.worker_id]
        return payload

    def forgive(self, payload: bytes) -> None:
        """Forget what was counted for these bytes: they have come to an end."""
        digest = digest_of(payload)
        self.crashes.pop(digest, None)
        self.parked.pop(digest, None)


def digest_of(payload: bytes) -> str:
    """Return the name under which counts for these bytes are kept."""
    return hashlib.sha1(payload, usedforsecurity=False).hexdigest()


@dataclass(slots=True, kw_only=True)
class Rules:
    """The limits a store goes by; see `EagerBroker` for each."""

    default_queue: str
    delayed_key: str
    max_queue_length: int
    max_deliveries: int
    lease_s: float
    results_expire_s: int
    ignore_eta: bool
