"""
What a child holds and what it owes: its claims, and moves not yet sent.

The one place where claims held here are compared with what the server says.
Pure bookkeeping under one lock; it sends nothing itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from machine.ports.moves import Claim, Exchange, Move, Start, Verdict

#: Moves remembered in case the server forgets them (a failover loses the last writes).
_REMEMBERED = 4096


class Ledger:
    """Claims held, moves owed, and moves made lately."""

    def __init__(self) -> None:
        self.owed: deque[Move] = deque()
        self._held: dict[str, Claim] = {}
        self._per_queue: Counter[str] = Counter()
        self._recent: dict[str, Move] = {}

    def __len__(self) -> int:
        """Return how many claims are held."""
        return len(self._held)

    def hold(self, claims: Iterable[Claim]) -> None:
        """Note new claims."""
        for claim in claims:
            self._held[claim.id] = claim
            self._per_queue[claim.queue] += 1

    def holds(self, claim: Claim) -> bool:
        """Say whether this claim is still ours, as far as we know."""
        return claim.id in self._held

    def drop(self, claim: Claim) -> None:
        """Forget a claim that is not ours any more."""
        if self._held.pop(claim.id, None) is not None:
            self._per_queue[claim.queue] -= 1

    def forget(self, queues: Sequence[str]) -> None:
        """Forget every claim of these queues: the lease there ran out."""
        for claim in [claim for claim in self._held.values() if claim.queue in queues]:
            self.drop(claim)

    def take(self) -> list[Move]:
        """Return all moves owed, which are owed no more."""
        moves = []
        while self.owed:
            moves.append(self.owed.popleft())
        return moves

    def put_back(self, moves: Sequence[Move]) -> None:
        """Owe these again, first: they could not be sent."""
        self.owed.extendleft(reversed(moves))

    def settle(
        self, moves: Sequence[Move], verdicts: Sequence[Verdict]
    ) -> list[tuple[Move, Verdict]]:
        """Note what became of moves; return those with a verdict to act on."""
        odd: list[tuple[Move, Verdict]] = []
        for move, verdict in zip(moves, verdicts, strict=True):
            if type(move) is not Start:
                if verdict not in (Verdict.BAD_KEY, Verdict.CANCELED):
                    self.drop(move.claim)
                    self._recent[move.claim.id] = move
                if verdict is not Verdict.DONE:
                    odd.append((move, verdict))
        if len(self._recent) > _REMEMBERED:
            for claim_id in list(self._recent)[: _REMEMBERED // 2]:
                del self._recent[claim_id]
        return odd

    def differs(self, exchange: Exchange) -> list[str]:
        """Return the queues in which the server says we hold another number of claims."""
        return [
            q
            for q, held in exchange.held.items()
            if held is not None and held != self._per_queue[q]
        ]

    def reconcile(
        self, queue: str, worker_id: str, server: Sequence[Claim]
    ) -> tuple[list[Claim], list[Claim]]:
        """
        Compare with all claims the server says we hold in a queue.

        A claim whose end we have sent before is owed that end again: the
        server has forgotten it.

        Returns:
            Claims we did not know of (their answer was lost), to be run; and
            claims that are not ours any more.
        """
        theirs = {claim.id for claim in server}
        unknown = []
        for claim in server:
            if claim.id in self._held:
                continue
            made = self._recent.pop(claim.id, None)
            if made is None:
                unknown.append(claim)
            else:
                self.hold([claim])
                self.owed.append(made)
        mine = [c for c in self._held.values() if c.queue == queue and c.worker_id == worker_id]
        gone = [claim for claim in mine if claim.id not in theirs]
        for claim in gone:
            self.drop(claim)
        return unknown, gone
