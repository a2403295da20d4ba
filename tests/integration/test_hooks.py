"""
What is called around tasks, and when a process has done its share.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from machine import Hooks, Signature, SignatureError, TaskFailed
from machine.registry import Registry


def test_hooks_are_called_around_a_task_and_after_a_failure(yard: Any) -> None:
    seen: list[str] = []
    task = yard.task(lambda: seen.append("task"), name="work")
    fails = yard.task(divide, name="fails")
    yard.server.registry.hooks = Hooks(
        pre_task=lambda signature: seen.append(f"before {signature.name}"),
        post_task=lambda signature: seen.append(f"after {signature.name}"),
        on_error=lambda text, signature: seen.append(f"{signature.name}: {text}"),
    )
    yard.server.send_task(task.s())
    failing = yard.server.send_task(fails.s())

    yard.run()

    assert seen == [
        *("before work", "task", "after work"),
        *("before fails", "after fails", "fails: division by zero"),
    ]
    with pytest.raises(TaskFailed, match="division by zero"):
        failing.get(timeout=5)


def test_an_error_hook_hears_of_the_last_failure_only(yard: Any) -> None:
    seen: list[str] = []
    fails = yard.task(divide, name="fails", retry_count=1)
    yard.server.registry.hooks = Hooks(on_error=lambda text, _signature: seen.append(text))
    yard.server.send_task(fails.s())

    yard.run()
    before = list(seen)
    yard.make_due()
    yard.promoter().run_once(0)
    yard.run()

    assert before == []
    assert seen == ["division by zero"]


def test_what_a_hook_raises_before_a_task_fails_it_and_after_it_nothing(yard: Any) -> None:
    task = yard.task(lambda: "done", name="work")
    yard.server.registry.hooks = Hooks(post_task=cast(Callable[[Signature], None], divide))
    fine = yard.server.send_task(task.s())
    yard.run()

    yard.server.registry.hooks = Hooks(pre_task=refuse)
    refused = yard.server.send_task(task.s())
    yard.run()

    assert fine.get(timeout=5) == "done"
    with pytest.raises(TaskFailed, match="not now"):
        refused.get(timeout=5)


def test_nothing_is_taken_while_the_hook_before_consuming_says_no(yard: Any) -> None:
    answers = [False, False, True, True]
    task = yard.task(lambda: "done", name="work")
    yard.server.registry.hooks = Hooks(pre_consume=lambda: answers.pop(0) if answers else True)
    result = yard.server.send_task(task.s())
    child = yard.child()

    first = child.run_once(0)
    still = len(yard.ready())
    for _ in range(4):
        child.run_once(0)

    assert (first, still) == (0, 1)
    assert result.get(timeout=5) == "done"


@pytest.mark.leaves("queue")
def test_a_process_ends_after_its_share_and_gives_back_the_rest(yard: Any) -> None:
    task = yard.task(lambda number: number, name="work")
    results = [yard.server.send_task(task.s(number)) for number in range(5)]
    child = yard.new_child(max_tasks=2)

    child.run()

    ended = [result for result in results if result.state.is_completed]
    assert len(ended) >= 2
    assert len(yard.ready()) == 5 - len(ended)


def test_a_process_that_holds_too_much_memory_ends(yard: Any) -> None:
    task = yard.task(lambda number: number, name="work")
    yard.server.send_task(task.s(1))
    child = yard.new_child(max_memory_bytes=1)

    child.run()

    assert yard.ready() == []


def test_two_sets_of_hooks_are_refused() -> None:
    registry = Registry()
    one, other = SimpleNamespace(h=Hooks(post_task=print)), SimpleNamespace(h=Hooks(pre_task=print))

    registry.collect(cast(Any, one))

    with pytest.raises(SignatureError, match="There are two Hooks among the tasks"):
        registry.collect(cast(Any, other))


def divide(*_: object) -> float:
    return 1 / 0


def refuse(_signature: Signature) -> None:
    message = "not now"
    raise RuntimeError(message)
