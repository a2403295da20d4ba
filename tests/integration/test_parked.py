"""
Messages of unknown tasks, and the worker that comes and knows them.
"""

from __future__ import annotations

from collections.abc import Callable

from machine import Signature

from .conftest import Yard


def _put_aside_for_long(yard: Yard, name: str = "late") -> str:
    """Let a worker that does not know a task put it aside until it waits a minute."""
    uuid = yard.server.send_task(Signature(name=name)).uuid
    for _ in range(7):
        yard.run()
        yard.make_due()
    yard.run()
    return uuid


def test_a_worker_that_knows_the_task_runs_it_as_soon_as_it_comes(
    yard: Yard, make_yard: Callable[..., Yard]
) -> None:
    uuid = _put_aside_for_long(yard)
    [(_, due_ns)] = yard.delayed()
    assert due_ns / 1e9 - yard.clock.now_ns() / 1e9 > 50
    other = make_yard()
    other.task(lambda: 42, name="late")

    knower = other.child()
    other.promoter().run_once(0.0)
    other.drain(knower)

    assert other.server.result(uuid).get(timeout=5) == 42
    assert other.delayed() == []


def test_a_worker_that_does_not_know_it_either_leaves_it_aside(
    yard: Yard, make_yard: Callable[..., Yard]
) -> None:
    _put_aside_for_long(yard)
    before = yard.delayed()
    other = make_yard()
    other.task(lambda: 42, name="another")

    other.run()

    assert yard.delayed() == before
    yard.raw.delete(yard.delayed_key)


def test_a_task_that_is_due_later_on_purpose_is_not_called_back(yard: Yard) -> None:
    _put_aside_for_long(yard)
    yard.task(lambda: 42, name="late")
    later = yard.server.send_task(Signature(name="late", eta_ns=yard.clock.now_ns() + 30 * 10**9))

    child = yard.child()
    yard.promoter().run_once(0.0)
    yard.drain(child)

    assert [message["UUID"] for message, _ in yard.delayed()] == [later.uuid]
    yard.make_due()
    yard.drain(child)
