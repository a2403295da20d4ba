"""Eager mode: canceling in one process, from inside tasks and outside."""

from __future__ import annotations

from typing import Any

import pytest

from machine import RetryLater, Signature, TaskFailed, build, chain, chord, current_task, group
from machine.config import Config
from machine.ports.moves import Canceled
from machine.registry import Registry
from machine.registry.task import task
from machine.server import Server
from machine.wire.signature import TaskState


@pytest.fixture
def eager() -> Server:
    """Return a server that runs everything it sends at once."""
    return build.server(Config(broker="eager"), Registry())


def state_of(eager: Server, uuid: str) -> TaskState:
    assert eager.backend is not None
    (state,) = eager.backend.read([uuid])
    assert state is not None
    return state


@pytest.fixture
def calls(eager: Server) -> list[tuple[Any, ...]]:
    """Register "tell", which notes its calls, and "give_up", which cancels itself."""
    made: list[tuple[Any, ...]] = []

    def tell(*args: Any) -> int:
        made.append(args)
        return 1

    def give_up() -> str:
        assert eager.broker.cancel([current_task().signature.uuid]) == [Canceled.DONE]
        return "done"

    for fn in (tell, give_up):
        eager.register_task(fn.__name__, task(fn))
    return made


def test_what_a_task_that_was_canceled_meanwhile_returns_is_dropped(
    eager: Server, calls: list[tuple[Any, ...]]
) -> None:
    sent = Signature(
        name="give_up",
        on_success=[Signature(name="tell")],
        on_error=[Signature(name="tell")],
    )

    result = eager.send_task(sent)

    state = state_of(eager, result.uuid)
    assert (state.state, state.error, state.results) == ("FAILURE", "canceled", None)
    assert calls == [("canceled",)]
    with pytest.raises(TaskFailed, match=r"^canceled$"):
        result.get(timeout=1)


def test_a_task_that_was_canceled_meanwhile_is_not_tried_again(eager: Server) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(1)
        eager.broker.cancel([current_task().signature.uuid])
        raise RetryLater(0)

    eager.register_task("work", task(work))
    result = eager.send_task(Signature(name="work"))

    assert ran == [1]
    assert state_of(eager, result.uuid).error == "canceled"


def test_a_canceled_link_ends_its_chain_and_a_canceled_member_its_chord(
    eager: Server, calls: list[tuple[Any, ...]]
) -> None:
    first = chain(Signature(name="give_up"), Signature(name="tell"), Signature(name="tell"))
    members = group(Signature(name="give_up"), Signature(name="tell"))

    chained = eager.send_chain(first)
    chorded = eager.send_chord(chord(members, Signature(name="tell")))

    uuids = [member.uuid for member in chained.members]
    assert [state_of(eager, uuid).error for uuid in uuids] == [
        "canceled",
        *[f"not run: give_up {uuids[0]} failed: canceled"] * 2,
    ]
    failed = chorded.group.members[0].uuid
    assert state_of(eager, chorded.uuid).error == f"chord member {failed} failed: canceled"
    assert calls == [()]


def test_a_task_that_is_tried_again_tells_of_its_attempts(eager: Server) -> None:
    def work() -> str:
        if current_task().attempt < 3:
            raise RetryLater(0, f"not at {current_task().attempt}")
        return "done"

    eager.register_task("work", task(work))
    result = eager.send_task(Signature(name="work"))

    attempts = state_of(eager, result.uuid).attempts
    assert [(a.number, a.error) for a in attempts] == [(1, "not at 1"), (2, "not at 2")]
    assert result.get(timeout=1) == "done"
