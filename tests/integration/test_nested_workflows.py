"""Workflows in workflows, from sending to the last value: on a real server, and eager."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from machine import GroupResult, ResultNotFound, TaskFailed, build, chain, chord, group
from machine.config import Config
from machine.errors import TaskCanceled
from machine.execution import Hooks
from machine.redis import keys
from machine.registry import Registry
from machine.results.group import GroupProgress
from machine.server import Server
from tests.integration.test_workflows import Sums

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


class Eager:
    """What tests ask of a `Yard`, where sending is running."""

    def __init__(self) -> None:
        self.server: Server = build.server(Config(broker="eager"), Registry())

    def task(self, fn: Callable[..., Any], **options: Any) -> Any:
        """Register a function as a task."""
        return self.server.register_task(options["name"], fn)

    def run(self) -> None:
        """Do nothing: all has run."""


@pytest.fixture(params=["redis", "eager"])
def place(request: pytest.FixtureRequest) -> Iterator[Yard | Eager]:
    """Return where the tasks run."""
    if request.param == "redis":
        yield request.getfixturevalue("yard")
        return
    eager = Eager()
    yield eager
    eager.server.close()


@pytest.fixture
def sums(place: Yard | Eager) -> Sums:
    """Return the tasks, registered."""
    return Sums(place)  # type: ignore[arg-type] # it registers its tasks, no more


def awaited(place: Yard | Eager, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what asyncio code comes to, on a loop of its own that leaves no connection."""

    async def whole() -> Any:
        try:
            return await work
        finally:
            await place.server.broker.aclose()
            await place.server.backend.aclose()  # type: ignore[union-attr]

    return asyncio.run(whole())


Way = Callable[[Any], Any]


@pytest.fixture(params=["sync", "asyncio"])
def send(request: pytest.FixtureRequest, place: Yard | Eager) -> Way:
    """Return a function that sends a workflow, in one of the two ways, and lets it run."""

    def sent(piece: Any) -> Any:
        result = piece.send() if request.param == "sync" else awaited(place, piece.asend())
        place.run()
        return result

    return sent


@pytest.fixture(params=["get", "aget"])
def get(request: pytest.FixtureRequest, place: Yard | Eager) -> Way:
    """Return one of the two ways to wait."""
    if request.param == "get":
        return lambda result: result.get(timeout=5)
    return lambda result: awaited(place, result.aget(timeout=5))


# -- what comes out ----------------------------------------------------------------------------


def one(s: Sums) -> Any:
    return s.add.s(1)


@pytest.mark.parametrize(
    ("piece", "value"),
    [
        pytest.param(piece, value, id=name)
        for name, piece, value in [
            (
                "a group of chains",
                lambda s: group(one(s) | s.add.partial(2), one(s) | s.add.partial() | s.add.s(9)),
                [3, 10],
            ),
            (
                "a chain that ends with a group",
                lambda s: one(s) | group(s.add.partial(1), s.add.partial(2)),
                [2, 3],
            ),
            (
                "a group in the middle",
                lambda s: one(s) | group(s.add.s(1), s.add.s(2)) | s.multiply.partial(10),
                60,
            ),
            (
                "a group first",
                lambda s: group(one(s), s.add.s(2)) | s.add.partial() | s.add.partial(10),
                13,
            ),
            (
                "a chord as a step",
                lambda s: one(s) | chord([s.add.s(1), s.add.s(2)], s.multiply.s()) | s.add.s(4),
                10,
            ),
            (
                "a chord as a member",
                lambda s: group(chord([one(s), s.add.s(2)], s.add.partial()), s.add.s(7)),
                [3, 7],
            ),
            (
                "a chord of chords",
                lambda s: chord(
                    [group(one(s), one(s)) | s.add.s(), group(one(s)) | s.add.s()], s.multiply.s(5)
                ),
                10,
            ),
            (
                "a group of groups",
                lambda s: group(group(one(s), s.add.s(2)), s.add.s(3)),
                [1, 2, 3],
            ),
            (
                "a chain in a chain",
                lambda s: chain(one(s) | s.add.s(1), chain(s.add.s(2), s.multiply.s(3))),
                12,
            ),
            (
                "a group after a group",
                lambda s: group(one(s), s.add.s(2)) | group(s.add.s(10), s.multiply.s(10)),
                [13, 20],
            ),
            (
                "a group after a group after a group",
                lambda s: (
                    group(one(s), one(s))
                    | group(s.add.s(), s.add.s(1))
                    | group(s.add.s(), s.multiply.s())
                    | s.add.s()
                ),
                11,
            ),
            (
                "a chain with a group at its end in a group",
                lambda s: group(one(s) | group(s.add.s(1), s.add.s(2)), s.add.s(9)) | s.add.s(),
                14,
            ),
            (
                "a chain of groups in a group",
                lambda s: group(group(one(s)) | group(s.add.s(1)), one(s)) | s.multiply.s(3),
                6,
            ),
        ]
    ],
)
def test_a_workflow_of_workflows_comes_to(
    sums: Sums, send: Way, get: Way, piece: Callable[[Sums], Any], value: Any
) -> None:
    result = send(piece(sums))

    assert get(result) == value
    assert result.failures() == []


def test_each_member_of_a_group_after_a_group_gets_all_results_in_order(
    sums: Sums, send: Way
) -> None:
    result = send(group(sums.several.s(), sums.add.s(3)) | group(sums.tell.s("x"), sums.tell.s()))

    assert result.get(timeout=5) == ["told", "told"]
    told = [call for call in sums.calls if call[0] == "tell"]
    assert sorted(told, key=len) == [("tell", 1, "two", 3), ("tell", "x", 1, "two", 3)]


def test_a_group_that_returns_nothing_hands_nothing_on(place: Yard | Eager, sums: Sums) -> None:
    silent = place.task(lambda: None, name="silent")

    result = (group(silent.s(), silent.s()) | group(sums.tell.s())).send()
    place.run()

    assert result.get(timeout=5) == ["told"]
    assert sums.calls == [("tell",)]


# -- handles -----------------------------------------------------------------------------------


def test_the_parts_of_a_workflow_can_be_looked_at(place: Yard | Eager, sums: Sums) -> None:
    result = (
        sums.add.s(1) | group(sums.add.s(1), sums.add.s(2) | sums.add.s(3)) | sums.add.s()
    ).send()
    place.run()

    first, middle, last = result.steps
    assert (first.get(timeout=5), middle.get(timeout=5), last.get(timeout=5)) == (1, [2, 6], 8)
    assert [member.get(timeout=5) for member in result.members] == [1, 2, 3, 6, 8]
    assert middle.progress() == GroupProgress(total=2, ended=2, failed=0, running=0)
    assert sorted(done.uuid for done in result.as_completed(timeout=5)) == sorted(
        member.uuid for member in result.members
    )


def test_a_workflow_is_found_by_its_last_id_alone(place: Yard | Eager, sums: Sums) -> None:
    task_end = (group(sums.add.s(1), sums.add.s(2)) | sums.add.s() | sums.add.s(1)).send()
    group_end = (sums.add.s(1) | group(sums.add.s(1), sums.add.s(2) | sums.add.s(3))).send()
    place.run()

    server = place.server
    assert server.result(task_end.uuid).get(timeout=5) == 4
    assert server.group_result(group_end.group_uuid).get(timeout=5) == [2, 6]
    found = awaited(place, server.agroup_result(group_end.group_uuid))
    assert found.get(timeout=5) == [2, 6]


def test_a_group_whose_members_are_sent_later_is_waited_for_by_its_id_alone(
    yard: Yard,
) -> None:
    sums = Sums(yard)
    sent = group(sums.add.s(1) | sums.add.s(2), sums.add.s(5)).send()
    found = yard.server.group_result(sent.group_uuid)
    values: list[Any] = []
    waiting = threading.Thread(target=lambda: values.append(found.get(timeout=10)))

    waiting.start()
    yard.run()
    waiting.join(10)

    assert values == [[3, 5]]


@pytest.mark.parametrize("way", ["get", "aget"])
def test_a_last_task_that_is_sent_later_is_waited_for_by_its_id_alone(yard: Yard, way: str) -> None:
    sums = Sums(yard)
    sent = (sums.add.s(1) | sums.add.s(2)).send()
    found = yard.server.result(sent.uuid, may_come=True)
    values: list[Any] = []

    def wait() -> None:
        got = getattr(found, way)(timeout=10)
        values.append(awaited(yard, got) if way == "aget" else got)

    with pytest.raises(ResultNotFound):
        yard.server.result(sent.uuid).get(timeout=5)
    waiting = threading.Thread(target=wait)
    waiting.start()
    yard.run()
    waiting.join(10)

    assert values == [3]


# -- when something fails ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(piece, id=name)
        for name, piece in [
            ("first of a chain", lambda s: s.fail.s() | group(s.add.s(), s.add.s()) | s.add.s()),
            (
                "in a group",
                lambda s: s.add.s(1) | group(s.add.s(), s.fail.s()) | s.add.s() | s.add.s(),
            ),
            (
                "in a chain of a group",
                lambda s: group(s.fail.s() | s.add.s() | s.add.s(), s.add.s(1)),
            ),
            (
                "before a callback",
                lambda s: group(s.add.s(1) | s.fail.s() | s.add.s(), one(s)) | s.add.s(),
            ),
            (
                "in a chord of a group",
                lambda s: group(chord([s.fail.s(), one(s)], s.add.s()), one(s)) | s.add.s(),
            ),
            (
                "before a collector",
                lambda s: group(s.fail.s(), one(s)) | group(s.add.s(), s.add.s()),
            ),
            (
                "behind a collector",
                lambda s: group(one(s)) | group(s.fail.s(), s.add.s()) | s.add.s(),
            ),
            ("a callback", lambda s: group(group(one(s)) | s.fail.s(), one(s)) | group(s.add.s())),
            (
                "a fan-out's head",
                lambda s: group(s.fail.s() | group(s.add.s(), s.add.s()), one(s)) | s.add.s(),
            ),
        ]
    ],
)
def test_a_failure_anywhere_fails_the_whole_with_its_own_error(
    place: Yard | Eager, sums: Sums, send: Way, get: Way, piece: Callable[[Sums], Any]
) -> None:
    result = send(piece(sums))

    with pytest.raises(TaskFailed, match=r"^boom$") as caught:
        get(result)
    assert caught.value.task_name == "fail"
    assert [state.task_uuid for state in result.failures()] == [caught.value.uuid]
    assert [s.error for s in awaited(place, result.afailures())] == ["boom"]
    ends = result.members if isinstance(result, GroupResult) else [result.members[-1]]
    for end in ends:
        assert place.server.result(end.uuid).state.is_completed
    with pytest.raises(TaskFailed, match=r"^boom$"):
        result.touch()
    assert {done.uuid for done in result.as_completed(timeout=5)} == {
        m.uuid for m in result.members
    }


def test_a_group_found_by_its_id_alone_fails_with_the_reason(
    place: Yard | Eager, sums: Sums
) -> None:
    sent = group(sums.fail.s() | sums.add.s(), sums.add.s(1)).send()
    place.run()

    with pytest.raises(TaskFailed, match=r"^not run: fail task_.* failed: boom$"):
        place.server.group_result(sent.group_uuid).get(timeout=5)


def test_a_failure_is_told_while_others_have_not_run(yard: Yard) -> None:
    sums = Sums(yard)
    result = (group(sums.fail.s(), sums.add.s(1).options(countdown=60)) | sums.add.s()).send()

    yard.run()

    with pytest.raises(TaskFailed, match=r"^boom$"):
        result.get(timeout=5)
    yard.make_due()
    yard.run()


def test_a_retry_in_a_chain_of_a_group_keeps_its_place(yard: Yard) -> None:
    sums = Sums(yard)
    runs: list[int] = []

    def shaky(value: int) -> int:
        runs.append(value)
        if len(runs) == 1:
            raise RuntimeError("not yet")
        return value

    flaky = yard.task(shaky, name="shaky", retry_count=1)
    result = (group(sums.add.s(1) | flaky.partial(), sums.add.s(5)) | sums.add.s()).send()

    yard.run()
    yard.make_due()
    yard.run()

    assert result.get(timeout=5) == 6
    assert runs == [1, 1]


def test_a_hook_sees_the_task_between_two_groups(yard: Yard) -> None:
    sums = Sums(yard)
    names: list[str] = []
    yard.registry.hooks = Hooks(pre_task=lambda signature: names.append(signature.name))

    result = (group(sums.add.s(1)) | group(sums.add.s(2))).send()
    yard.run()

    assert result.get(timeout=5) == [3]
    assert names == ["add", "machine.gather", "add"]


# -- canceling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "acancel"])
def test_a_canceled_workflow_runs_nothing_more(yard: Yard, way: str) -> None:
    sums = Sums(yard)
    result = (
        sums.add.s(1) | group(sums.add.s(1), sums.add.s(2) | sums.add.s(3)) | sums.add.s()
    ).send()

    done = getattr(result, way)()
    canceled = awaited(yard, done) if way == "acancel" else done
    yard.run()

    assert canceled is True
    assert sums.calls == []
    with pytest.raises(TaskCanceled, match=r"^canceled$"):
        result.get(timeout=5)
    assert {member.state.error for member in result.members} == {"canceled"}
    assert [state.task_uuid for state in result.failures()] == [result.members[0].uuid]


def test_canceling_midway_leaves_what_has_ended(yard: Yard) -> None:
    sums = Sums(yard)
    result = group(sums.add.s(1), sums.add.s(2).options(countdown=60) | sums.add.s(3)).send()
    yard.run()

    canceled = result.cancel()
    yard.make_due()
    yard.run()

    assert canceled is True
    assert result.progress() == GroupProgress(total=2, ended=2, failed=1, running=0)
    assert sums.calls == [("add", 1)]


def test_a_workflow_that_has_ended_is_not_canceled(place: Yard | Eager, sums: Sums) -> None:
    result = group(sums.add.s(1) | sums.add.s(2)).send()
    place.run()

    assert result.cancel() is False
    assert result.members[0].cancel() is False
    assert result.get(timeout=5) == [3]


# -- on the server -----------------------------------------------------------------------------


def test_every_group_is_written_down_before_anything_runs(yard: Yard) -> None:
    sums = Sums(yard)

    result = (group(sums.add.s(1), sums.add.s(2)) | group(sums.add.s() | sums.add.s(5))).send()

    first, second = (yard.document(step.group_uuid) for step in result.steps)
    assert first["TaskUUIDs"] == [member.uuid for member in result.steps[0].members]
    assert second["TaskUUIDs"] == [member.uuid for member in result.members]
    assert (first.get("Nested"), second["Nested"]) == (None, True)
    yard.run()


def test_a_workflow_leaves_only_keys_that_pass(yard: Yard) -> None:
    sums = Sums(yard)
    result = (
        group(sums.add.s(1) | sums.add.s(), sums.fail.s() | sums.add.s()) | group(sums.add.s())
    ).send()

    yard.run()

    assert len(result.failures()) == 1
    assert yard.raw.exists(keys.chords(yard.queue)) == 0


def test_a_thousand_chains_and_one_task_after_all_of_them(yard: Yard) -> None:
    sums = Sums(yard)
    chains = (sums.add.s(number) | sums.add.s(1) for number in range(1000))

    result = (group(chains) | sums.add.s()).send()
    yard.run()

    assert result.get(timeout=10) == sum(range(1000)) + 1000
    assert result.group.progress() == GroupProgress(total=1000, ended=1000, failed=0, running=0)
