"""What the tasks that a task sends take over from it: correlation, trace, time of sending."""

from __future__ import annotations

from typing import Any

from machine.wire.headers import correlation_id_of, inherit_headers, restamp_sent, stamp_sent
from machine.wire.signature import Signature

TRACE = {"traceparent": "00-a-b-01", "tracestate": "x=1", "baggage": "k=v"}


def child_of(parent: Signature, headers: dict[str, Any] | None = None) -> dict[str, Any] | None:
    child = Signature(name="child", headers=headers)
    inherit_headers(parent, child)
    return child.headers


def test_the_first_task_gives_its_own_id() -> None:
    assert child_of(Signature(name="a", uuid="task_1")) == {"x-correlation-id": "task_1"}


def test_members_of_a_group_give_the_groups_id() -> None:
    member = Signature(name="a", uuid="task_1", group_uuid="group_1")

    assert child_of(member) == {"x-correlation-id": "group_1"}


def test_what_was_given_is_handed_on_and_on() -> None:
    parent = Signature(name="a", uuid="task_1", headers={"x-correlation-id": "order-7", **TRACE})

    assert child_of(parent) == {"x-correlation-id": "order-7", **TRACE}


def test_what_a_child_has_itself_stays() -> None:
    parent = Signature(name="a", uuid="task_1", headers=dict(TRACE))
    own = {"x-correlation-id": "mine", "traceparent": "00-c-d-01"}

    assert child_of(parent, dict(own)) == own


def test_other_headers_are_not_handed_on() -> None:
    parent = Signature(name="a", uuid="task_1", headers={"x-attempt": "2", "secret": "s"})

    assert child_of(parent) == {"x-correlation-id": "task_1"}


def test_an_id_that_is_no_text_is_none() -> None:
    parent = Signature(name="a", uuid="task_1", headers={"x-correlation-id": {"a": 1}})

    assert correlation_id_of(parent) == "task_1"


def test_a_parent_without_any_id_gives_none() -> None:
    assert child_of(Signature(name="a")) == {}


def test_a_time_is_written_anew_where_there_was_one_and_nowhere_else() -> None:
    first, plain = Signature(name="a", headers={"k": "v"}), Signature(name="b", headers={})
    stamp_sent(first, 1_790_000_000_123_456_789)
    child = Signature(name="c")
    inherit_headers(first, child)

    restamp_sent(child, 1_790_000_001_000_000_000)
    restamp_sent(plain, 1_790_000_001_000_000_000)

    assert first.headers == {"k": "v", "x-sent-at": "1790000000123"}
    assert child.headers == {"x-sent-at": "1790000001000"}
    assert plain.headers == {}
