"""
Which queue comes first in the next claim. Pure.

Smooth weighted round robin: each queue saves up its weight each turn, the richest
one goes first and pays for all. In as many turns as the weights add up to, each
queue is first as often as its weight says, and its turns are spread out.
"""

from __future__ import annotations

from collections.abc import Sequence


class Turns:
    """
    The order of queues, claim by claim.

    Args:
        queues: Most urgent first, no two alike.
        weights: One for each queue, ≥ 1; none = always in the order given.
    """

    def __init__(self, queues: Sequence[str], weights: Sequence[int] = ()) -> None:
        self._queues = tuple(queues)
        self._weights = dict(zip(queues, weights, strict=True)) if weights else {}
        self._saved = dict.fromkeys(self._weights, 0)
        # Behind the first one: what it leaves free goes to the heavier queues.
        self._heaviest_first = sorted(self._weights, key=lambda queue: -self._weights[queue])

    def order(self, want: int) -> Sequence[str]:
        """
        Return all queues in the order in which to try them, and take a turn.

        Args:
            want: Messages to be claimed; 0 = nothing is claimed, and nobody's turn is used up.
        """
        if not self._weights or not want:
            return self._queues
        for queue, weight in self._weights.items():
            self._saved[queue] += weight
        first = max(self._queues, key=self._saved.__getitem__)
        self._saved[first] -= sum(self._weights.values())
        return [first, *(queue for queue in self._heaviest_first if queue != first)]
