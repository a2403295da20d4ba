"""
Attempt -> delay. Pure arithmetic.

Fibonacci is Machinery's contract (``RetryTimeout`` on the wire is its state).
"""

from __future__ import annotations
