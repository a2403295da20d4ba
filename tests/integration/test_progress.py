"""Progress: what a running task says of itself, as callers see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from machine import current_task
from machine.wire.signature import Progress

if TYPE_CHECKING:
    from machine import AsyncResult
    from tests.integration.conftest import Yard

PATIENCE_S = 10.0

each_pool = pytest.mark.parametrize("slots", [1, 3], ids=["inline", "mixed"])
each_kind = pytest.mark.parametrize("kind", ["def", "async def"])


class Steps:
    """A task that says one word after the other, each when the test lets it."""

    def __init__(self, *words: tuple[float, str]) -> None:
        self.words = words
        self.go_on = threading.Semaphore(0)

    def work(self) -> str:
        """Say each word, and wait for leave to go on."""
        for fraction, note in self.words:
            current_task().progress(fraction, note)
            assert self.go_on.acquire(timeout=PATIENCE_S)
        return "done"

    async def awork(self) -> str:
        """Do what `work` does, on an event loop."""
        for fraction, note in self.words:
            current_task().progress(fraction, note)
            assert await asyncio.to_thread(self.go_on.acquire, timeout=PATIENCE_S)
        return "done"


def progress_of(yard: Yard, uuid: str) -> Any:
    """Return what callers see of a task's progress."""
    (state,) = yard.backend.read([uuid])
    return None if state is None else (state.state, state.progress)


@each_pool
@each_kind
def test_a_running_tasks_progress_is_in_its_state_and_gone_at_its_end(
    yard: Yard, wait_until: Callable[..., object], slots: int, kind: str
) -> None:
    words = [(0, ""), (0.25, "a quarter"), (1.0, 'nearly "done"')]
    steps = Steps(*words)
    result: AsyncResult[Any]
    result = yard.task(steps.work if kind == "def" else steps.awork, name="work").send()
    child = yard.child(slots=slots)
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()

    for fraction, note in words:
        seen = ("STARTED", Progress(fraction, note))
        wait_until(
            lambda s=seen: progress_of(yard, result.uuid) == s, 5, f"callers see {fraction} {note}"
        )
        steps.go_on.release()
    thread.join(PATIENCE_S)

    assert result.get(timeout=5) == "done"
    assert progress_of(yard, result.uuid) == ("SUCCESS", None)
    assert "Progress" not in yard.document(result.uuid)


@each_pool
def test_of_many_words_the_last_one_is_shown(
    yard: Yard, wait_until: Callable[..., object], slots: int
) -> None:
    go_on = threading.Event()

    def work() -> None:
        for step in range(1001):
            current_task().progress(step / 1000, f"step {step}")
        assert go_on.wait(PATIENCE_S)

    result = yard.task(work).send()
    child = yard.child(slots=slots)
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()

    last = ("STARTED", Progress(1.0, "step 1000"))
    wait_until(lambda: progress_of(yard, result.uuid) == last, 5, "the last word is shown")
    go_on.set()
    thread.join(PATIENCE_S)

    assert result.get(timeout=5) is None


def test_each_task_of_a_worker_has_its_own_progress(
    yard: Yard, wait_until: Callable[..., object]
) -> None:
    go_on = threading.Event()

    def work(fraction: float) -> None:
        current_task().progress(fraction)
        assert go_on.wait(PATIENCE_S)

    task = yard.task(work)
    results = {fraction: task.send(fraction) for fraction in (0.25, 0.5, 0.75)}
    child = yard.child(slots=3)
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()

    for fraction, result in results.items():
        seen = ("STARTED", Progress(fraction))
        wait_until(
            lambda u=result.uuid, s=seen: progress_of(yard, u) == s, 5, f"callers see {fraction}"
        )
    go_on.set()
    thread.join(PATIENCE_S)

    assert [result.get(timeout=5) for result in results.values()] == [None] * 3


@pytest.mark.parametrize("fraction", [-0.001, 1.001, float("nan"), float("inf"), float("-inf")])
def test_progress_out_of_bounds_is_refused_inside_the_task(yard: Yard, fraction: float) -> None:
    def work() -> str:
        current_task().progress(0.5)
        try:
            current_task().progress(fraction)
        except ValueError as error:
            return str(error)
        return "taken"

    result = yard.task(work).send()
    yard.run()

    assert result.get(timeout=5) == f"progress {fraction!r} is out of bounds; give 0 to 1."


def test_a_long_note_is_cut(yard: Yard, wait_until: Callable[..., object]) -> None:
    steps = Steps((0.5, "\N{SNOWMAN}" * 10_000))
    result = yard.task(steps.work, name="work").send()
    child = yard.child()
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()

    wait_until(lambda: "Progress" in yard.document(result.uuid), 5, "progress is shown")
    note = yard.document(result.uuid)["Progress"]["Note"]
    steps.go_on.release()
    thread.join(PATIENCE_S)

    assert note.startswith("\N{SNOWMAN}" * 100)
    assert len(note.encode()) <= 1024
    assert result.get(timeout=5) == "done"


def test_a_task_that_says_nothing_has_no_progress(
    yard: Yard, wait_until: Callable[..., object]
) -> None:
    go_on = threading.Event()
    result = yard.task(lambda: go_on.wait(PATIENCE_S), name="work").send()
    child = yard.child()
    thread = threading.Thread(target=lambda: yard.drain(child))
    thread.start()

    wait_until(lambda: yard.document(result.uuid)["State"] == "STARTED", 5, "it runs")
    document = yard.document(result.uuid)
    go_on.set()
    thread.join(PATIENCE_S)

    assert "Progress" not in document
    assert "Attempts" not in document
