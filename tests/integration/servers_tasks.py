"""
Tasks for workers in processes of their own.
"""

from __future__ import annotations

import time

from machine import task


@task
def add(a: int, b: int) -> int:
    """Add two numbers, at once."""
    return a + b


@task
def add_slowly(a: int, b: int) -> int:
    """Take as long as a look at a database, so that a few are always under way."""
    time.sleep(0.02)
    return a + b
