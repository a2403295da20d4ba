"""
The demo caller: every kind of call, each printed with its result.

Run it while a worker runs: ``python caller/caller.py``. Copy what your own
program needs. A caller imports `machine` and never the worker.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from uuid import uuid4

from machine import (
    BrokerUnavailable,
    ConfigError,
    MachineError,
    Server,
    TaskFailed,
    chord,
    connect,
    group,
)
from machine.tasks import add, fail, flaky, multiply, nap, say

#: Seconds to wait for each result.
PATIENCE_S = 60.0


def one_task(_server: Server) -> object:
    """Send a task and wait for its result."""
    return say.send("masnun").get(timeout=PATIENCE_S)


def a_chain(_server: Server) -> object:
    """Send tasks that run one after the other; each gets the result before it as last argument."""
    return (add.s(1, 1) | add.partial(5, 5) | multiply.partial(4)).send().get(timeout=PATIENCE_S)


def a_group(_server: Server) -> object:
    """Send tasks that run side by side, and wait for all results."""
    return group(add.s(n, n) for n in range(1, 6)).send().get(timeout=PATIENCE_S)


def a_chord(_server: Server) -> object:
    """Send a group, and a task that runs after it with all results."""
    results = chord(group(add.s(1, 1), add.s(5, 5)), multiply.partial()).send()
    return results.get(timeout=PATIENCE_S)


def a_delayed_task(_server: Server) -> object:
    """Send a task that must not start within the next half second."""
    sent_at = time.monotonic()
    value = add.s(20, 22).options(countdown=0.5).send().get(timeout=PATIENCE_S)
    if time.monotonic() - sent_at < 0.5:
        raise AssertionError("the delayed task ran too early")
    return value


def retries(_server: Server) -> object:
    """Send a task that fails twice, and succeeds on its second retry."""
    return flaky.send().get(timeout=PATIENCE_S)


def a_failure(server: Server) -> object:
    """Send a task that fails for good; its error callback gets the error's text."""
    callback = say.partial().options(uuid=f"task_{uuid4()}")
    failing = fail.s("no such planet").link_error(callback).send()
    try:
        failing.get(timeout=PATIENCE_S)
    except TaskFailed as error:
        told = server.result(callback.uuid).get(timeout=PATIENCE_S)
        return f"{error}; its callback: {told}"
    raise AssertionError("a failing task did not fail")


async def many_at_once() -> object:
    """Send from an event loop; waiting for any number of results takes one connection."""
    sent = [await nap.asend(0.01) for _ in range(20)]
    return sum([await result.aget(timeout=PATIENCE_S) for result in sent]) > 0


#: The text that is printed -> the call, and the result that it must have.
CALLS: dict[str, tuple[Callable[[Server], object], object]] = {
    'say("masnun")': (one_task, "Hello masnun!"),
    "multiply(add(add(1, 1), 5, 5), 4)": (a_chain, 48),
    "group(add(1, 1) … add(5, 5))": (a_group, [2, 4, 6, 8, 10]),
    "multiply(add(1, 1), add(5, 5))": (a_chord, 20),
    "add(20, 22) in 0.5 s": (a_delayed_task, 42),
    "flaky(), with its retries": (retries, "succeeded at attempt 3"),
    'fail("no such planet")': (a_failure, "no such planet; its callback: Hello no such planet!"),
    "20 × nap(0.01), asyncio": (lambda _server: asyncio.run(many_at_once()), True),
}


def ping(server: Server) -> None:
    """Raise at once where no worker can be reached; sending would try for half a minute."""
    if server.config.broker == "eager":
        raise ConfigError("broker is 'eager', which no worker shares; give a Redis URL.")
    server.broker.ping()


def call_all(server: Server) -> int:
    """Make every call and print its result; return how many results are not as expected."""
    wrong = 0
    started_at = time.monotonic()
    for text, (call, expected) in CALLS.items():
        try:
            value = call(server)
        except (MachineError, AssertionError) as error:
            value = f"{type(error).__name__}: {error}"
        wrong += value != expected
        mark = "ok   " if value == expected else "WRONG"
        print(f"{mark} {text:36} {value}", flush=True)
    took_s = time.monotonic() - started_at
    print(f"{len(CALLS)} calls, {wrong} wrong, {took_s:.1f} s")
    return wrong


def main() -> int:
    """Make every call; return 0 if all results are as expected, 1 if not, 2 or 3 if it cannot."""
    try:
        with connect() as server:
            ping(server)
            return 1 if call_all(server) else 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, BrokerUnavailable):
            print("Start one with 'make redis', or set BROKER to yours.", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
