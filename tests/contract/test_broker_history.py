"""The broker contract: the attempts a state tells of, and how far a task says it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from machine.ports.backend import MOST_ATTEMPTS, MOST_HISTORY_BYTES
from machine.ports.moves import Canceled, Verdict
from machine.wire.signature import Attempt, Progress, TaskResult, TaskState
from machine.wire.states import encode_attempt, encode_state_head

if TYPE_CHECKING:
    from machine.ports.moves import Claim, Start
    from tests.contract.conftest import Bench

AT = "2026-11-20T15:15:27Z"
HOSTILE = [
    '"],"CreatedAt":"x',
    '"Attempts":[{"Attempt":9,"Error":"x","At":"y"}],"CreatedAt":"z"',
    '},{"Attempt":7,"Error":"',
    '\\"],\\"CreatedAt\\":\\"',
    '"State":"SUCCESS"',
    "%1 %0 %d \\u0000 \x00 \N{SNOWMAN} <&>",
    "]" * 50 + '"',
]


def state_of(bench: Bench, name: str = "a") -> TaskState:
    (state,) = bench.backend.read([bench.uuid(name)])
    assert state is not None
    return state


def run_again(bench: Bench, claim: Claim, number: int, error: str) -> Claim:
    """Let a run end with an error, and claim what follows it."""
    attempt = encode_attempt(Attempt(number, error, AT))
    head = bench.head(bench.uuid("a"), "RETRY", error=error)
    move = bench.retry(claim, payload=claim.payload, attempt=attempt, state=head)
    assert bench.make(move) == [Verdict.DONE]
    (again,) = bench.take("w1")
    return again


def started(bench: Bench, claim: Claim, progress: Progress | None) -> Start:
    state = bench.state(bench.uuid("a"), "STARTED")
    state.progress = progress
    return replace(bench.start(claim), state=encode_state_head(state))


# -- attempts ----------------------------------------------------------------------------------
def test_a_first_run_has_no_attempts_in_its_state(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.make(bench.start(claim), bench.finish(claim))

    assert state_of(bench).attempts == []


def test_attempts_gather_and_stay_through_every_later_state(bench: Bench) -> None:
    claim = bench.take_one("a")
    first, second = Attempt(1, "one", AT), Attempt(2, "two", AT)

    claim = run_again(bench, claim, 1, "one")
    after_one = state_of(bench)
    bench.make(bench.start(claim))
    when_started = state_of(bench)
    claim = run_again(bench, claim, 2, "two")
    after_two = state_of(bench)
    bench.make(bench.finish(claim))

    assert after_one == replace(
        bench.state(bench.uuid("a"), "RETRY", error="one"), attempts=[first]
    )
    assert when_started == replace(bench.state(bench.uuid("a"), "STARTED"), attempts=[first])
    assert after_two.attempts == [first, second]
    expected = bench.state(bench.uuid("a"), "SUCCESS")
    assert state_of(bench) == replace(expected, attempts=[first, second])


def test_a_failure_and_a_cancellation_keep_the_attempts(bench: Bench) -> None:
    claim = run_again(bench, bench.take_one("a"), 1, "one")

    assert bench.broker.cancel([bench.uuid("a")]) == [Canceled.DONE]

    expected = bench.state(bench.uuid("a"), "FAILURE", error="canceled")
    assert state_of(bench) == replace(expected, attempts=[Attempt(1, "one", AT)])
    head = bench.head(bench.uuid("a"), "FAILURE", error="canceled")
    bench.make(replace(bench.finish(claim), state=head))
    assert state_of(bench).attempts == [Attempt(1, "one", AT)]


def test_of_too_many_attempts_the_oldest_are_dropped(bench: Bench) -> None:
    claim = bench.take_one("a")
    error = "x" * 1000

    for number in range(1, 31):
        claim = run_again(bench, claim, number, error)

    numbers = [attempt.number for attempt in state_of(bench).attempts]
    assert numbers == list(range(numbers[0], 31))
    size = sum(len(encode_attempt(one)) + 1 for one in state_of(bench).attempts)
    assert MOST_HISTORY_BYTES - 1100 < size <= MOST_HISTORY_BYTES + 1
    bench.make(bench.finish(claim))
    assert [attempt.number for attempt in state_of(bench).attempts] == numbers


def test_short_attempts_are_all_kept(bench: Bench) -> None:
    claim = bench.take_one("a")

    for number in range(1, 101):
        claim = run_again(bench, claim, number, "no")

    assert [attempt.number for attempt in state_of(bench).attempts] == list(range(1, 101))


def test_a_retry_of_a_forgotten_state_begins_a_new_history(bench: Bench) -> None:
    claim = run_again(bench, bench.take_one("a"), 1, "one")
    bench.backend.purge_state(bench.uuid("a"))

    run_again(bench, claim, 2, "two")

    assert state_of(bench).attempts == [Attempt(2, "two", AT)]


@pytest.mark.parametrize("error", HOSTILE)
def test_no_error_text_confuses_the_history(bench: Bench, error: str) -> None:
    claim = bench.take_one("a")
    created_at = state_of(bench).created_at

    for number in (1, 2, 3):
        claim = run_again(bench, claim, number, error)
        bench.make(started(bench, claim, Progress(0.5, error)))
    attempts = [Attempt(number, error, AT) for number in (1, 2, 3)]

    assert state_of(bench).attempts == attempts
    assert state_of(bench).progress == Progress(0.5, error)
    head = bench.head(bench.uuid("a"), "FAILURE", error=error)
    bench.make(replace(bench.finish(claim), state=head))
    expected = bench.state(bench.uuid("a"), "FAILURE", error=error)
    assert state_of(bench) == replace(expected, attempts=attempts, created_at=created_at)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_result_confuses_the_history(bench: Bench, text: str) -> None:
    value: dict[str, Any] = {
        "Attempts": [{"Attempt": 1, "Error": "x", "At": "y"}, {"Attempt": 2}],
        "CreatedAt": "yesterday",
        "State": "FAILURE",
        text: [text],
    }
    claim = run_again(bench, bench.take_one("a"), 1, text)
    state = bench.state(bench.uuid("a"), "SUCCESS")
    state.results = [TaskResult("map[string]interface {}", value)]

    bench.make(replace(bench.finish(claim), state=encode_state_head(state)))

    assert state_of(bench) == replace(state, attempts=[Attempt(1, text, AT)])


def test_an_owner_overwrites_a_result_that_reads_like_a_history(bench: Bench) -> None:
    claim = bench.take_one("a")
    value = {"Attempts": [1], "CreatedAt": "x"}
    state = bench.state(bench.uuid("a"), "SUCCESS")
    state.results = [TaskResult("map[string]interface {}", value)]
    bench.backend.record(state)

    bench.make(bench.finish(claim))

    assert state_of(bench) == bench.state(bench.uuid("a"), "SUCCESS")


def test_record_keeps_the_attempts_and_adds_its_own(bench: Bench) -> None:
    uuid = bench.uuid("a")
    bench.backend.record(bench.state(uuid, "PENDING"))

    for number in range(1, MOST_ATTEMPTS + 3):
        retry = bench.state(uuid, "RETRY")
        retry.attempts = [Attempt(number, "no", AT)]
        bench.backend.record(retry)
    bench.backend.record(bench.state(uuid, "SUCCESS"))

    assert state_of(bench).state == "SUCCESS"
    numbers = [attempt.number for attempt in state_of(bench).attempts]
    assert numbers == list(range(3, MOST_ATTEMPTS + 3))


# -- progress ----------------------------------------------------------------------------------
def test_the_last_word_about_progress_is_shown_and_the_end_has_none(bench: Bench) -> None:
    claim = bench.take_one("a")

    bench.make(started(bench, claim, Progress(0.25, "a quarter")))
    first = state_of(bench)
    bench.make(started(bench, claim, Progress(0.5)))
    second = state_of(bench)
    bench.make(bench.finish(claim))

    assert first.progress == Progress(0.25, "a quarter")
    assert second.progress == Progress(0.5, "")
    assert second == replace(bench.state(bench.uuid("a"), "STARTED"), progress=Progress(0.5, ""))
    assert state_of(bench).progress is None
