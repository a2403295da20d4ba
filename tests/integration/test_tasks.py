"""A task from sending to its result: what runs, what is written, what comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import (
    Arg,
    ResultNotFound,
    Signature,
    SignatureError,
    TaskFailed,
    current_task,
    new_signature,
)

if TYPE_CHECKING:
    from tests.integration.conftest import Yard

DAY_S = 86_400


def golden_state(golden: Callable[[str], bytes], name: str, like: dict[str, Any]) -> bytes:
    """Return what Go wrote, with the id, the name and the time of another state."""
    document = json.loads(golden(name))
    text = golden(name).decode()
    for key in ("TaskUUID", "TaskName", "CreatedAt"):
        text = text.replace(f'"{key}":"{document[key]}"', f'"{key}":"{like[key]}"')
    return text.encode()


# -- results -----------------------------------------------------------------------------------


def test_a_task_runs_and_its_value_comes_back(yard: Yard) -> None:
    add = yard.task(lambda a, b: a + b, name="add")
    result = add.send(1, 1)

    yard.run()

    assert result.get(timeout=5) == 2


def test_a_list_travels_as_one_argument(yard: Yard) -> None:
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    yard.task(total, name="sum")
    signature = Signature(name="sum", args=[Arg("[]int64", [1, 2])])

    result = yard.server.send_task(signature)
    yard.run()

    assert result.get(timeout=5) == 3


@pytest.mark.parametrize(
    ("value", "results"),
    [
        (None, []),
        (("foo", "bar"), ["foo", "bar"]),
        (b"hi\xff", [b"hi\xff"]),
        (185135722552891243, [185135722552891243]),
        (9223372036854775808, [9223372036854775808]),
        (1.0, [1.0]),
        ([1, 2], [[1, 2]]),
        ({"a": [1, None]}, [{"a": [1, None]}]),
    ],
    ids=repr,
)
def test_what_a_task_returns_comes_back_in_order_and_type(
    yard: Yard, value: Any, results: list[Any]
) -> None:
    give = yard.task(lambda: value, name="give")
    result = give.send()

    yard.run()

    assert result.results(timeout=5) == results
    assert [type(one) for one in result.results()] == [type(one) for one in results]


def test_a_failure_is_raised_with_the_tasks_own_words(yard: Yard) -> None:
    def fail() -> tuple[int, str]:
        raise ValueError("Test error")

    result = yard.task(fail).send()
    yard.run()

    with pytest.raises(TaskFailed, match=r"^Test error$") as caught:
        result.get(timeout=5)
    assert (caught.value.uuid, caught.value.task_name) == (result.uuid, "fail")
    assert result.values is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state_success_add", 2),
        ("state_success_bytes", b"hi\xff"),
        ("state_success_nothing", None),
        ("state_success_map", {"a": [None, "x", 1.5], "b": 1}),
    ],
)
def test_a_success_is_written_as_go_writes_it(
    yard: Yard, golden: Callable[[str], bytes], name: str, value: Any
) -> None:
    result = yard.task(lambda: value, name="give").send()
    pending = yard.document(result.uuid)

    yard.run()

    assert yard.raw.get(result.uuid) == golden_state(golden, name, pending)


def test_a_failure_is_written_as_go_writes_it(yard: Yard, golden: Callable[[str], bytes]) -> None:
    def fail() -> None:
        raise RuntimeError('Test error <&> "q" \u2028')

    result = yard.task(fail).send()
    pending = yard.document(result.uuid)

    yard.run()

    assert yard.raw.get(result.uuid) == golden_state(golden, "state_failure", pending)


def test_a_pending_task_is_written_as_go_writes_it(
    yard: Yard, golden: Callable[[str], bytes]
) -> None:
    result = yard.task(lambda: None, name="later").send()

    written = yard.raw.get(result.uuid)

    assert written == golden_state(golden, "state_pending", yard.document(result.uuid))
    yard.run()


# -- states ------------------------------------------------------------------------------------


def test_states_live_as_long_as_the_settings_say(make_yard: Callable[..., Yard]) -> None:
    yard = make_yard(results_expire_in=1234)
    result = yard.task(lambda: None, name="nothing").send()
    waiting_s = yard.raw.ttl(result.uuid)

    yard.run()

    assert DAY_S - 5 <= waiting_s <= DAY_S
    assert 1229 <= yard.raw.ttl(result.uuid) <= 1234


@pytest.mark.parametrize("slots", [1, 2])
def test_a_task_that_runs_is_shown_as_started_under_its_first_name_and_time(
    yard: Yard, wait_until: Callable[..., object], slots: int
) -> None:
    go_on = threading.Event()
    result = yard.task(lambda: go_on.wait(5), name="hold").send()
    pending = yard.document(result.uuid)
    child = yard.child(slots=slots)
    working = threading.Thread(target=lambda: yard.drain(child))

    working.start()
    wait_until(lambda: yard.document(result.uuid)["State"] == "STARTED", 5, "STARTED is shown")
    started = yard.document(result.uuid)
    go_on.set()
    working.join(5)

    assert started == pending | {"State": "STARTED"}
    assert yard.document(result.uuid) == pending | {
        "State": "SUCCESS",
        "Results": [{"Type": "bool", "Value": True}],
    }


def test_nothing_is_known_of_an_unknown_id(yard: Yard) -> None:
    assert yard.server.get_state("task_unknown") is None
    with pytest.raises(
        ResultNotFound, match=r"^No state is kept under 'task_unknown'. It was never sent, or it "
    ):
        yard.server.result("task_unknown").get(timeout=5)


def test_a_purged_state_is_gone(yard: Yard) -> None:
    result = yard.task(lambda: 1, name="one").send()
    yard.run()

    yard.server.purge_state(result.uuid)

    assert yard.server.get_state(result.uuid) is None


# -- queues ------------------------------------------------------------------------------------


def test_tasks_run_in_the_order_they_were_sent(yard: Yard) -> None:
    ran: list[int] = []
    note = yard.task(ran.append, name="note")
    for number in range(20):
        yard.server.send_task(Signature(name=note.name, args=[Arg("int64", number)]))

    yard.run()

    assert ran == list(range(20))


@pytest.mark.leaves("queue")
def test_a_task_for_another_queue_stays_there(yard: Yard) -> None:
    other = f"{yard.queue}.other"
    yard.task(lambda: None, name="nothing").s().options(queue=other).send()

    yard.run()

    assert [signature.routing_key for signature in yard.server.pending_tasks(other)] == [other]


def test_the_first_queue_is_emptied_before_the_second(yard: Yard) -> None:
    ran: list[str] = []
    yard.task(lambda: ran.append(current_task().signature.routing_key), name="note")
    urgent, other = f"{yard.queue}.urgent", f"{yard.queue}.other"
    for queue in (other, urgent, other, urgent):
        yard.server.send_task(Signature(name="note", routing_key=queue))

    yard.drain(yard.child(queues=[urgent, other]))

    assert ran == [urgent, urgent, other, other]


def test_a_task_knows_its_own_message_and_a_fence_that_grows(yard: Yard) -> None:
    seen: list[Any] = []
    yard.task(lambda: seen.append(current_task()), name="look")
    sent = [yard.server.send_task(new_signature("look")) for _ in range(3)]

    yard.run()

    assert [context.signature.uuid for context in seen] == [result.uuid for result in sent]
    assert [context.attempt for context in seen] == [1, 1, 1]
    assert seen[0].fence < seen[1].fence < seen[2].fence


def test_waiting_inside_a_task_is_refused(yard: Yard) -> None:
    def wait() -> None:
        yard.server.result("task_other").get(timeout=5)

    result = yard.task(wait).send()
    yard.run()

    with pytest.raises(TaskFailed, match=r"^Task 'wait' waits for the result of another task"):
        result.get(timeout=5)


@pytest.mark.parametrize("slots", [1, 3])
def test_async_tasks_run_on_an_event_loop(yard: Yard, slots: int) -> None:
    async def double(number: int) -> int:
        return 2 * number

    twice = yard.task(double)
    results = [twice.send(number) for number in range(10)]

    yard.drain(yard.child(slots=slots))

    assert [result.get(timeout=5) for result in results] == [2 * number for number in range(10)]


def test_no_more_tasks_run_at_once_than_there_are_slots(yard: Yard) -> None:
    running, most, lock = set(), [0], threading.Lock()
    full = threading.Event()

    def occupy(number: int) -> None:
        with lock:
            running.add(number)
            most[0] = max(most[0], len(running))
            if len(running) == 3:
                full.set()
        full.wait(5)
        with lock:
            running.discard(number)

    hold = yard.task(occupy)
    results = [hold.send(number) for number in range(12)]

    yard.drain(yard.child(slots=3))

    assert [result.get(timeout=5) for result in results] == [None] * 12
    assert most == [3]


def test_an_id_that_was_sent_before_is_not_sent_again(yard: Yard) -> None:
    ran: list[int] = []
    signature = yard.task(lambda: ran.append(1), name="once").s().replace(uuid=f"task_{yard.queue}")

    first, second = signature.send(), signature.send()
    yard.run()

    assert first.uuid == second.uuid
    assert ran == [1]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("int8", 300, r"argument 0 of task 'take'.*int8"),
        ("float64", float("nan"), r"argument 0 of task 'take'.*"),
        ("int64", True, r"argument 0 of task 'take'.*"),
        ("[]int64", 5, r"argument 0 of task 'take'.*"),
    ],
)
def test_what_go_could_not_read_is_refused_before_anything_is_written(
    yard: Yard, raw: redis.Redis, kind: str, value: Any, text: str
) -> None:
    signature = Signature(name="take", args=[Arg(kind, value)], uuid=f"task_{yard.queue}")

    with pytest.raises((SignatureError, TypeError), match=text):
        yard.server.send_task(signature)

    assert raw.exists(signature.uuid, yard.queue) == 0


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("int64", 1.5, 'strconv.ParseInt: parsing "1.5": invalid syntax'),
        ("int64", None, "<nil> is not int64"),
        ("string", None, "<nil> is not string"),
        ("[]int64", [None], "<nil> is not int64"),
        ("struct", 1, "struct is not one of supported types"),
        ("[]byte", "a", "illegal base64 data at input byte"),
    ],
)
def test_arguments_that_are_not_of_their_type_fail_the_task_without_a_retry(
    yard: Yard, kind: str, value: Any, error: str
) -> None:
    yard.task(lambda given: given, name="take")
    uuid = f"task_{yard.queue}"
    args = [{"Name": "", "Type": kind, "Value": value}]
    yard.push({"UUID": uuid, "Name": "take", "Args": args, "RetryCount": 3})

    yard.run()

    with pytest.raises(TaskFailed, match=r"^Reflect task args error: ") as caught:
        yard.server.result(uuid).get(timeout=5)
    assert error in str(caught.value)
    assert yard.raw.zcard(yard.delayed_key) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_a_call_with_the_wrong_number_of_arguments_fails(yard: Yard, count: int) -> None:
    yard.task(lambda given: given, name="take")
    args = [Arg("int64", 1)] * count

    result = yard.server.send_task(Signature(name="take", args=args))
    yard.run()

    with pytest.raises(TaskFailed, match="argument"):
        result.get(timeout=5)
