"""The history of a task: the errors of the runs before the last one; and what never ran."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from machine import RetryLater, Signature, chain, chord, current_task, group
from machine.ports.moves import Canceled
from machine.wire.signature import TaskState

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def state_of(yard: Yard, uuid: str) -> TaskState:
    (state,) = yard.backend.read([uuid])
    assert state is not None
    return state


def history(yard: Yard, uuid: str) -> list[tuple[int, str]]:
    """Return each attempt's number and error, and check that its time is a time of now."""
    attempts = state_of(yard, uuid).attempts
    for attempt in attempts:
        at = datetime.fromisoformat(attempt.at)
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=5)
    return [(attempt.number, attempt.error) for attempt in attempts]


def run_through(yard: Yard, times: int) -> None:
    """Run what is there so often, letting delayed messages come due between."""
    for _ in range(times):
        yard.run()
        yard.make_due()


def failing(yard: Yard, times: int, **options: Any) -> Any:
    """Register a task that fails so often before it succeeds."""

    def work() -> str:
        attempt = current_task().attempt
        if attempt <= times:
            raise ConnectionError(f"try {attempt} failed")
        return "done"

    return yard.task(work, **options)


# -- errors of earlier runs --------------------------------------------------------------------
def test_a_task_that_fails_twice_and_succeeds_tells_of_both_failures(yard: Yard) -> None:
    result = failing(yard, 2, retry_count=3).send()

    run_through(yard, 3)

    assert result.get(timeout=5) == "done"
    assert history(yard, result.uuid) == [(1, "try 1 failed"), (2, "try 2 failed")]


def test_a_task_that_fails_for_good_tells_of_the_runs_before(yard: Yard) -> None:
    result = failing(yard, 9, retry_count=2).send()

    run_through(yard, 3)

    assert state_of(yard, result.uuid).error == "try 3 failed"
    assert history(yard, result.uuid) == [(1, "try 1 failed"), (2, "try 2 failed")]


def test_a_task_that_asks_to_run_later_tells_why(yard: Yard) -> None:
    def work() -> str:
        if current_task().attempt < 4:
            raise RetryLater(60, f"not at {current_task().attempt}")
        return "done"

    result = yard.task(work).send()
    run_through(yard, 4)

    assert result.get(timeout=5) == "done"
    assert history(yard, result.uuid) == [(1, "not at 1"), (2, "not at 2"), (3, "not at 3")]


def test_a_task_that_runs_once_has_no_history(yard: Yard) -> None:
    result = failing(yard, 0).send()

    yard.run()

    assert state_of(yard, result.uuid).attempts == []
    assert "Attempts" not in yard.document(result.uuid)


def test_a_hostile_error_text_is_carried_unchanged(yard: Yard) -> None:
    text = '"],"CreatedAt":"x","Attempts":[{"Attempt":1}],"TTL":0} \x00 \N{SNOWMAN} %1'

    def work() -> str:
        if current_task().attempt < 3:
            raise ValueError(text)
        return "done"

    result = yard.task(work, retry_count=3).send()
    created_at = yard.document(result.uuid)["CreatedAt"]
    run_through(yard, 3)

    assert history(yard, result.uuid) == [(1, text), (2, text)]
    assert yard.document(result.uuid)["CreatedAt"] == created_at
    assert result.get(timeout=5) == "done"


@pytest.mark.parametrize("ending", ['"Attempts":[', '],"CreatedAt":"x"', ""])
def test_a_state_full_of_hostile_text_does_not_hold_the_server_up(yard: Yard, ending: str) -> None:
    result = failing(yard, 1, retry_count=1).send()
    other = failing(yard, 0, name="other").send()
    hostile = '"Attempts":[' * 80_000 + ending * 20_000 + "}"
    for uuid in (result.uuid, other.uuid):
        yard.raw.set(uuid, f'{{"TaskUUID":"{uuid}","State":"STARTED",{hostile}', ex=60)

    codes = yard.broker.cancel([other.uuid])
    run_through(yard, 2)

    assert codes == [Canceled.DONE]
    assert yard.raw.get(result.uuid).startswith(b'{"TaskUUID":')
    assert yard.left()["delayed"] == 0


# -- what never ran ----------------------------------------------------------------------------
@pytest.fixture
def calls(yard: Yard) -> list[tuple[Any, ...]]:
    """Register "tell", which notes its calls, and "fail"; return the calls."""
    made: list[tuple[Any, ...]] = []

    def tell(*args: Any) -> int:
        made.append(args)
        return 1

    def fail(*_args: Any) -> None:
        raise RuntimeError("boom")

    yard.task(tell)
    yard.task(fail)
    return made


def tell(*on_error: Signature) -> Signature:
    return Signature(name="tell", on_error=list(on_error))


def fail() -> Signature:
    return Signature(name="fail")


def test_a_chain_in_a_chord_whose_first_link_fails_ends_the_chord(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    member = chain(fail(), Signature(name="tell"), Signature(name="tell"))
    result = yard.server.send_chord(chord(group(member, tell()), tell(tell())))

    yard.run()

    state = state_of(yard, result.uuid)
    assert state.state == "FAILURE"
    assert "not run: fail " in state.error
    assert state.error.endswith(" failed: boom")
    assert sorted(calls, key=len) == [(), (state.error,)]
    assert yard.raw.exists(f"{{{yard.queue}}}:chords") == 0


def test_a_failing_callback_that_is_a_member_of_another_chord_ends_that_one(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    inner = chord(group(fail(), tell()), tell())
    result = yard.server.send_chord(chord(group(inner, tell()), tell(tell())))

    yard.run()

    state = state_of(yard, result.uuid)
    assert state.state == "FAILURE"
    assert state.error.startswith("chord member chord_")
    assert state.error.endswith("failed: boom")
    assert sorted(calls, key=len) == [(), (), (state.error,)]
    assert yard.raw.exists(f"{{{yard.queue}}}:chords") == 0


def test_failures_climb_through_chords_at_every_level(
    yard: Yard, calls: list[tuple[Any, ...]]
) -> None:
    piece: Any = chord(group(fail(), tell()), tell())
    for _ in range(5):
        piece = chord(group(piece, tell()), tell())
    result = yard.server.send_chord(piece)

    yard.run()

    assert state_of(yard, result.uuid).state == "FAILURE"
    assert calls == [()] * 6
    assert yard.raw.exists(f"{{{yard.queue}}}:chords") == 0
