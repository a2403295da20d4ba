"""
More than sending and waiting: nested workflows, progress, canceling, expiry, periodic tasks.

It prints each call with its result. Run it while a worker runs: ``python examples/tour.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from machine import MachineError, build, chord, connect, group
from machine.config import Config
from machine.errors import TaskCanceled, TaskExpired
from machine.results.task import AsyncResult
from machine.server import Server
from machine.tasks import add, climb, flaky, multiply, say

#: Seconds to wait for anything.
PATIENCE_S = 30.0
#: The name of the periodic task in the timetable.
PERIODIC = "tour.greeting"


def until(happened: Callable[[], bool], what: str) -> None:
    """Poll until something has happened; to wait for a result, a program calls ``get()``."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.02)  # get() cannot wait for this: it waits for the final state only


def a_nested_workflow(_server: Server) -> object:
    """Send a chain with a group in it; one member of the group is a chain."""
    inner = group(add.partial(1) | multiply.partial(10), add.partial(2))
    return (add.s(1) | inner | add.partial()).send().get(timeout=PATIENCE_S)


def a_chord_of_chords(_server: Server) -> object:
    sums = [chord([add.s(n), add.s(n)], add.partial()) for n in (1, 2, 3)]
    return chord(sums, multiply.partial()).send().get(timeout=PATIENCE_S)


def progress(_server: Server) -> object:
    """Follow a task that reports its progress."""
    result = climb.send(10)
    seen = []

    def ended() -> bool:
        here = result.progress
        if here is not None and here not in seen:
            seen.append(here)
        return result.has_ended

    until(ended, "the climb to end")
    fractions = [here.fraction for here in seen]
    if not fractions or fractions != sorted(fractions):
        raise AssertionError(f"the climb said {seen}")
    return result.get()


def a_cancel(_server: Server) -> object:
    """Cancel a running task."""
    result = climb.send(1000)
    until(lambda: result.progress is not None, "the climb to begin")
    canceled = result.cancel()
    try:
        result.get(timeout=PATIENCE_S)
    except TaskCanceled as error:
        return canceled, str(error)
    raise AssertionError("a canceled task gave a result")


def one_at_a_time(_server: Server) -> object:
    """Send two tasks with one key: the second send returns the result of the first."""
    mine = climb.s(3).options(unique="tour")
    first, second = mine.send(), mine.send()
    return first.uuid == second.uuid, second.get(timeout=PATIENCE_S)


def too_late(_server: Server) -> object:
    """Send a task that expired last year."""
    late = add.s(1, 2).options(expires=datetime(2025, 1, 1, tzinfo=UTC)).send()
    try:
        late.get(timeout=PATIENCE_S)
    except TaskExpired as error:
        return str(error)
    raise AssertionError("an expired task ran")


def a_periodic_task(server: Server) -> object:
    """Have a task sent each second. Usually workers do that; here this program does."""
    server.register_periodic_task("@every 1s", PERIODIC, say.s("Ann"))
    server.resume_periodic(PERIODIC)
    began = datetime.now(UTC).timestamp()
    server.start_scheduler()

    def sent() -> bool:
        [entry] = [entry for entry in server.periodic_tasks() if entry.name == PERIODIC]
        return entry.sent_at is not None and entry.sent_at.timestamp() > began

    until(sent, "the first run")
    return server.cancel_periodic(PERIODIC)


CALLS: dict[str, tuple[Callable[[Server], object], object]] = {
    "add(1) | (… | multiply(10), …) | add": (a_nested_workflow, 23),
    "a chord of three chords": (a_chord_of_chords, 48),
    "climb(10), with its progress": (progress, 10),
    "climb(1000).cancel()": (a_cancel, (True, "canceled")),
    'twice climb(3), unique="tour"': (one_at_a_time, (True, 3)),
    "add(1, 2), expired": (too_late, "expired: it was to start before 2025-01-01T00:00:00Z"),
    'say("Ann") "@every 1s", then canceled': (a_periodic_task, True),
}


def history(result: AsyncResult[str]) -> object:
    """Return the errors of the runs before the last one."""
    result.get(timeout=PATIENCE_S)
    return [attempt.error for attempt in result.state.attempts] if result.state else None


def main() -> int:
    """Make every call; return 0 if all results are as expected."""
    config = Config.load()
    build.ping(config)
    wrong = 0
    with connect(config) as server:
        # Sent first, because it runs again after 1 s and after 2 s.
        retried = flaky.send()
        calls = CALLS | {
            "flaky(), the runs before the last": (
                lambda _server: history(retried),
                ["attempt 1 failed", "attempt 2 failed"],
            )
        }
        for text, (call, expected) in calls.items():
            try:
                value = call(server)
            except (MachineError, AssertionError) as error:
                value = f"{type(error).__name__}: {error}"
            wrong += value != expected
            print(f"{'ok   ' if value == expected else 'WRONG'} {text:36} {value}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MachineError as error:
        sys.exit(f"error: {error}")
