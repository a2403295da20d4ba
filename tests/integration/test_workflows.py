"""Chains, groups, chords and callbacks, from sending to the last value."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, BrokerUnavailable, Signature, TaskFailed, chain, chord, group
from machine.embedded import EmbeddedServer
from machine.redis import keys
from machine.redis.link import script
from machine.registry.task import Task
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


class Sums:
    """The arithmetic of Machinery's examples, and what was called with what."""

    def __init__(self, yard: Yard) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.add: Task[Any, Any] = yard.task(self._add, name="add")
        self.multiply: Task[Any, Any] = yard.task(self._multiply, name="multiply")
        self.fail: Task[Any, Any] = yard.task(self._fail, name="fail")
        self.tell: Task[Any, Any] = yard.task(self._tell, name="tell")
        self.several: Task[Any, Any] = yard.task(lambda: (1, "two"), name="several")

    def _add(self, *numbers: int) -> int:
        self.calls.append(("add", *numbers))
        return sum(numbers)

    def _multiply(self, *numbers: int) -> int:
        self.calls.append(("multiply", *numbers))
        product = 1
        for number in numbers:
            product *= number
        return product

    def _fail(self, *_args: Any) -> None:
        raise RuntimeError("boom")

    def _tell(self, *args: Any) -> str:
        self.calls.append(("tell", *args))
        return "told"


@pytest.fixture
def sums(yard: Yard) -> Sums:
    """Return the tasks, registered."""
    return Sums(yard)


# -- chains ------------------------------------------------------------------------------------


def test_a_chain_appends_each_result_to_the_next_arguments(yard: Yard, sums: Sums) -> None:
    result = (sums.add.s(1, 1) | sums.add.partial(5, 5) | sums.multiply.partial(4)).send()

    yard.run()

    assert result.get(timeout=5) == 48
    assert sums.calls == [("add", 1, 1), ("add", 5, 5, 2), ("multiply", 4, 12)]


def test_later_members_of_a_chain_have_no_state_before_they_are_sent(
    yard: Yard, sums: Sums
) -> None:
    result = (sums.add.s(1) | sums.add.partial() | sums.add.partial()).send()

    seen = [member.state is not None for member in result.members]

    assert seen == [True, False, False]
    yard.run()


def test_a_failing_member_ends_the_chain(yard: Yard, sums: Sums) -> None:
    result = chain(sums.add.s(1), sums.fail.partial(), sums.add.partial()).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^boom$") as caught:
        result.get(timeout=5)
    assert caught.value.uuid == result.members[1].uuid
    assert sums.calls == [("add", 1)]


def test_what_was_to_follow_a_failed_member_of_a_chain_ends_as_not_run(
    yard: Yard, sums: Sums
) -> None:
    result = chain(sums.fail.s(), sums.add.partial(), sums.add.partial(), sums.add.partial()).send()
    failed = result.members[0].uuid

    yard.run()

    assert sums.calls == []
    for member in result.members[1:]:
        document = yard.document(member.uuid)
        assert document["State"] == "FAILURE"
        assert document["Error"] == f"not run: fail {failed} failed: boom"
        assert document["TaskName"] == "add"
        assert 0 < yard.raw.ttl(member.uuid) <= 3600


def test_an_immutable_parent_hands_nothing_on(yard: Yard, sums: Sums) -> None:
    result = chain(sums.add.s(1, 1).options(immutable=True), sums.add.s(100)).send()

    yard.run()

    assert result.get(timeout=5) == 100


# -- callbacks ---------------------------------------------------------------------------------


def test_every_success_callback_gets_all_results_last(yard: Yard, sums: Sums) -> None:
    first = Signature(name="tell", args=[Arg("string", "own")])
    sums.several.s().link(first, Signature(name="tell")).send()

    yard.run()

    assert sums.calls == [("tell", "own", 1, "two"), ("tell", 1, "two")]


def test_every_error_callback_gets_the_error_first(yard: Yard, sums: Sums) -> None:
    callback = Signature(name="tell", args=[Arg("string", "extra")], uuid=f"task_{yard.queue}")
    result = sums.fail.s().link_error(callback, Signature(name="tell")).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^boom$"):
        result.get(timeout=5)
    assert sums.calls == [("tell", "boom", "extra"), ("tell", "boom")]
    assert yard.server.result(callback.uuid).get(timeout=5) == "told"


def test_success_sends_no_error_callback_and_failure_no_success_callback(
    yard: Yard, sums: Sums
) -> None:
    for task in (sums.several, sums.fail):
        task.s().link(Signature(name="tell", args=[Arg("string", "well")])).link_error(
            Signature(name="tell", args=[Arg("string", "badly")])
        ).send()

    yard.run()

    assert sums.calls == [("tell", "well", 1, "two"), ("tell", "boom", "badly")]


def test_a_callback_without_a_queue_goes_to_the_default_queue(yard: Yard, sums: Sums) -> None:
    other = f"{yard.queue}.other"
    message = {"UUID": "", "Name": "several", "RoutingKey": other, "OnSuccess": [{"Name": "tell"}]}
    yard.push(message, other)
    child = yard.child(queues=[other, yard.queue])

    yard.drain(child)
    yard.leave(child)

    assert sums.calls == [("tell", 1, "two")]


def test_a_result_too_large_fails_the_task_and_calls_its_error_callback(
    yard: Yard, sums: Sums
) -> None:
    big = yard.task(lambda: "x" * 2_000_000, name="big")
    result = big.s().link_error(Signature(name="tell")).link(Signature(name="add")).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^The result of task 'big' is too large: 2\d{6} bytes"):
        result.get(timeout=5)
    assert [call[0] for call in sums.calls] == ["tell"]
    assert "is too large" in sums.calls[0][1]


# -- groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("send_concurrency", [0, 2])
def test_a_groups_values_come_back_in_its_order(
    yard: Yard, sums: Sums, send_concurrency: int
) -> None:
    result = group(sums.add.s(1, 1), sums.add.s(2, 2), sums.add.s(5, 6)).send(send_concurrency)

    yard.run()

    assert result.get(timeout=5) == [2, 4, 11]


def test_a_groups_members_share_its_id_and_its_meta_names_them(yard: Yard, sums: Sums) -> None:
    result = group(sums.add.s(1), sums.add.s(2)).send()

    messages, meta = yard.ready(), yard.document(result.group_uuid)

    assert {message["GroupUUID"] for message in messages} == {result.group_uuid}
    assert {message["GroupTaskCount"] for message in messages} == {2}
    assert meta["TaskUUIDs"] == [member.uuid for member in result.members]
    assert 0 < yard.raw.ttl(result.group_uuid) <= 86_400
    yard.run()


def test_a_group_is_found_by_its_id_alone(yard: Yard, sums: Sums) -> None:
    sent = group(sums.add.s(1), sums.add.s(2)).send()

    yard.run()

    assert yard.server.group_result(sent.group_uuid).get(timeout=5) == [1, 2]


def test_a_failed_member_fails_the_group(yard: Yard, sums: Sums) -> None:
    result = group(sums.add.s(1), sums.fail.s()).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^boom$"):
        result.get(timeout=5)


# -- chords ------------------------------------------------------------------------------------


def test_a_chord_calls_back_with_all_results(yard: Yard, sums: Sums) -> None:
    result = chord(group(sums.add.s(1, 1), sums.add.s(5, 5)), sums.multiply.partial()).send()

    yard.run()

    assert result.get(timeout=5) == 20
    assert result.uuid.startswith("chord_")


def test_a_callbacks_own_arguments_come_first_and_then_the_group_in_order(
    yard: Yard, sums: Sums
) -> None:
    members = [sums.add.s(number).replace(uuid=f"task_{yard.queue}_{number}") for number in (1, 2)]
    result = chord(group(*members, sums.several.s()), sums.tell.partial("own")).send()
    # The last member of the group ends first.
    for payload in reversed(yard.raw.lrange(yard.queue, 0, -1)):
        yard.raw.lrem(yard.queue, 1, payload)
        yard.raw.rpush(yard.queue, payload)

    yard.run()

    assert result.get(timeout=5) == "told"
    assert sums.calls == [("add", 2), ("add", 1), ("tell", "own", 1, 2, 1, "two")]


def test_an_immutable_callback_gets_its_own_arguments_only(yard: Yard, sums: Sums) -> None:
    callback = sums.multiply.s(3).options(immutable=True)
    result = chord(group(sums.add.s(1), sums.add.s(2)), callback).send()

    yard.run()

    assert result.get(timeout=5) == 3


def test_an_immutable_member_still_hands_its_result_to_the_callback(yard: Yard, sums: Sums) -> None:
    members = group(sums.add.s(2).options(immutable=True), sums.add.s(10))
    result = chord(members, sums.multiply.partial(3)).send()

    yard.run()

    assert result.get(timeout=5) == 60


def test_a_fired_chord_leaves_only_keys_that_pass(yard: Yard, sums: Sums) -> None:
    result = chord(group(sums.add.s(1), sums.add.s(2)), sums.add.partial()).send()

    yard.run()

    assert yard.document(result.group.group_uuid)["ChordTriggered"] is True
    assert yard.raw.exists(keys.chords(yard.queue)) == 0
    assert 0 < yard.raw.ttl(keys.group_done(yard.queue, result.group.group_uuid)) <= 86_400


@pytest.mark.parametrize("fails_first", [True, False])
def test_a_failed_member_fails_the_callback_and_whoever_waits_learns_why(
    yard: Yard, sums: Sums, fails_first: bool
) -> None:
    members = [sums.fail.s(), sums.add.s(1)]
    ordered = members if fails_first else members[::-1]
    callback = sums.multiply.partial().link_error(Signature(name="tell"))
    result = chord(group(*ordered), callback).send()
    failed = result.group.members[0 if fails_first else 1]

    yard.run()

    error = f"chord member {failed.uuid} failed: boom"
    with pytest.raises(TaskFailed, match=r"^boom$"):
        result.get(timeout=5)
    assert yard.document(result.uuid)["State"] == "FAILURE"
    assert yard.document(result.uuid)["Error"] == error
    assert sums.calls == [("add", 1), ("tell", error)]


def test_the_error_callback_of_a_chord_gets_the_failures_of_all_members(
    yard: Yard, sums: Sums
) -> None:
    callback = sums.add.partial().link_error(sums.tell.partial())
    result = chord(group(sums.fail.s(), sums.add.s(1), sums.fail.s()), callback).send()
    first, _, third = (member.uuid for member in result.group.members)

    yard.run()

    text = f"2 of 3 chord members failed: {first}: boom; {third}: boom"
    assert yard.document(result.uuid)["Error"] == text
    assert sums.calls == [("add", 1), ("tell", text)]
    assert [state.task_uuid for state in result.failures()] == [first, third]


def test_a_member_whose_result_is_too_large_fails_the_callback(yard: Yard, sums: Sums) -> None:
    big = yard.task(lambda: "x" * 2_000_000, name="big")
    result = chord(group(sums.add.s(1), big.s()), sums.tell.partial()).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^The result of task 'big' is too large"):
        result.get(timeout=5)
    assert yard.document(result.uuid)["State"] == "FAILURE"


def test_a_member_with_malformed_arguments_fails_the_callback(yard: Yard, sums: Sums) -> None:
    result = chord(group(sums.add.s(1), sums.add.s(2)), sums.multiply.partial()).send()
    payload = yard.raw.lindex(yard.queue, 1)
    yard.raw.lset(yard.queue, 1, payload.replace(b'"Value":2', b'"Value":"two"'))

    yard.run()

    assert yard.document(result.uuid)["State"] == "FAILURE"


def test_a_member_whose_result_has_expired_fails_the_callback(yard: Yard, sums: Sums) -> None:
    result = chord(group(sums.add.s(1), sums.add.s(2)), sums.multiply.partial()).send()
    child = yard.child()
    gone = result.group.members[0].uuid
    last = yard.raw.rpop(yard.queue)
    yard.drain(child)

    yard.raw.delete(gone)
    yard.push(last)
    yard.drain(child)

    with pytest.raises(TaskFailed, match=rf"^chord member {gone} has no result any more$"):
        yard.server.result(result.uuid).get(timeout=5)


def test_a_chord_whose_meta_has_expired_fails_its_callback(yard: Yard, sums: Sums) -> None:
    result = chord(group(sums.add.s(1), sums.add.s(2)), sums.multiply.partial()).send()

    yard.server.backend.purge_group(result.group.group_uuid)
    yard.run()

    error = f"group {result.group.group_uuid} has no members any more: it expired"
    with pytest.raises(TaskFailed, match=error):
        yard.server.result(result.uuid).get(timeout=5)


def test_a_chord_whose_worker_died_before_firing_is_fired_by_the_second_sweep(
    yard: Yard, sums: Sums, server: EmbeddedServer
) -> None:
    result = chord(group(sums.add.s(1), sums.add.s(2)), sums.multiply.partial(5)).send()
    sweep = yard.sweep()
    with Proxy(server.port) as proxy:
        lost = proxy.lose(script("fire_chord").digest, answer=False)
        child = yard.child(replace(yard.config, broker=proxy.url, result_backend=proxy.url))
        with pytest.raises(BrokerUnavailable):
            yard.drain(child)
        yard.leave(child)
    armed = yard.raw.hlen(keys.chords(yard.queue))

    sweep.run_once(0.0)
    after_one = yard.raw.hlen(keys.chords(yard.queue))
    sweep.run_once(1.0)
    yard.run()

    assert lost.is_set()
    assert (armed, after_one, yard.raw.hlen(keys.chords(yard.queue))) == (1, 1, 0)

    assert result.get(timeout=5) == 10
    assert sums.calls.count(("multiply", 5, 1, 2)) == 1


def test_a_chord_fires_once_though_workers_and_sweeps_race(yard: Yard, sums: Sums) -> None:
    results = [
        chord(group(sums.add.s(n) for n in range(4)), sums.tell.partial(number)).send()
        for number in range(25)
    ]
    children = [yard.child(slots=2) for _ in range(3)]
    stop = threading.Event()

    def sweep() -> None:
        duty = yard.sweep()
        while not stop.is_set():
            duty.run_once(0.0)

    def work(child: Any) -> None:
        while not stop.is_set():
            child.run_once(0.01)

    threads = [threading.Thread(target=sweep)]
    threads += [threading.Thread(target=work, args=(child,)) for child in children]
    for thread in threads:
        thread.start()
    values = [result.get(timeout=10) for result in results]
    stop.set()
    for thread in threads:
        thread.join(10)
    yard.drain(*children)

    told = sorted(call for call in sums.calls if call[0] == "tell")
    assert values == ["told"] * 25
    assert told == [("tell", number, 0, 1, 2, 3) for number in range(25)]
