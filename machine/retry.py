"""
Attempt -> delay. Pure arithmetic.

Fibonacci is Machinery's contract (``RetryTimeout`` on the wire is its state).
"""

from __future__ import annotations


def fibonacci_next(start: int) -> int:
    """
    Return the first Fibonacci number greater than ``start``, in seconds.

    0→1 1→2 2→3 3→5 4→5 5→8: delays from 0 are 1, 2, 3, 5, 8, 13 …
    Source: Machinery's ``retry.FibonacciNext``.
    """
    a, b = 0, 1
    while b <= start:
        a, b = b, a + b
    return b


def backoff_s(attempt: int, *, first_s: float, most_s: float) -> float:
    """
    Return ``first_s`` doubled for each attempt after the first, at most ``most_s``.

    Args:
        attempt: From 1; anything lower counts as 1.
        first_s: Seconds after the first attempt, > 0.
        most_s: The ceiling in seconds.
    """
    return min(most_s, first_s * 2.0 ** min(max(attempt, 1) - 1, 60))
