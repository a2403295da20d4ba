"""The waker contract: it says that there may be something, and takes nothing."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from machine.ports.broker import Waker
    from tests.contract.conftest import Bench


def has_news(waker: Waker, within_s: float = 5.0) -> bool:
    """Wait for a descriptor to become readable."""
    return bool(select.select(waker.filenos(), [], [], within_s)[0])


def test_a_waker_wakes_when_something_is_queued_and_takes_nothing(bench: Bench) -> None:
    worker = bench.worker()
    waker = bench.broker.waker([bench.queue])
    try:
        waker.arm()
        bench.send("a")

        assert has_news(waker)
        assert waker.collect() is True
    finally:
        waker.close()
    assert [bench.name_of(claim.payload) for claim in bench.take(worker)] == ["a"]


def test_a_waker_wakes_at_once_when_something_is_there_already(bench: Bench) -> None:
    bench.send("a")
    waker = bench.broker.waker([bench.queue])
    try:
        waker.arm()

        assert has_news(waker)
        assert waker.collect() is True
    finally:
        waker.close()


def test_a_waker_with_nothing_to_tell_collects_nothing(bench: Bench) -> None:
    waker = bench.broker.waker([bench.queue])
    try:
        waker.arm()

        assert waker.collect() is False
    finally:
        waker.close()


def test_a_waker_listens_to_each_of_its_queues(bench: Bench) -> None:
    other = f"{bench.queue}.other"
    waker = bench.broker.waker([bench.queue, other])
    try:
        waker.arm()
        bench.send("a", queue=other)

        assert has_news(waker)
        assert waker.collect() is True
    finally:
        waker.close()


def test_a_waker_wakes_again_after_it_is_armed_again(bench: Bench) -> None:
    worker = bench.worker()
    waker = bench.broker.waker([bench.queue])
    try:
        for name in ("a", "b", "c"):
            waker.arm()
            waker.arm()
            bench.send(name)

            assert has_news(waker)
            assert waker.collect() is True
            assert [bench.name_of(claim.payload) for claim in bench.take(worker)] == [name]
    finally:
        waker.close()


def test_a_wake_up_does_not_change_the_order(bench: Bench) -> None:
    worker = bench.worker()
    waker = bench.broker.waker([bench.queue])
    try:
        waker.arm()
        bench.send("a", "b", "c")

        assert has_news(waker)
        assert waker.collect() is True
    finally:
        waker.close()
    assert [bench.name_of(c.payload) for c in bench.take(worker, 3)] == ["a", "b", "c"]


def test_what_is_given_back_is_ready_again_in_its_order(bench: Bench) -> None:
    waker = bench.broker.waker([bench.queue])
    try:
        waker.arm()
        bench.send("a", "b")
        assert has_news(waker)
        assert waker.collect() is True

        waker.give_back()
    finally:
        waker.close()
    assert bench.pending() == ["a", "b"]


def test_giving_back_wakes_another_worker(bench: Bench) -> None:
    first, second = (bench.broker.waker([bench.queue]) for _ in range(2))
    try:
        first.arm()
        second.arm()
        bench.send("a")
        ready, _, _ = select.select([*first.filenos(), *second.filenos()], [], [], 5.0)
        woken, other = (first, second) if first.filenos()[0] in ready else (second, first)
        assert woken.collect() is True

        woken.give_back()

        assert has_news(other)
        assert other.collect() is True
    finally:
        first.close()
        second.close()


def test_giving_back_nothing_does_nothing(bench: Bench) -> None:
    waker = bench.broker.waker([bench.queue])
    try:
        waker.give_back()
    finally:
        waker.close()
    assert bench.pending() == []
