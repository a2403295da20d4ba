"""Workers that die, freeze, or lose an answer: what they held is run or failed, never lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from machine import BrokerUnavailable, Signature, TaskFailed, chord, group
from machine.embedded import EmbeddedServer
from machine.ports.moves import Claim
from machine.redis import keys
from machine.redis.link import script
from machine.runtime.child.session import new_worker_id
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def claim(yard: Yard, want: int = 1) -> list[Claim]:
    """Take messages as a worker that then dies does."""
    worker_id = new_worker_id()
    yard.broker.register(worker_id, [yard.queue])
    return yard.broker.exchange(worker_id, [yard.queue], [], want).claims


def crash(yard: Yard, claims: list[Claim], own_id: str = "") -> None:
    """Let a reaper find the worker of these claims dead."""
    yard.reaper(own_id).reap_at_once(claims[0].worker_id)


# -- the dead ----------------------------------------------------------------------------------


def test_what_a_dead_worker_held_runs_on_another(yard: Yard) -> None:
    ran: list[int] = []
    result = yard.task(lambda: ran.append(1), name="once").send()
    claims = claim(yard)
    reaper = yard.reaper()

    reaper.run_once(100.0)
    early = yard.raw.llen(yard.queue)
    reaper.run_once(103.4)
    yard.run()

    assert len(claims) == 1
    assert early == 0
    assert (result.get(timeout=5), ran) == (None, [1])


def test_a_worker_whose_stamp_moves_is_left_alone_whatever_the_time(yard: Yard) -> None:
    yard.task(lambda: None, name="nothing").send()
    [held] = claim(yard)
    reaper = yard.reaper()

    for now_s in (0.0, 1000.0, 2000.0):
        # Its stamp has moved since the last look.
        yard.raw.zincrby(keys.workers(yard.queue), 1, held.worker_id)
        reaper.run_once(now_s)

    assert yard.raw.hlen(keys.held(yard.queue, held.worker_id)) == 1
    crash(yard, [held])
    yard.run()


def test_what_dead_workers_held_goes_back_in_its_old_order(yard: Yard) -> None:
    ran: list[str] = []
    yard.task(lambda: ran.append("x"), name="note")
    sent = [yard.server.send_task(Signature(name="note")).uuid for _ in range(6)]
    claims = claim(yard, want=4)

    crash(yard, claims)

    assert [message["UUID"] for message in yard.ready()] == sent
    yard.run()


def test_a_suspect_runs_alone(yard: Yard) -> None:
    together: list[int] = []
    running = [0]

    def look() -> None:
        running[0] += 1
        together.append(running[0])
        threading.Event().wait(0.01)
        running[0] -= 1

    yard.task(look)
    for _ in range(6):
        yard.server.send_task(Signature(name="look"))
    crash(yard, claim(yard, want=6))

    yard.drain(yard.child(slots=4))

    assert together == [1] * 6


def test_a_task_that_killed_its_workers_three_times_is_buried_and_failed(yard: Yard) -> None:
    told: list[Any] = []
    yard.task(lambda *texts: told.append(texts), name="tell")
    poison = yard.task(lambda: None, name="poison").s().link_error(Signature(name="tell")).send()
    counts = []

    for _ in range(3):
        claims = claim(yard)
        counts.append(claims[0].crash_count)
        crash(yard, claims)
    yard.run()

    assert counts == [0, 1, 2]
    with pytest.raises(TaskFailed, match=r"^quarantined: killed 3 workers$"):
        poison.get(timeout=5)
    [(payload, reason)] = yard.letters()
    assert json.loads(payload)["UUID"] == poison.uuid
    assert reason == "quarantined: killed 3 workers"
    assert told == [("quarantined: killed 3 workers",)]


def test_a_dead_letter_runs_again_when_it_is_replayed(yard: Yard) -> None:
    ran: list[int] = []
    result = yard.task(lambda: ran.append(1), name="once").send()
    for _ in range(3):
        crash(yard, claim(yard))
    [letter] = yard.broker.dead(yard.queue)

    yard.broker.replay(yard.queue, [letter.id])
    yard.run()

    assert ran == [1]
    assert yard.letters() == []
    assert yard.raw.exists(result.uuid) == 1


def test_a_task_that_must_not_run_twice_fails_when_its_worker_dies(yard: Yard) -> None:
    ran: list[int] = []
    result = yard.task(lambda: ran.append(1), name="once", on_crash="fail").send()

    crash(yard, claim(yard))
    yard.run()

    with pytest.raises(
        TaskFailed, match=r"^the worker died while it ran this task, and on_crash is 'fail'$"
    ):
        result.get(timeout=5)
    assert ran == []
    assert yard.letters() == []


def test_the_chord_of_a_convicted_member_fails(yard: Yard) -> None:
    once = yard.task(lambda: 1, name="once", on_crash="fail")
    add = yard.task(lambda *numbers: sum(numbers), name="add")
    result = chord(group(once.s(), add.s(1)), add.partial()).send()
    crash(yard, claim(yard))

    yard.run()

    with pytest.raises(TaskFailed, match=r"^the worker died while it ran this task"):
        result.get(timeout=5)
    assert yard.document(result.uuid)["State"] == "FAILURE"


def test_a_conviction_whose_answer_was_lost_is_carried_out_at_the_next_look(yard: Yard) -> None:
    result = yard.task(lambda: None, name="once", on_crash="fail").send()
    [held] = claim(yard)
    own_id = new_worker_id()
    reaper = yard.reaper(own_id)
    stamp = yard.broker.roster(yard.queue).stamps[held.worker_id]
    # The supervisor's reap was carried out, and its answer lost.
    yard.broker.reap(yard.queue, held.worker_id, stamp, own_id, [held.id])

    reaper.run_once(0.0)

    with pytest.raises(TaskFailed, match=r"^the worker died while it ran this task"):
        result.get(timeout=1)


def test_a_conviction_whose_state_has_no_place_is_buried_once(yard: Yard) -> None:
    result = yard.task(lambda: None, name="once", on_crash="fail").send()
    claims = claim(yard)
    yard.raw.delete(result.uuid)
    yard.raw.rpush(result.uuid, "somebody else's")

    crash(yard, claims)
    yard.reaper().run_once(0.0)

    assert yard.raw.lrange(result.uuid, 0, -1) == [b"somebody else's"]
    assert len(yard.letters()) == 1
    assert list(yard.raw.scan_iter(f"{{{yard.queue}}}:w:*")) == []
    yard.raw.delete(result.uuid)


def test_more_claims_than_one_reap_takes_all_go_back(yard: Yard) -> None:
    yard.task(lambda: None, name="nothing")
    for number in range(450):
        yard.push({"UUID": f"task_{yard.queue}_{number}", "Name": "nothing"})
    claims = claim(yard, want=450)

    crash(yard, claims)

    assert len(claims) == 450
    assert yard.raw.llen(yard.queue) == 450
    assert yard.raw.exists(keys.held(yard.queue, claims[0].worker_id)) == 0
    yard.raw.delete(yard.queue, keys.redelivered(yard.queue))


# -- the frozen --------------------------------------------------------------------------------


def test_a_worker_that_lost_its_lease_changes_nothing_and_works_on(yard: Yard) -> None:
    frozen, resumed, ran = threading.Event(), threading.Event(), []

    def work() -> str:
        ran.append(1)
        if len(ran) == 1:
            frozen.set()
            resumed.wait(5)
            return "late"
        return "in time"

    result = yard.task(work).send()
    zombie = yard.child()
    working = threading.Thread(target=lambda: yard.drain(zombie))
    working.start()
    frozen.wait(5)
    yard.reaper().reap_at_once(zombie.worker_id)
    yard.run()
    in_time = yard.raw.get(result.uuid)

    resumed.set()
    working.join(5)
    after = yard.task(lambda: "works on", name="after").send()
    yard.drain(zombie)

    assert result.get(timeout=5) == "in time"
    assert yard.raw.get(result.uuid) == in_time
    assert after.get(timeout=5) == "works on"


def test_a_zombies_callbacks_and_retries_are_not_sent(yard: Yard) -> None:
    frozen, resumed, ran = threading.Event(), threading.Event(), []

    def work() -> str:
        ran.append(1)
        if len(ran) == 1:
            frozen.set()
            resumed.wait(5)
            raise RuntimeError("late")
        return "in time"

    told: list[Any] = []
    yard.task(lambda *texts: told.append(texts), name="tell")
    result = yard.task(work).s().link_error(Signature(name="tell")).link(Signature(name="tell"))
    sent = result.send()
    zombie = yard.child()
    working = threading.Thread(target=lambda: yard.drain(zombie))
    working.start()
    frozen.wait(5)
    yard.reaper().reap_at_once(zombie.worker_id)
    yard.run()
    resumed.set()
    working.join(5)
    yard.drain(zombie)

    assert sent.get(timeout=5) == "in time"
    assert told == [("in time",)]


def test_a_lease_lost_on_one_queue_strands_nothing_on_another(yard: Yard) -> None:
    hold, ran = threading.Event(), []
    a, b = f"{yard.queue}.a", f"{yard.queue}.b"
    yard.task(lambda: hold.wait(5), name="hold")
    yard.task(lambda: ran.append(1), name="note")
    child = yard.child(queues=[a, b], flush_s=10.0)
    # Short tasks make the child take more than it can run at once.
    for _ in range(8):
        yard.server.send_task(Signature(name="note", routing_key=b))
    yard.drain(child)
    ran.clear()
    results = [yard.server.send_task(Signature(name="hold", routing_key=b))]
    results += [yard.server.send_task(Signature(name="note", routing_key=b)) for _ in range(2)]
    first_id = child.worker_id
    child.run_once(0)

    # A reaper took it for dead on one queue, and it came back before the other was looked at.
    yard.raw.zrem(keys.workers(a), first_id)
    child.run_once(0)
    hold.set()
    yard.drain(child)
    yard.leave(child)

    stranded = yard.raw.hgetall(keys.held(b, first_id))
    yard.raw.delete(keys.held(b, first_id), keys.workers(b))
    assert stranded == {}
    assert [result.state.state for result in results] == ["SUCCESS"] * 3


# -- lost answers ------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """Return a proxy before the run's server."""
    with Proxy(server.port) as made:
        yield made


def patient(yard: Yard, child: Any) -> None:
    """Drain as a worker's own loop does: what does not answer is asked again."""
    for _ in range(10):
        try:
            yard.drain(child)
        except BrokerUnavailable:
            continue
        return
    pytest.fail("the server did not answer ten times")


@pytest.mark.parametrize("answer", [True, False], ids=["answer", "request"])
@pytest.mark.parametrize("skip", range(7))
@pytest.mark.parametrize("slots", [1, 3])
def test_whatever_is_lost_on_the_way_every_task_runs_once(
    yard: Yard, proxy: Proxy, skip: int, answer: bool, slots: int
) -> None:
    ran: list[str] = []

    def note(name: str) -> str:
        ran.append(name)
        return name

    task = yard.task(note)
    join = yard.task(lambda *names: ran.append("joined") or "".join(names), name="join")
    results: list[Any] = [task.send(name) for name in "abcdef"]
    results.append(chord(group(task.s("g"), task.s("h")), join.partial()).send())
    through = replace(yard.config, broker=proxy.url, result_backend=proxy.url)
    child = yard.child(through, slots=slots)
    lost = proxy.lose("EVALSHA", skip=skip, answer=answer)

    patient(yard, child)
    yard.sweep().run_once(0.0)
    sweep = yard.sweep()
    sweep.run_once(0.0)
    sweep.run_once(1.0)
    patient(yard, child)

    assert [result.get(timeout=5) for result in results] == [*"abcdef", "gh"]
    assert sorted(ran) == [*"abcdefgh", "joined"]
    assert lost.is_set() or skip > 2


def test_a_send_whose_answer_was_lost_is_not_sent_twice(
    proxy: Proxy, make_yard: Callable[..., Yard]
) -> None:
    yard = make_yard(broker=proxy.url, result_backend=proxy.url)
    task = yard.task(lambda: "once", name="once")
    lost = proxy.lose(script("enqueue").digest)

    result = task.send()

    assert lost.is_set()
    assert len(yard.ready()) == 1
    yard.run()
    assert result.get(timeout=5) == "once"


def test_a_waiting_caller_survives_the_loss_of_its_connection(
    proxy: Proxy, make_yard: Callable[..., Yard], wait_until: Callable[..., object]
) -> None:
    yard = make_yard(broker=proxy.url, result_backend=proxy.url)
    result = yard.task(lambda: "there", name="there").send()
    got: list[Any] = []
    asked = proxy.requests
    waiting = threading.Thread(target=lambda: got.append(result.get(timeout=10)))

    waiting.start()
    wait_until(lambda: proxy.requests > asked + 1, 5, "the caller waits")
    proxy.cut()
    patient(yard, yard.child())
    waiting.join(10)

    assert got == ["there"]


def test_scripts_forgotten_in_between_are_taught_again(yard: Yard) -> None:
    numbers = yard.task(lambda number: number, name="number")
    total = yard.task(lambda *all_of: sum(all_of), name="total")
    child = yard.child()
    values = []

    for number in range(20):
        result = chord(group(numbers.s(number), numbers.s(1)), total.partial()).send()
        while yard.turn(child):
            yard.raw.script_flush()
        values.append(result.get(timeout=5))

    assert values == [number + 1 for number in range(20)]
