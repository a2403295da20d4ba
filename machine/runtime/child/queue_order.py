"""
The order in which a worker's queues are tried in the next claim. Pure.

Smooth weighted round robin: each turn adds to every queue its weight; the queue
with the highest credit goes first and pays the sum of all weights. In as many
turns as that sum, each queue is first as often as its weight says, and its
turns are spread out.
"""

from __future__ import annotations

from collections.abc import Sequence


class QueueOrder:
    """
    The order of queues, claim by claim.

    Args:
        queues: Most urgent first, no two alike.
        weights: One for each queue, ≥ 1; none = always in the order given.
    """

    def __init__(self, queues: Sequence[str], weights: Sequence[int]) -> None:
        self._queues = tuple(queues)
        self._weights = dict(zip(queues, weights, strict=True)) if weights else {}
        self._credits = dict.fromkeys(self._weights, 0)
        # Behind the first queue: the heavier ones get the room that it leaves.
        self._heaviest_first = sorted(self._weights, key=lambda queue: -self._weights[queue])

    def take_turn(self, want: int) -> Sequence[str]:
        """
        Return all queues in the order in which to try them, and take a turn.

        Args:
            want: Messages to be claimed; with 0 nothing is claimed, so no turn is taken.
        """
        if not self._weights or not want:
            return self._queues
        for queue, weight in self._weights.items():
            self._credits[queue] += weight
        first = max(self._queues, key=self._credits.__getitem__)
        self._credits[first] -= sum(self._weights.values())
        return [first, *(queue for queue in self._heaviest_first if queue != first)]
