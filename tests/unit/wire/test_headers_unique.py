"""Unique tasks: the key and on_duplicate of a signature, and where a unique task is refused."""

from __future__ import annotations

from typing import Any

import pytest

from machine.errors import SignatureError
from machine.redis.keys import unique
from machine.wire.headers import Unique, refuse_unique, unique_of
from machine.wire.limits import is_result_id
from machine.wire.signature import Signature


def signature(**headers: Any) -> Signature:
    named = {f"x-{name.replace('_', '-')}": value for name, value in headers.items()}
    return Signature(name="note", headers=named)


def test_a_signature_without_a_key_asks_for_nothing() -> None:
    assert unique_of(Signature(name="note")) is None
    assert unique_of(signature(trace="1")) is None
    refuse_unique(signature(trace="1"))


def test_a_key_alone_asks_to_join() -> None:
    assert unique_of(signature(unique="k")) == Unique("k", "join")
    assert unique_of(signature(unique="k", on_duplicate="replace")) == Unique("k", "replace")


@pytest.mark.parametrize(
    "headers", [{"unique": ""}, {"unique": 7}, {"unique": "k", "on_duplicate": "x"}]
)
def test_headers_that_ask_for_nonsense_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match=r"^Task 'note': (unique|on_duplicate) is "):
        unique_of(signature(**headers))


def test_a_unique_task_is_refused_where_it_is_not_alone() -> None:
    with pytest.raises(SignatureError, match=r"^Task 'note' is unique, and only a task that is"):
        refuse_unique(signature(unique="k"))


def test_a_plain_key_stands_in_the_name_and_another_is_a_digest() -> None:
    assert unique("q", "report:7") == "{q}:u:report:7"
    assert unique("q", "é") != unique("q", "è")
    assert unique("q", "é").startswith("{q}:u:#")


def test_no_id_of_a_task_can_name_the_key_of_a_unique_one() -> None:
    assert not is_result_id(unique("q", "report:7"))
