"""
Your tasks: ordinary functions, sent by name and run by a worker.

To add one, write a function here and put ``@task`` above it; nothing else has
to change. Annotate what it takes: values are checked where they are sent.
Arguments and results are numbers, texts, booleans, bytes, and lists of these.

    @task(queue="mail", retry_count=3)
    def send_mail(to: str, *, subject: str = "hello") -> str:
        ...
        return f"sent to {to}"

    send_mail("ann@example.org")                # runs here, as any function
    send_mail.send("ann@example.org").get()     # runs on a worker
"""

from __future__ import annotations

import asyncio
import math
import time

from machine import current_task, task


@task
def add(*args: int) -> int:
    """Return the sum; in a chain, the result of the task before comes last."""
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
    """Hold a worker's slot for so long."""
    time.sleep(seconds)
    return seconds


@task
async def nap(seconds: float) -> float:
    """Wait on the worker's event loop, where thousands can wait side by side."""
    await asyncio.sleep(seconds)
    return seconds


@task
def fail(message: str) -> None:
    """Fail for good; whoever waits for the result gets this message."""
    raise RuntimeError(message)


@task(retry_count=2)
def flaky() -> str:
    """Fail twice, then succeed: a worker runs it again after 1 s and after 2 s."""
    attempt = current_task().attempt
    if attempt < 3:
        raise ConnectionError(f"attempt {attempt} failed")
    return f"succeeded at attempt {attempt}"


@task
def climb(steps: int) -> int:
    """Take a step each 0.1 s; callers see how far it is, and may cancel it on the way."""
    run = current_task()
    for step in range(1, steps + 1):
        run.raise_if_canceled()
        time.sleep(0.1)
        run.progress(step / steps, f"step {step} of {steps}")
    return steps
