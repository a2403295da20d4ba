"""
The storm's tasks: each run signs a ledger in Redis before it works.
"""

from __future__ import annotations

import os
import time

import redis

from machine import current_task, task

_ledger = redis.Redis.from_url(os.environ["STORM_LEDGER"])


@task
def work(number: int, milliseconds: int) -> int:
    """Sign with number, fence and process; work; return the fence."""
    fence = current_task().fence
    _ledger.rpush("ledger", f"{number} {fence} {os.getpid()}")
    time.sleep(milliseconds / 1000)
    return fence
