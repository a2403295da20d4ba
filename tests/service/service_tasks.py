"""
Tasks for the service tests: each run signs a list in Redis, so that runs can be counted.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from machine import current_task, task

# Patient: a test restarts the server under it, and the ledger is not what is tested.
_raw = redis.Redis.from_url(os.environ["BROKER"], retry=Retry(ConstantBackoff(0.1), 100))


def _sign(name: str) -> None:
    context = current_task()
    _raw.rpush(f"{context.signature.routing_key}.runs", f"{name} {os.getpid()}")


@task
def hold(name: str, seconds: float) -> str:
    """Run for so long."""
    _sign(name)
    time.sleep(seconds)
    return name


@task(on_crash="fail")
def hold_once(name: str, seconds: float) -> str:
    """Run for so long, and never a second time."""
    _sign(name)
    time.sleep(seconds)
    return name


@task
def until_released(name: str, key: str) -> str:
    """Run until something is pushed to a key."""
    _sign(name)
    _raw.blpop([key], 60)
    return f"{name} by {os.getpid()}"


@task
def poison(name: str, how: str) -> None:
    """Take the process down."""
    _sign(name)
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


@task
def hog(name: str) -> str:
    """Hold the interpreter for seconds, as a bad regular expression does."""
    _sign(name)
    re.match(r"(a+)+$", "a" * 27 + "b")
    return name


@task
def write_down(ledger: str, name: str) -> None:
    """Add a name to a list."""
    _raw.rpush(ledger, name)
