"""Options of one sending: what they put into the message, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from machine.errors import SignatureError
from machine.registry import Registry
from machine.registry.task import task
from machine.wire.signature import Signature

HEADERS = {"trace": "1"}


@task
def note(x: int = 0) -> None: ...


def headers_of(**options: Any) -> dict[str, Any] | None:
    return note.s().options(**options).headers


# -- uuid --------------------------------------------------------------------------------------
def test_an_id_may_be_chosen() -> None:
    assert note.s().options(uuid="task_report:7").uuid == "task_report:7"


@pytest.mark.parametrize(
    "uuid", ["", "a b", "é", "x" * 129, "{q}:hop", "machinery_lock_x", "TriggerChordMutex"]
)
def test_an_id_that_could_name_another_key_is_refused(uuid: str) -> None:
    with pytest.raises(SignatureError, match=r"^uuid .* is not usable; give 1 to 128 characters"):
        note.s().options(uuid=uuid)


# -- expires -----------------------------------------------------------------------------------
def test_a_time_to_expire_at_is_written_in_utc() -> None:
    at = datetime(2026, 11, 20, 17, 0, 0, 250_000, timezone(timedelta(hours=2)))

    assert headers_of(expires=at) == {"x-expires-at": "2026-11-20T15:00:00.25Z"}


@pytest.mark.parametrize(
    ("expires", "text"),
    [
        (60, "60"),
        (0.5, "0.5"),
        (timedelta(minutes=1, milliseconds=20), "60.02"),
        (1e-9, "0.000000001"),
        (1_000_000_000, "1000000000"),
    ],
)
def test_seconds_to_wait_are_written_as_text(expires: Any, text: str) -> None:
    assert headers_of(expires=expires) == {"x-expires-in": text}


@pytest.mark.parametrize(
    "expires",
    [0, -1, 1e-10, 1_000_000_001, float("nan"), float("inf"), timedelta(0), timedelta(days=-1)],
)
def test_seconds_out_of_bounds_are_refused(expires: Any) -> None:
    with pytest.raises(SignatureError, match=r"^expires .* is out of bounds; give a time"):
        note.s().options(expires=expires)


def test_a_time_without_a_zone_is_refused() -> None:
    expected = r"^expires 2026-11-20T15:00:00 has no time zone; say which"
    with pytest.raises(SignatureError, match=expected):
        note.s().options(expires=datetime(2026, 11, 20, 15))  # noqa: DTZ001 - the point


def test_the_last_word_about_expiry_holds_and_other_headers_stay() -> None:
    first = note.s().options(headers=HEADERS, expires=60)
    second = first.options(expires=datetime(2026, 11, 20, tzinfo=UTC))
    third = second.options(expires=5)

    assert first.headers == {"trace": "1", "x-expires-in": "60"}
    assert second.headers == {"trace": "1", "x-expires-at": "2026-11-20T00:00:00Z"}
    assert third.headers == {"trace": "1", "x-expires-in": "5"}


# -- unique ------------------------------------------------------------------------------------
def test_a_key_and_a_policy_are_written() -> None:
    assert headers_of(unique="report:7") == {"x-unique": "report:7"}
    assert headers_of(unique="k", on_duplicate="replace") == {
        "x-unique": "k",
        "x-on-duplicate": "replace",
    }


@pytest.mark.parametrize("key", ["a\nb", "x" * 257, "\ud800", 7])
def test_a_key_that_is_not_printable_text_is_refused(key: Any) -> None:
    with pytest.raises(SignatureError, match=r"^unique is .*; give 1 to 256 printable characters"):
        note.s().options(unique=key)


def test_an_unknown_policy_is_refused() -> None:
    expected = r"^on_duplicate is 'ignore'; give 'join', 'refuse' or 'replace'\.$"
    with pytest.raises(SignatureError, match=expected):
        note.s().options(unique="k", on_duplicate="ignore")  # type: ignore[arg-type]


def test_a_policy_without_a_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="without a key"):
        note.s().options(on_duplicate="refuse")


def test_an_empty_key_takes_uniqueness_away() -> None:
    signature = note.s().options(unique="k", on_duplicate="refuse", headers=HEADERS)

    assert signature.options(unique="").headers == HEADERS


def test_options_leave_the_signature_they_are_asked_of_alone() -> None:
    signature = note.s().options(unique="k")
    signature.options(unique="", expires=5, uuid="task_1")

    assert (signature.headers, signature.uuid) == ({"x-unique": "k"}, "")


# -- what @task says of every sending ----------------------------------------------------------
def fixed(x: int, *, y: int = 0) -> int:
    return x + y


def test_a_task_may_say_how_long_its_messages_wait() -> None:
    made = task(expires=timedelta(minutes=5))(fixed)

    assert made.s(1).headers == {"x-expires-in": "300"}
    assert made.partial().headers == {"x-expires-in": "300"}
    assert made.s(1).options(expires=1).headers == {"x-expires-in": "1"}


def test_a_task_unique_by_its_arguments_has_the_same_key_for_the_same_call() -> None:
    made = task(unique=True)(fixed)
    other = task(unique=True, name="other")(fixed)
    keys = [(s.headers or {})["x-unique"] for s in (made.s(1), made.s(1, y=0), made.s(2))]

    assert keys[0] != keys[2]
    assert keys[0].startswith("fixed:")
    assert (made.s(1).headers or {})["x-unique"] == keys[0]
    assert (other.s(1).headers or {})["x-unique"] != keys[0]


def test_a_task_unique_by_a_function_of_its_arguments_has_its_key() -> None:
    made = task(unique=lambda x, **_: f"user:{x}", on_duplicate="refuse")(fixed)

    assert made.s(7, y=2).headers == {"x-unique": "user:7", "x-on-duplicate": "refuse"}
    assert made.partial(7).headers is None


def test_a_key_that_a_function_makes_is_checked() -> None:
    made = task(unique=lambda x, **_: x)(fixed)  # type: ignore[arg-type, return-value]

    with pytest.raises(SignatureError, match=r"^Task 'fixed': unique is a int; give 1 to 256"):
        made.s(7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"expires": -1}, "Task 'fixed': expires -1 is out of bounds"),
        ({"unique": "key"}, "Task 'fixed': unique is 'key'; give True, or a function"),
        ({"on_duplicate": "x"}, "Task 'fixed': on_duplicate is 'x'; give 'join'"),
    ],
)
def test_a_wrong_option_of_a_task_is_refused_where_it_is_written(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        task(**options)(fixed)

    assert str(caught.value).startswith(expected)


def test_a_renamed_task_keeps_its_options() -> None:
    registry = Registry()
    made = task(expires=5, unique=True, on_duplicate="refuse")(fixed)

    again = registry.register("again", made)

    assert (again.expires, again.unique, again.on_duplicate) == (5, True, "refuse")
    signature: Signature = again.s(1)
    assert (signature.headers or {})["x-unique"].startswith("again:")
