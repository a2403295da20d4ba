"""Expiry: the two headers, what they mean when queued, and when a task is too late."""

from __future__ import annotations

from typing import Any

import pytest

from machine.errors import SignatureError
from machine.wire.headers import check_expiry, describe_lateness, set_expiry
from machine.wire.signature import Signature

SECOND_NS = 1_000_000_000
NOON_NS = 1_795_176_000 * SECOND_NS
NOON = "2026-11-20T12:00:00Z"


def signature(eta_ns: int | None = None, **headers: Any) -> Signature:
    named = {f"x-{name.replace('_', '-')}": value for name, value in headers.items()}
    return Signature(name="note", eta_ns=eta_ns, headers=named)


# -- queued ------------------------------------------------------------------------------------
def test_seconds_become_a_time_when_the_task_is_queued() -> None:
    queued = signature(expires_in="60.5")
    set_expiry(queued, NOON_NS)

    assert queued.headers == {"x-expires-at": "2026-11-20T12:01:00.5Z"}


def test_seconds_of_a_delayed_task_count_from_when_it_is_due() -> None:
    queued = signature(NOON_NS + 3600 * SECOND_NS, expires_in="60")
    set_expiry(queued, NOON_NS)

    assert queued.headers == {"x-expires-at": "2026-11-20T13:01:00Z"}


def test_seconds_of_a_task_due_in_the_past_count_from_now() -> None:
    queued = signature(NOON_NS - 3600 * SECOND_NS, expires_in="60")
    set_expiry(queued, NOON_NS)

    assert queued.headers == {"x-expires-at": "2026-11-20T12:01:00Z"}


def test_a_time_that_stands_there_is_not_moved() -> None:
    queued = signature(expires_in="60", expires_at=NOON)
    set_expiry(queued, NOON_NS)

    assert queued.headers == {"x-expires-at": NOON}


@pytest.mark.parametrize("bad", ["", "-1", "1e3", "soon", "1.", "٣", 60, None, "9" * 11])
def test_seconds_that_cannot_be_read_say_nothing(bad: Any) -> None:
    queued = signature(expires_in=bad)
    set_expiry(queued, NOON_NS)

    assert queued.headers == {}


def test_a_signature_without_headers_is_left_alone() -> None:
    plain = Signature(name="note")
    set_expiry(plain, NOON_NS)
    check_expiry(plain)

    assert (plain.headers, describe_lateness(plain, NOON_NS)) == (None, "")


# -- sent --------------------------------------------------------------------------------------
def test_a_time_before_the_eta_is_refused_when_sent() -> None:
    with pytest.raises(SignatureError) as caught:
        check_expiry(signature(NOON_NS, expires_at=NOON))

    assert str(caught.value) == (
        f"Task 'note' expires at {NOON}, and is not to start before {NOON}; it could never run. "
        "Give a later expires."
    )


def test_a_time_after_the_eta_is_fine() -> None:
    check_expiry(signature(NOON_NS - 1, expires_at=NOON))


@pytest.mark.parametrize("bad", ["soon", "", 7, None])
def test_a_header_that_is_no_time_is_refused_when_sent(bad: Any) -> None:
    with pytest.raises(SignatureError, match=r"^Task 'note': header x-expires-at: time is "):
        check_expiry(signature(expires_at=bad))


@pytest.mark.parametrize("bad", ["soon", "", 7, None])
def test_a_header_that_is_no_number_is_refused_when_sent(bad: Any) -> None:
    with pytest.raises(SignatureError, match=r"^Task 'note': header x-expires-in is .*; expected"):
        check_expiry(signature(expires_in=bad))


# -- taken -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("now_ns", "is_late"), [(NOON_NS - 1, False), (NOON_NS, True)])
def test_a_task_is_too_late_from_its_time_on(now_ns: int, is_late: bool) -> None:
    error = describe_lateness(signature(expires_at=NOON), now_ns)

    assert error == (f"expired: it was to start before {NOON}" if is_late else "")


@pytest.mark.parametrize("bad", ["soon", "", 7, None, {"a": 1}, "0000-00-00T00:00:00Z"])
def test_a_time_from_the_wire_that_cannot_be_read_says_nothing(bad: Any) -> None:
    assert describe_lateness(signature(expires_at=bad), 1 << 62) == ""
