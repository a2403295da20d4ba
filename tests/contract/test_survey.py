"""
What a broker counts, on every adapter.
"""

from __future__ import annotations

from typing import Any

from machine.ports.broker import QueueCount


def test_an_empty_queue_counts_nothing(bench: Any) -> None:
    survey = bench.broker.survey([bench.queue])

    assert survey.queues == [QueueCount(bench.queue, 0, 0, 0, [], b"")]
    assert survey.delayed == 0


def test_what_waits_runs_and_is_delayed_is_counted(bench: Any) -> None:
    worker = bench.worker()
    [first, second, _] = bench.send("a", "b", "c")
    bench.broker.enqueue([bench.message("d", due_ns=bench.now_ns() + 10**12)])
    [claim] = bench.take(worker)

    survey = bench.broker.survey([bench.queue])

    assert claim.payload == first.payload
    assert survey.queues == [QueueCount(bench.queue, 2, 1, 0, [worker], second.payload)]
    assert survey.delayed == 1
    bench.make(bench.finish(claim))
    for left in bench.take(worker, 5):
        bench.make(bench.finish(left))


def test_a_dead_letter_is_counted(bench: Any) -> None:
    claim = bench.take_one("a")
    bench.make(bench.finish(claim, "FAILURE", letter=(claim.id, b"{}")))

    [count] = bench.broker.survey([bench.queue]).queues

    assert (count.pending, count.running, count.dead) == (0, 0, 1)


def test_each_queue_is_counted_for_itself_in_the_order_asked(bench: Any) -> None:
    other = f"{bench.queue}.other"
    bench.worker("w1", other, bench.queue)
    bench.send("a", queue=other)
    bench.send("b", "c")
    [claim] = bench.take("w1", 1, other)

    first, second = bench.broker.survey([other, bench.queue]).queues

    assert (first.queue, first.pending, first.running) == (other, 0, 1)
    assert (second.queue, second.pending, second.running) == (bench.queue, 2, 0)
    bench.make(bench.finish(claim))
    for left in bench.take("w1", 5):
        bench.make(bench.finish(left))


def test_nothing_is_asked_of_no_queues(bench: Any) -> None:
    assert bench.broker.survey([]).queues == []


def test_counting_changes_nothing(bench: Any) -> None:
    bench.worker()
    bench.send("a")
    before = bench.dump()

    bench.broker.survey([bench.queue])

    assert bench.dump() == before
    for left in bench.take("w1", 5):
        bench.make(bench.finish(left))
