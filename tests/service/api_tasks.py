"""
Tasks for the tests of the HTTP caller.
"""

from __future__ import annotations

import os

import redis

from machine import current_task, task

_raw = redis.Redis.from_url(os.environ["BROKER"])


def _runs(name: str) -> None:
    _raw.rpush(f"{current_task().signature.routing_key}.runs", f"{name} {os.getpid()}")


@task
def add(*numbers: int) -> int:
    """Return the sum."""
    return sum(numbers)


@task
def shout(text: str, times: int = 1, *, loud: bool = False) -> str:
    """Return the text so many times."""
    return " ".join([text.upper() if loud else text] * times)


@task
def turned(data: bytes) -> bytes:
    """Return the bytes in reverse."""
    return data[::-1]


@task
def mean(numbers: list[float]) -> float:
    """Return the mean."""
    return sum(numbers) / len(numbers)


@task
def counted(name: str) -> str:
    """Sign the list of runs."""
    _runs(name)
    return name


@task
def in_two_halves(key: str) -> str:
    """Say that half is done, and end when something is pushed to a key."""
    current_task().progress(0.5, "half")
    _runs("half")
    _raw.blpop([key], 60)
    return "whole"


@task
def fail(message: str) -> None:
    """Fail."""
    raise RuntimeError(message)


@task(unique=True, on_duplicate="refuse")
def alone(name: str) -> str:
    """Run as the only one of its name."""
    return name
