"""
The tasks of the Python workers, under the names that go/tasks.go gives its own.

What a test needs to know of a run, a task writes down in Redis by itself:
nothing of the machine is asked about its own work.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import redis

from machine import RetryLater, current_task, task

HERE = "py"

_client = redis.Redis.from_url(os.environ["BROKER"])


def _echo(value: Any) -> Any:
    return value


_INTS = [f"{sign}int{bits}" for sign in ("", "u") for bits in ("", 8, 16, 32, 64)]
_SCALARS = ["bool", *_INTS, "float32", "float64", "string"]
for _kind in (*_SCALARS, *(f"slice_{scalar}" for scalar in _SCALARS), "slice_byte"):
    globals()[f"echo_{_kind}"] = task(name=f"echo_{_kind}")(_echo)


@task
def add(*numbers: int) -> int:
    return sum(numbers)


@task
def subtract(a: int, b: int) -> int:
    return a - b


@task
def multiply(*numbers: int) -> int:
    return math.prod(numbers)


@task
def halve(x: float) -> float:
    return x / 2


@task
def whole_float() -> float:
    return 2


@task
def no_words() -> list[str]:
    return []


@task
def joined(*parts: str) -> str:
    return "|".join(parts)


@task
def collected(*numbers: int) -> list[int]:
    return list(numbers)


@task
def nothing() -> None:
    pass


@task
def several() -> tuple[Any, ...]:
    return "two\nlines <&>", -7, 0.5, True, b"\x00\xff", ["a", ""]


@task
def relabel(a: str, b: int, c: float, d: bool, e: bytes, f: list[str]) -> tuple[Any, ...]:
    return a, b, c, d, e, f


@task
def fail(text: str) -> int:
    raise RuntimeError(text)


panics = task(name="panics")(fail.fn)


@task
def now() -> int:
    return time.time_ns()


@task
def relay(path: str) -> str:
    """Fail as often as the path has steps left, each time where the path says; see go/tasks.go."""
    steps = path.split(",")
    left = current_task().signature.retry_count
    step = len(steps) - 1 - left
    if steps[step] != HERE:
        raise RetryLater(0.02, "not mine")
    if left:
        raise RuntimeError(f"step {step} failed in {HERE}")
    return HERE


@task
def insist(wanted: str) -> str:
    """Ask to be run again until it is run where it wants to be."""
    if wanted != HERE:
        raise RetryLater(0.02, "not mine")
    return HERE


@task
def count(number: int) -> tuple[str, int]:
    """Note that this task was run, and say where."""
    _client.hincrby("runs", current_task().signature.uuid, 1)
    return HERE, number


@task
def count_sum(*numbers: int) -> int:
    """Note that this task was run, and return the sum."""
    count.fn(0)
    return sum(numbers)


@task
def gated(gate: str, number: int) -> int:
    """Note that it runs, and return the number once a key of the gate's name exists."""
    count.fn(0)
    while not _client.exists(gate):
        time.sleep(0.002)
    return number


@task
def gated_halfway(gate: str, number: int) -> int:
    """Say that half is done, and go on when the gate is open."""
    current_task().progress(0.5, 'half <"é">')
    return gated.fn(gate, number)


@task
def gated_fail(gate: str, text: str) -> int:
    """Fail with this text once the gate is open."""
    gated.fn(gate, 0)
    raise RuntimeError(text)


@task
def only_py(n: int) -> tuple[str, int]:
    return HERE, n
