"""Expiry on a real server: what is too late to start ends as expired, and never runs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from machine import RetryLater, SignatureError, chord, group
from machine.errors import TaskExpired
from machine.wire.text import parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from machine.registry.task import Task
    from tests.integration.conftest import Yard

PAST = datetime(2026, 1, 1, tzinfo=UTC)
ERROR = "expired: it was to start before 2026-01-01T00:00:00Z"


@pytest.fixture
def ran() -> list[Any]:
    """Return where the tasks note what they were called with."""
    return []


@pytest.fixture
def note(yard: Yard, ran: list[Any]) -> Task[Any, Any]:
    """Register a task that notes its arguments and returns the first."""

    def run(*args: Any) -> Any:
        ran.append(args)
        return args[0]

    return yard.task(run, name="note")


def test_a_task_that_is_too_late_ends_as_expired_and_does_not_run(
    yard: Yard, note: Task[Any, Any], ran: list[Any]
) -> None:
    late = note.s(1).options(expires=PAST).send()
    in_time = note.s(2).options(expires=3600).send()
    yard.run()

    assert in_time.get(5) == 2
    with pytest.raises(TaskExpired) as caught:
        late.get(5)
    assert str(caught.value) == ERROR
    assert ran == [(2,)]
    assert yard.left()["ready"] == 0


def test_the_same_is_told_on_an_event_loop(yard: Yard, note: Task[Any, Any]) -> None:
    async def send() -> Any:
        try:
            return await note.s(1).options(expires=PAST).asend()
        finally:
            await yard.server.broker.aclose()

    late = asyncio.run(send())
    yard.run()

    async def wait() -> None:
        try:
            await yard.server.result(late.uuid).aget(5)
        finally:
            await yard.server.aclose()

    with pytest.raises(TaskExpired, match=ERROR):
        asyncio.run(wait())


def test_an_error_callback_is_told_that_its_task_expired(
    yard: Yard, note: Task[Any, Any], ran: list[Any]
) -> None:
    note.s(1).options(expires=PAST).link_error(note.partial("then")).send()
    yard.run()

    assert ran == [(ERROR, "then")]


def test_a_member_of_a_chord_that_expires_counts_as_failed(
    yard: Yard, note: Task[Any, Any], ran: list[Any]
) -> None:
    result = chord(group(note.s(1), note.s(2).options(expires=PAST)), note.partial()).send()
    yard.run()

    with pytest.raises(TaskExpired, match=ERROR):
        result.get(5)
    assert ran == [(1,)]
    assert yard.left()["ready"] == 0


def test_seconds_count_from_when_a_link_of_a_chain_is_queued(
    yard: Yard, note: Task[Any, Any]
) -> None:
    elsewhere = f"{yard.queue}.elsewhere"
    (note.s(1) | note.partial(2).options(expires=3600, queue=elsewhere)).send()
    [first] = yard.ready()
    before_ns = yard.clock.now_ns()
    yard.run()
    second = json.loads(yard.raw.lpop(elsewhere))
    until_ns = parse_time(second["Headers"]["x-expires-at"])

    assert first["OnSuccess"][0]["Headers"] == {"x-expires-in": "3600"}
    assert sorted(second["Headers"]) == ["x-correlation-id", "x-expires-at"]
    assert before_ns <= until_ns - 3600 * 1_000_000_000 <= yard.clock.now_ns()


def test_a_link_of_a_chain_that_is_too_late_ends_the_chain(
    yard: Yard, note: Task[Any, Any], ran: list[Any]
) -> None:
    result = (note.s(1) | note.partial(2).options(expires=PAST) | note.partial(3)).send()
    yard.run()

    with pytest.raises(TaskExpired, match=ERROR):
        result.get(5)
    assert ran == [(1,)]


def test_a_retry_that_would_start_too_late_is_expired(yard: Yard) -> None:
    runs: list[int] = []

    def again() -> None:
        runs.append(1)
        raise RetryLater(3600)

    result = yard.task(again, name="again").s().options(expires=60).send()
    yard.run()
    [(message, _)] = yard.delayed()
    yard.raw.delete(yard.delayed_key)
    message["Headers"]["x-expires-at"] = "2026-01-01T00:00:00Z"
    yard.push(message)
    yard.run()

    with pytest.raises(TaskExpired, match=ERROR):
        result.get(5)
    assert runs == [1]
    assert message["Headers"]["x-attempt"] == "2"


def test_a_delayed_task_waits_from_when_it_is_due(yard: Yard, note: Task[Any, Any]) -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    note.s(1).options(eta=eta, expires=60).send()
    [(message, _)] = yard.delayed()
    yard.raw.delete(yard.delayed_key)

    at = datetime.fromisoformat(message["Headers"]["x-expires-at"])
    assert at == eta + timedelta(seconds=60)


def test_a_task_that_could_never_run_is_not_sent(yard: Yard, note: Task[Any, Any]) -> None:
    with pytest.raises(SignatureError, match="it could never run"):
        note.s(1).options(eta=datetime.now(UTC), expires=PAST).send()

    assert yard.ready() == []


@pytest.mark.parametrize("header", ["soon", "", 7, None, ["x"], "9999-99-99T00:00:00Z"])
def test_a_header_from_the_wire_that_is_no_time_keeps_nothing_from_running(
    yard: Yard, note: Task[Any, Any], ran: list[Any], header: Any
) -> None:
    message = {
        "UUID": "task_1",
        "Name": note.name,
        "Args": [{"Name": "", "Type": "int64", "Value": 1}],
        "Headers": {"x-expires-at": header, "x-expires-in": header},
    }
    yard.push(json.dumps(message).encode())
    yard.run()

    assert ran == [(1,)]


def test_an_expired_task_is_recorded_where_results_live_elsewhere(
    make_yard: Callable[..., Yard], redis_url: str, ran: list[Any]
) -> None:
    elsewhere = redis_url.rpartition("/")[0] + "/1"
    yard = make_yard(result_backend=elsewhere)
    result = yard.task(lambda: ran.append(1), name="note").s().options(expires=PAST).send()
    yard.run()

    with pytest.raises(TaskExpired, match=ERROR):
        result.get(5)
    yard.server.purge_state(result.uuid)
    assert ran == []
