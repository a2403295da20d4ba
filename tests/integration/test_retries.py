"""Failing, waiting, trying again: Machinery's Fibonacci on the wire, and RetryLater."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, RetryLater, Signature, TaskFailed, current_task

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def tries(yard: Yard, *, fails: int) -> list[int]:
    """Register a task that fails so often before it succeeds; return where it notes its runs."""
    ran: list[int] = []

    def work() -> str:
        ran.append(current_task().attempt)
        if len(ran) <= fails:
            raise ConnectionError(f"try {len(ran)} failed")
        return "done"

    yard.task(work)
    return ran


def send(yard: Yard, **fields: Any) -> Any:
    """Send the task of `tries`."""
    return yard.server.send_task(Signature(name="work", **fields))


def test_each_retry_waits_the_next_fibonacci_number_of_seconds(yard: Yard) -> None:
    ran = tries(yard, fails=5)
    result = send(yard, retry_count=5)
    seen = []

    for _ in range(5):
        yard.run()
        [(message, score)] = yard.delayed()
        wait_s = score / 1e9 - yard.clock.now_ns() / 1e9
        seen.append((message["RetryCount"], message["RetryTimeout"], round(wait_s)))
        yard.make_due()
    yard.run()

    assert seen == [(4, 1, 1), (3, 2, 2), (2, 3, 3), (1, 5, 5), (0, 8, 8)]
    assert result.get(timeout=5) == "done"
    assert ran == [1, 2, 3, 4, 5, 6]


def test_a_started_retry_timeout_goes_on_from_there(yard: Yard) -> None:
    tries(yard, fails=1)
    result = send(yard, retry_count=1, retry_timeout=10)
    yard.run()

    [(message, _)] = yard.delayed()

    assert message["RetryTimeout"] == 13
    yard.make_due()
    yard.run()
    assert result.get(timeout=5) == "done"


def test_after_the_last_retry_the_task_has_failed(yard: Yard) -> None:
    ran = tries(yard, fails=9)
    result = send(yard, retry_count=2)

    for _ in range(3):
        yard.run()
        yard.make_due()

    with pytest.raises(TaskFailed, match=r"^try 3 failed$"):
        result.get(timeout=5)
    assert ran == [1, 2, 3]
    assert yard.left()["delayed"] == 0


def test_between_tries_the_state_is_retry_with_the_first_name_and_time(yard: Yard) -> None:
    tries(yard, fails=1)
    result = send(yard, retry_count=1)
    pending = yard.document(result.uuid)

    yard.run()

    between = yard.document(result.uuid)
    (attempt,) = between.pop("Attempts")
    assert between == pending | {"State": "RETRY", "Error": between["Error"]}
    assert (attempt["Attempt"], attempt["Error"]) == (1, "try 1 failed")
    assert between["Error"] in ("", "try 1 failed")
    yard.make_due()
    yard.run()


def test_a_retried_message_differs_only_in_what_a_retry_changes(yard: Yard) -> None:
    tries(yard, fails=1)
    callback = Signature(name="work", uuid=f"task_{yard.queue}_next")
    send(
        yard,
        retry_count=3,
        headers={"trace": "1:2"},
        args=[],
        on_error=[callback],
        immutable=True,
        priority=7,
    )
    [before] = yard.ready()

    yard.run()

    [(after, _)] = yard.delayed()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"ETA", "Headers", "RetryCount", "RetryTimeout"}
    assert after["Headers"] == {"trace": "1:2", "x-attempt": "2"}
    yard.make_due()
    yard.run()


@pytest.mark.parametrize("delay_s", [1.5, 0, -3])
def test_retry_later_keeps_the_retries_that_are_left(yard: Yard, delay_s: float) -> None:
    ran: list[int] = []

    def later() -> str:
        ran.append(current_task().signature.retry_count)
        if len(ran) < 4:
            raise RetryLater(delay_s, "not yet")
        return "done"

    result = yard.task(later, retry_count=1).send()
    for _ in range(4):
        yard.run()
        yard.make_due()

    assert result.get(timeout=5) == "done"
    assert ran == [1, 1, 1, 1]


def test_retry_later_waits_as_long_as_it_says(yard: Yard) -> None:
    def later() -> None:
        raise RetryLater(90)

    yard.task(later).send()
    yard.run()

    [(message, score)] = yard.delayed()
    assert 88 < score / 1e9 - yard.clock.now_ns() / 1e9 <= 90
    assert (message["RetryCount"], message["RetryTimeout"]) == (0, 0)
    yard.raw.delete(yard.delayed_key)


def test_error_callbacks_are_sent_once_after_the_last_try(yard: Yard) -> None:
    tries(yard, fails=9)
    told: list[Any] = []
    yard.task(lambda *texts: told.append(texts), name="tell")
    send(yard, retry_count=1, on_error=[Signature(name="tell", args=[Arg("string", "extra")])])

    yard.run()
    during = list(told)
    yard.make_due()
    yard.run()

    assert during == []
    assert told == [("try 2 failed", "extra")]


def test_a_task_waiting_for_its_next_try_goes_back_to_its_own_queue(yard: Yard) -> None:
    ran = tries(yard, fails=1)
    other = f"{yard.queue}.other"
    result = send(yard, retry_count=1, routing_key=other)
    child = yard.child(queues=[other])

    yard.drain(child)
    yard.make_due()
    there = len(yard.waiting(other))
    yard.drain(child)
    yard.leave(child)

    assert there == 1
    assert result.get(timeout=5) == "done"
    assert ran == [1, 2]
