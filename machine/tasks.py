"""
Your tasks: ordinary functions that callers send by name and workers run.

To add one, write a function here and put ``@task`` above it. Nothing else has
to change. Annotate the parameters: arguments are checked where they are sent.
Arguments and results are numbers, texts, booleans, bytes, and lists of one of these.

    @task(queue="mail", retry_count=3)
    def send_mail(to: str, *, subject: str = "hello") -> str:
        ...
        return f"sent to {to}"

    send_mail("ann@example.org")                # runs here, like any function
    send_mail.send("ann@example.org").get()     # runs on a worker; get() waits for it

The tasks below are examples; the demo and the tests use them.
"""

from __future__ import annotations

import asyncio
import math
import time

from machine import current_task, task


@task
def add(*args: int) -> int:
    """Return the sum. In a chain, the result of the task before is the last argument."""
    return sum(args)


@task
def multiply(*args: int) -> int:
    """Return the product."""
    return math.prod(args)


@task
def say(name: str) -> str:
    """Greet somebody."""
    return f"Hello {name}!"


@task
def sleep(seconds: float) -> float:
    """Block one slot of a worker for so many seconds."""
    time.sleep(seconds)
    return seconds


@task
async def nap(seconds: float) -> float:
    """Wait on the worker's event loop, where thousands of tasks can wait at once."""
    await asyncio.sleep(seconds)
    return seconds


@task
def fail(message: str) -> None:
    """Fail without a retry; the caller's ``get()`` raises `TaskFailed` with this message."""
    raise RuntimeError(message)


@task(retry_count=2)
def flaky() -> str:
    """Fail twice, then succeed; a worker runs it again after 1 s and after 2 s."""
    attempt = current_task().attempt
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt} failed")
    return f"succeeded at attempt {attempt}"


@task
def climb(steps: int) -> int:
    """Take a step each 0.1 s; callers see the progress, and can cancel the task."""
    run = current_task()  # this run: progress, cancellation, attempt, the message
    for step in range(1, steps + 1):
        run.raise_if_canceled()
        time.sleep(0.1)
        run.progress(step / steps, f"step {step} of {steps}")
    return steps
