"""What the server is told, and in which order: lines of the list that only Redis can show."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, Signature, TaskFailed, chain, chord, group

if TYPE_CHECKING:
    from tests.acceptance.conftest import Bench

Overheard = Callable[[Callable[[], object]], list[list[str]]]
SECOND_NS = 1_000_000_000


def first(lines: list[list[str]], command: str, key: str) -> int:
    """Return when a key was first given a command."""
    found = [n for n, line in enumerate(lines) if line[:2] == [command, key]]
    assert found, f"{command} {key} is not among {lines}"
    return found[0]


@pytest.mark.acceptance(17)
def test_a_number_that_its_type_cannot_hold_fails_its_task_and_no_other(bench: Bench) -> None:
    take = bench.task(lambda given: given, "take")
    args = [{"Name": "", "Type": "int8", "Value": 300}]
    bench.push({"UUID": f"task_{bench.queue}", "Name": "take", "Args": args})
    behind = take.send(1)

    with bench.worker():
        value = behind.get(timeout=10)
    with pytest.raises(TaskFailed) as caught:
        bench.server.result(f"task_{bench.queue}").get(timeout=5)

    expected = "Reflect task args error: 300 is out of range for int8 (-128 to 127)"
    assert str(caught.value) == expected
    assert value == 1


@pytest.mark.acceptance(21)
@pytest.mark.leaves("queue")
def test_pending_is_written_before_the_message_is_pushed(
    bench: Bench, overheard: Overheard
) -> None:
    signature = Signature(name="add", uuid=f"task_{bench.queue}")

    lines = overheard(lambda: bench.server.send_task(signature))

    assert first(lines, "SET", signature.uuid) < first(lines, "RPUSH", bench.queue)


@pytest.mark.acceptance(35)
def test_each_state_is_written_with_its_expiry_in_one_command(
    bench: Bench, overheard: Overheard
) -> None:
    signature = Signature(name="nothing", uuid=f"task_{bench.queue}")
    bench.task(lambda: None, "nothing")

    def send_and_run() -> None:
        result = bench.server.send_task(signature)
        with bench.worker():
            result.get(timeout=10)

    lines = [line for line in overheard(send_and_run) if line[1:2] == [signature.uuid]]

    writes = [line for line in lines if line[0] == "SET"]
    assert len(writes) >= 2
    assert [line for line in writes if "EX" not in line] == []
    assert [line for line in lines if line[0] in ("EXPIRE", "PEXPIRE")] == []
    assert 3590 <= bench.raw.ttl(signature.uuid) <= 3600


@pytest.mark.acceptance(43)
@pytest.mark.leaves("queue")
def test_a_worker_of_one_queue_leaves_the_default_queue_alone(bench: Bench) -> None:
    ran: list[str] = []
    bench.task(ran.append, "note")
    other = f"{bench.queue}.other"
    here = Signature(name="note", args=[Arg("string", "default")])
    there = Signature(name="note", args=[Arg("string", "other")], routing_key=other)
    left = bench.server.send_task(here)

    with bench.worker(other):
        bench.server.send_task(there).get(timeout=10)

    assert ran == ["other"]
    assert [signature.uuid for signature in bench.server.pending_tasks()] == [left.uuid]


@pytest.mark.acceptance(45)
def test_a_delayed_tasks_score_is_its_time_within_a_microsecond(
    bench: Bench, delayed_key: str
) -> None:
    eta_ns = time.time_ns() + 3600 * SECOND_NS

    bench.server.send_task(Signature(name="add", eta_ns=eta_ns))

    [(_, score)] = bench.raw.zrange(delayed_key, 0, -1, withscores=True)
    assert abs(int(score) - eta_ns) <= 1000
    assert bench.raw.exists(bench.queue) == 0
    bench.raw.delete(delayed_key)


@pytest.mark.acceptance(46)
def test_a_task_due_in_a_tenth_of_a_second_does_not_run_before(
    bench: Bench, wait_until: Callable[..., Any]
) -> None:
    ran_ns: list[int] = []
    bench.task(lambda: ran_ns.append(time.time_ns()), "now")
    eta_ns = time.time_ns() + SECOND_NS // 10
    bench.server.send_task(Signature(name="now", eta_ns=eta_ns))

    def has_run() -> bool:
        bench.move_what_is_due()
        return bool(ran_ns)

    with bench.worker():
        wait_until(has_run, 10, "the delayed task has run")

    assert ran_ns[0] >= eta_ns


@pytest.mark.acceptance(52, 54)
@pytest.mark.leaves("queue")
def test_pending_tasks_of_no_queue_are_the_default_queues_without_the_delayed(
    bench: Bench, delayed_key: str
) -> None:
    empty = bench.server.pending_tasks(bench.queue)
    ready = bench.server.send_task(Signature(name="add"))
    bench.server.send_task(Signature(name="add", eta_ns=time.time_ns() + 3600 * SECOND_NS))

    unnamed, named = bench.server.pending_tasks(""), bench.server.pending_tasks(bench.queue)

    assert empty == []
    assert [signature.uuid for signature in unnamed] == [ready.uuid]
    assert unnamed == named
    bench.raw.delete(delayed_key)


@pytest.mark.acceptance(62)
def test_a_default_queue_without_a_name_is_the_list_without_a_name(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(default_queue="")
    result = bench.task(lambda: "done", "work").send()
    waiting = bench.raw.llen("")

    with bench.worker():
        value = result.get(timeout=10)

    assert (waiting, value) == (1, "done")


@pytest.mark.acceptance(88, 92)
def test_machinerys_own_sums_come_to_what_they_come_to_there(bench: Bench) -> None:
    add = bench.task(lambda *numbers: sum(numbers), "add")
    multiply = bench.task(product, "multiply")
    sums = [add.s(1, 1), add.s(2, 2), add.s(5, 6)]

    with bench.worker():
        found = [
            sent.send().get(timeout=10)
            for sent in (
                chain(add.s(1, 1), add.partial(5, 5), multiply.partial(4)),
                chain(add.s(2, 2), add.partial(5, 6), multiply.partial(4)),
                chord(group(sums), multiply.partial()),
                chord(group(add.s(1, 1), add.s(5, 5)), multiply.partial(3)),
            )
        ]

    assert found == [48, 60, 88, 60]


def product(*numbers: int) -> int:
    value = 1
    for number in numbers:
        value *= number
    return value


@pytest.mark.acceptance(91)
@pytest.mark.leaves("queue")
def test_a_groups_record_is_written_before_its_first_member_is_pushed(
    bench: Bench, overheard: Overheard
) -> None:
    sent: list[str] = []
    members = group(Signature(name="add"), Signature(name="add"))

    lines = overheard(lambda: sent.append(bench.server.send_group(members).group_uuid))

    assert first(lines, "SET", sent[0]) < first(lines, "RPUSH", bench.queue)
