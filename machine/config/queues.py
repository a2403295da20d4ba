"""
Queues and their weights, as people write them: ``high=3,low=1``.

A queue's name cannot contain ``=``, so the first one ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What a queue may look like beside others, as a regular expression.
FORM = r"[A-Za-z0-9_.:-]{1,128}(=(1000|[1-9]\d{0,2}))?"


def read_queue_names(words: Sequence[str]) -> tuple[str, ...]:
    """Return the queues' names, in order."""
    return tuple(word.partition("=")[0] for word in words)


def read_queue_weights(words: Sequence[str]) -> tuple[int, ...]:
    """Return a weight (1 to 1000) for each queue, or () if they have none."""
    found = [word.partition("=")[2] for word in words]
    return tuple(int(text) for text in found) if all(found) else ()


def find_weight_error(words: Sequence[str]) -> str:
    """
    Say which rule of weights the words break together, and the cure; "" if none.

    Args:
        words: Each of them has the `FORM`.
    """
    without = [word for word in words if "=" not in word]
    if without and len(without) < len(words):
        return (
            f"some have a weight and '{without[0]}' has none; write '{without[0]}=1', "
            "or leave out all weights for a strict order"
        )
    queues = read_queue_names(words)
    twice = next((name for i, name in enumerate(queues) if name in queues[:i]), "")
    if twice and not without:
        return f"'{twice}' has two weights; keep one of them"
    return ""
