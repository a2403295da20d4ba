from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from machine.errors import (
    ResultNotFound,
    ResultTimeout,
    SignatureError,
    TaskCanceled,
    TaskExpired,
    TaskFailed,
    WireError,
)
from machine.execution import TaskContext, running_task
from machine.ports.moves import Canceled
from machine.redis.backend import RedisBackend
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupProgress, GroupResult, TaskGraph
from machine.results.task import AsyncResult
from machine.sending.canceling import Canceling
from machine.wire.signature import Progress, Signature, State, TaskResult, TaskState
from tests.conftest import own_broker, own_links

Way = Callable[..., Any]


class Counted(RedisBackend):
    """A backend that counts its reads, and lets something happen after the first."""

    def __init__(self) -> None:
        super().__init__(own_links(), results_expire_s=3600)
        self.reads = 0
        self.after_first_read: Callable[[], None] = lambda: None

    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        self.reads += 1
        found = super().read(uuids)
        if self.reads == 1:
            self.after_first_read()
        return found

    async def aread(self, uuids: Sequence[str]) -> list[TaskState | None]:
        return self.read(uuids)

    def record(self, state: TaskState) -> None:
        before, self.reads = self.reads, 1  # its own look is not counted
        super().record(state)
        self.reads = before


@pytest.fixture
def backend() -> Counted:
    return Counted()


@pytest.fixture(params=["get", "aget"])
def get(request: pytest.FixtureRequest) -> Way:
    """Return one of the two ways to wait."""
    if request.param == "get":
        return lambda result, timeout=0: result.get(timeout)
    return lambda result, timeout=0: asyncio.run(result.aget(timeout))


@pytest.fixture
def inside_a_task() -> Iterator[None]:
    token = running_task.set(TaskContext(Signature(name="parent")))
    yield
    running_task.reset(token)


def pending(backend: RedisBackend, *uuids: str) -> None:
    for uuid in uuids:
        backend.record(TaskState(task_uuid=uuid, state=State.PENDING, task_name="add"))


def succeed(backend: RedisBackend, uuid: str, *results: TaskResult | int) -> None:
    typed = [TaskResult("int64", r) if isinstance(r, int) else r for r in results]
    backend.record(TaskState(task_uuid=uuid, state=State.SUCCESS, task_name="add", results=typed))


def fail(backend: RedisBackend, uuid: str, error: str) -> None:
    backend.record(TaskState(task_uuid=uuid, state=State.FAILURE, task_name="add", error=error))


# -- one task ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "value", "values"),
    [
        ([], None, []),
        ([TaskResult("int64", 2)], 2, [2]),
        (
            [TaskResult("string", "foo"), TaskResult("string", "bar")],
            ("foo", "bar"),
            ["foo", "bar"],
        ),
        ([TaskResult("[]uint8", "aGk=")], b"hi", [b"hi"]),
        ([TaskResult("[]string", None)], [], [[]]),
    ],
)
def test_get_returns_what_the_task_returned(
    backend: Counted, get: Way, results: list[TaskResult], value: object, values: list[object]
) -> None:
    succeed(backend, "task_1", *results)
    result: AsyncResult[Any] = AsyncResult("task_1", backend)

    assert get(result) == value
    assert result.results() == result.touch() == result.values == values


def test_a_result_can_be_awaited(backend: Counted) -> None:
    succeed(backend, "task_1", 2)
    result: AsyncResult[int] = AsyncResult("task_1", backend)

    async def wait() -> int:
        return await result

    assert asyncio.run(wait()) == 2


def test_a_failure_is_raised_with_the_tasks_own_text(backend: Counted, get: Way) -> None:
    fail(backend, "task_1", "Test error")
    result: AsyncResult[Any] = AsyncResult("task_1", backend)

    for way in (lambda: get(result), result.touch, result.results):
        with pytest.raises(TaskFailed) as caught:
            way()
        assert str(caught.value) == "Test error"
        assert (caught.value.uuid, caught.value.task_name) == ("task_1", "add")
    assert result.values is None


def test_the_time_is_up(backend: Counted, get: Way) -> None:
    pending(backend, "task_1")

    with pytest.raises(ResultTimeout) as caught:
        get(AsyncResult("task_1", backend))

    assert str(caught.value) == "Timeout reached"


def test_an_id_that_was_never_sent_is_not_waited_for(backend: Counted, get: Way) -> None:
    result: AsyncResult[Any] = AsyncResult("task_1", backend)

    with pytest.raises(ResultNotFound, match=r"^No state is kept under 'task_1'"):
        get(result, None)
    assert (result.state, result.touch(), result.values) == (None, None, None)


def test_touch_looks_once_and_returns_nothing_while_unfinished(backend: Counted) -> None:
    pending(backend, "task_1")
    result: AsyncResult[Any] = AsyncResult("task_1", backend)

    found = result.touch()

    assert found is None
    assert backend.reads == 1


def test_only_a_final_state_is_remembered(backend: Counted) -> None:
    result: AsyncResult[int] = AsyncResult("task_1", backend)
    pending(backend, "task_1")
    seen = [result.state, result.state]
    succeed(backend, "task_1", 2)
    seen += [result.state, result.state]
    backend.purge_state("task_1")

    assert [state.state for state in seen if state] == ["PENDING", "PENDING", "SUCCESS", "SUCCESS"]
    assert backend.reads == 3
    assert result.get() == 2


def test_a_result_type_that_is_unknown_is_an_error(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", TaskResult("chan int", 1))

    with pytest.raises(WireError, match=r"^chan int is not one of supported types$"):
        get(AsyncResult("task_1", backend))


def test_a_waiting_thread_is_woken_by_the_end_of_the_task(backend: Counted) -> None:
    pending(backend, "task_1")
    found: list[int] = []
    result: AsyncResult[int] = AsyncResult("task_1", backend)
    waiting = threading.Thread(target=lambda: found.append(result.get(timeout=10)))

    waiting.start()
    succeed(backend, "task_1", 2)
    waiting.join(10)

    assert found == [2]


def test_printing_a_result_shows_what_was_seen_and_reads_nothing(backend: Counted) -> None:
    succeed(backend, "task_1", 2)
    result: AsyncResult[int] = AsyncResult("task_1", backend)

    before = repr(result)
    reads = backend.reads
    result.get()

    assert (before, reads) == ("<AsyncResult task_1: not looked at yet>", 0)
    assert repr(result) == "<AsyncResult task_1: SUCCESS>"
    assert result.id == "task_1"


# -- inside a task -----------------------------------------------------------------------------


@pytest.mark.usefixtures("inside_a_task")
def test_a_running_task_may_not_wait_for_another(backend: Counted) -> None:
    succeed(backend, "task_1", 2)
    one: AsyncResult[int] = AsyncResult("task_1", backend)
    several: GroupResult[int] = GroupResult("group_1", backend, ["task_1"])
    text = (
        "Task 'parent' waits for the result of another task: it would hold its worker's slot "
        "meanwhile, and all slots waiting is a standstill. Use a chain or a chord, or say "
        "get(allow_in_task=True)."
    )

    ways: list[Callable[[], object]] = [
        one.get,
        lambda: asyncio.run(one.aget()),
        one.results,
        several.get,
        several.as_completed,
        several.aas_completed,
        lambda: asyncio.run(several.aget()),
    ]
    for way in ways:
        with pytest.raises(SignatureError) as caught:
            way()
        assert str(caught.value) == text


@pytest.mark.usefixtures("inside_a_task")
def test_a_running_task_may_wait_when_it_says_so(backend: Counted) -> None:
    succeed(backend, "task_1", 2)
    one: AsyncResult[int] = AsyncResult("task_1", backend)
    several: GroupResult[int] = GroupResult("group_1", backend, ["task_1"])

    assert one.get(allow_in_task=True) == 2
    assert several.get(allow_in_task=True) == [2]
    assert one.touch() == [2]


# -- groups ------------------------------------------------------------------------------------


def test_a_group_gives_its_values_in_order(backend: Counted, get: Way) -> None:
    for uuid, value in (("task_3", 11), ("task_1", 2), ("task_2", 4)):
        succeed(backend, uuid, value)

    assert get(GroupResult("group_1", backend, ["task_1", "task_2", "task_3"])) == [2, 4, 11]


def test_an_empty_group_gives_nothing_at_once(backend: Counted, get: Way) -> None:
    assert get(GroupResult("group_1", backend, [])) == []


def test_a_group_can_be_awaited(backend: Counted) -> None:
    succeed(backend, "task_1", 2)

    async def wait() -> list[int]:
        return await GroupResult("group_1", backend, ["task_1"])

    assert asyncio.run(wait()) == [2]


def test_the_first_failure_in_a_group_is_raised_while_others_run(
    backend: Counted, get: Way
) -> None:
    pending(backend, "task_1")
    fail(backend, "task_2", "oops")

    with pytest.raises(TaskFailed, match=r"^oops$"):
        get(GroupResult("group_1", backend, ["task_1", "task_2"]), None)


def test_a_member_whose_state_is_gone_is_not_waited_for(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", 2)

    with pytest.raises(ResultNotFound, match=r"^No state is kept under 'task_2'"):
        get(GroupResult("group_1", backend, ["task_1", "task_2"]), None)


def test_members_are_given_as_they_end(backend: Counted) -> None:
    pending(backend, "task_1", "task_2")
    group: GroupResult[int] = GroupResult("group_1", backend, ["task_1", "task_2"])
    done = group.as_completed(timeout=10)

    fail(backend, "task_2", "oops")
    first = next(done)
    succeed(backend, "task_1", 2)
    second = next(done)

    assert [first.uuid, second.uuid, *done] == ["task_2", "task_1"]
    assert second.get() == 2
    assert (first.state, [m.uuid for m in group]) == (group.states()[1], ["task_1", "task_2"])


def test_members_are_given_as_they_end_to_asyncio_too(backend: Counted) -> None:
    succeed(backend, "task_1", 2)
    succeed(backend, "task_2", 4)
    group: GroupResult[int] = GroupResult("group_1", backend, ["task_1", "task_2"])

    async def wait() -> list[int]:
        return sorted([await result async for result in group.aas_completed(timeout=10)])

    assert asyncio.run(wait()) == [2, 4]


def test_printing_a_group_reads_nothing(backend: Counted) -> None:
    group: GroupResult[int] = GroupResult("group_1", backend, [f"task_{i}" for i in range(4)])

    text = repr(group)

    assert text.startswith("<GroupResult group_1: 4 members: <AsyncResult task_0: not looked at")
    assert text.endswith(", …>")
    assert (len(group), group.id, backend.reads) == (4, "group_1", 0)


# -- chains and chords -------------------------------------------------------------------------


def chain_of(backend: RedisBackend) -> ChainResult[int]:
    return ChainResult("task_3", backend, TaskGraph.of_chain(["task_1", "task_2", "task_3"]))


def chord_of(backend: RedisBackend) -> ChordResult[int]:
    group: GroupResult[int] = GroupResult("group_1", backend, ["task_1", "task_2"])
    graph = TaskGraph.of_group(["task_1", "task_2"], "chord_1")
    return ChordResult("chord_1", backend, group, graph)


def test_a_chain_gives_its_last_value(backend: Counted, get: Way) -> None:
    for uuid, value in (("task_1", 2), ("task_2", 12), ("task_3", 48)):
        succeed(backend, uuid, value)
    result = chain_of(backend)

    assert get(result) == 48
    assert result.touch() == [48]
    assert [member.get() for member in result.members] == [2, 12, 48]
    assert repr(result) == "<ChainResult task_3: SUCCESS>"


def test_a_chain_waits_for_members_that_are_not_sent_yet(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", 2)
    result = chain_of(backend)

    with pytest.raises(ResultTimeout):
        get(result)
    assert result.touch() is None


def test_a_chain_fails_with_the_error_of_the_member_that_failed(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", 2)
    fail(backend, "task_2", "oops")
    result = chain_of(backend)

    for way in (lambda: get(result, None), result.touch):
        with pytest.raises(TaskFailed, match=r"^oops$") as caught:
            way()
        assert caught.value.uuid == "task_2"


def test_a_chain_that_ended_needs_only_its_last_state(backend: Counted, get: Way) -> None:
    succeed(backend, "task_3", 48)

    assert get(chain_of(backend), None) == 48


def test_a_chain_of_which_nothing_is_kept_is_not_waited_for(backend: Counted, get: Way) -> None:
    with pytest.raises(ResultNotFound) as caught:
        get(chain_of(backend), None)

    assert str(caught.value) == (
        "No state is kept for 'task_3' or any task before it: nothing was sent under these ids, "
        "or their results expired."
    )


def test_a_chain_that_ends_while_it_is_waited_for_gives_its_value(
    backend: Counted, get: Way
) -> None:
    pending(backend, "task_1")
    backend.after_first_read = lambda: succeed(backend, "task_3", 48)

    assert get(chain_of(backend), None) == 48
    assert backend.reads == 1


@pytest.mark.parametrize(("uuid", "error"), [("task_1", "oops"), ("task_3", "alas")])
def test_a_chain_that_fails_while_it_is_waited_for_raises_that_error(
    backend: Counted, get: Way, uuid: str, error: str
) -> None:
    pending(backend, "task_1")
    backend.after_first_read = lambda: fail(backend, uuid, error)

    with pytest.raises(TaskFailed, match=f"^{error}$"):
        get(chain_of(backend), None)


class Forgetful(Counted):
    """A backend that forgets everything after each read but the first."""

    def read(self, uuids: Sequence[str]) -> list[TaskState | None]:
        found = super().read(uuids)
        return found if self.reads == 1 else [None] * len(found)


def test_a_chain_whose_states_expire_meanwhile_is_not_found(get: Way) -> None:
    backend = Forgetful()
    pending(backend, "task_1")
    backend.after_first_read = lambda: fail(backend, "task_1", "oops")

    with pytest.raises(ResultNotFound) as caught:
        get(chain_of(backend), None)

    assert str(caught.value) == "The states of 'task_3' expired while they were read."


def test_a_chord_gives_its_callbacks_value(backend: Counted, get: Way) -> None:
    for uuid, value in (("task_1", 2), ("task_2", 10), ("chord_1", 60)):
        succeed(backend, uuid, value)

    assert get(chord_of(backend)) == 60


def test_a_chord_waits_for_a_callback_that_is_not_sent_yet(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", 2)
    succeed(backend, "task_2", 10)

    with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
        get(chord_of(backend))


@pytest.mark.parametrize("callback_failed", [False, True])
def test_a_chord_fails_with_its_members_own_error(
    backend: Counted, get: Way, callback_failed: bool
) -> None:
    succeed(backend, "task_1", 2)
    fail(backend, "task_2", "oops")
    if callback_failed:
        fail(backend, "chord_1", "chord member task_2 failed: oops")

    with pytest.raises(TaskFailed, match=r"^oops$") as caught:
        get(chord_of(backend))

    assert caught.value.uuid == "task_2"


def test_a_chord_whose_members_are_forgotten_fails_with_its_callbacks_error(
    backend: Counted, get: Way
) -> None:
    fail(backend, "chord_1", "chord member task_2 failed: oops")

    with pytest.raises(TaskFailed, match=r"^chord member task_2 failed: oops$"):
        get(chord_of(backend))


def test_a_chord_knows_its_group(backend: Counted) -> None:
    assert [member.uuid for member in chord_of(backend).group] == ["task_1", "task_2"]


# -- looking at workflows ----------------------------------------------------------------------


@pytest.fixture(params=["", "a"])
def ask(request: pytest.FixtureRequest) -> Way:
    """Return ``ask(result, "touch")``, which is ``result.touch()`` or its asyncio twin."""

    def asked(result: Any, verb: str) -> Any:
        found = getattr(result, f"{request.param}{verb}")()
        return asyncio.run(found) if request.param else found

    return asked


def started(backend: RedisBackend, uuid: str) -> None:
    backend.record(TaskState(task_uuid=uuid, state=State.STARTED, task_name="add"))


def wide_group_of(backend: RedisBackend) -> GroupResult[int]:
    """Return the handle of ``task_1 | group(task_2, task_3)``."""
    graph = TaskGraph(
        ["task_1", "task_2", "task_3"], ["task_1"], {"task_2": ["task_1"], "task_3": ["task_1"]}
    )
    return GroupResult("group_1", backend, ["task_2", "task_3"], graph=graph, may_come=True)


def test_a_groups_progress_is_counted_in_one_look(backend: Counted, ask: Way) -> None:
    pending(backend, "task_1")
    started(backend, "task_2")
    fail(backend, "task_3", "oops")
    succeed(backend, "task_4", 1)
    group: GroupResult[int] = GroupResult("group_1", backend, [f"task_{i}" for i in range(1, 6)])

    found = ask(group, "progress")

    assert found == GroupProgress(total=5, ended=2, failed=1, running=1)
    assert backend.reads == 1


def test_touching_a_group_gives_its_values_or_nothing_yet(backend: Counted, ask: Way) -> None:
    group: GroupResult[int] = GroupResult("group_1", backend, ["task_1", "task_2"])
    succeed(backend, "task_1", 2)
    before = ask(group, "touch")
    succeed(backend, "task_2", 4)

    assert (before, ask(group, "touch")) == (None, [2, 4])
    assert [state.state for state in ask(group, "states")] == ["SUCCESS"] * 2


def test_touching_a_group_raises_a_failure_of_any_task_of_it(backend: Counted, ask: Way) -> None:
    fail(backend, "task_1", "oops")

    with pytest.raises(TaskFailed, match=r"^oops$"):
        ask(wide_group_of(backend), "touch")


@pytest.mark.parametrize("make", [chain_of, chord_of])
def test_touching_a_chain_or_chord_looks_at_all_of_it(
    backend: Counted, ask: Way, make: Callable[[RedisBackend], Any]
) -> None:
    pending(backend, "task_1")
    before = ask(make(backend), "touch")
    fail(backend, "task_1", "oops")

    assert before is None
    with pytest.raises(TaskFailed, match=r"^oops$"):
        ask(make(backend), "touch")


def test_one_task_can_be_touched_without_blocking_too(backend: Counted, ask: Way) -> None:
    result: AsyncResult[int] = AsyncResult("task_1", backend)
    before = ask(result, "touch")
    succeed(backend, "task_1", 2)

    assert (before, ask(result, "touch"), ask(result, "results")) == (None, [2], [2])


def test_a_tasks_progress_is_what_it_last_said(backend: Counted) -> None:
    result: AsyncResult[int] = AsyncResult("task_1", backend)
    said = [result.progress, asyncio.run(result.aprogress())]
    progress = Progress(0.5, "half")
    state = TaskState(task_uuid="task_1", state=State.STARTED, progress=progress)
    backend.record(state)

    said += [result.progress, asyncio.run(result.aprogress())]

    assert said == [None, None, progress, progress]


def test_failures_are_the_tasks_to_blame_in_order(backend: Counted, ask: Way) -> None:
    succeed(backend, "task_1", 1)
    fail(backend, "task_2", "oops")
    fail(backend, "task_3", "not run: add task_2 failed: oops")

    found = ask(chain_of(backend), "failures")

    assert [(state.task_uuid, state.error) for state in found] == [("task_2", "oops")]


def test_failures_of_a_chord_are_its_failed_members(backend: Counted, ask: Way) -> None:
    for uuid in ("task_1", "task_2", "chord_1"):
        fail(backend, uuid, uuid)

    found = ask(chord_of(backend), "failures")

    assert [state.task_uuid for state in found] == ["task_1", "task_2"]


def test_a_callback_that_failed_itself_is_a_failure_of_its_chord(
    backend: Counted, ask: Way
) -> None:
    succeed(backend, "task_1", 1)
    succeed(backend, "task_2", 2)
    fail(backend, "chord_1", "alas")

    assert [state.error for state in ask(chord_of(backend), "failures")] == ["alas"]


# -- a group that ends a workflow --------------------------------------------------------------


def test_a_group_waits_for_members_that_are_not_sent_yet(backend: Counted, get: Way) -> None:
    succeed(backend, "task_1", 1)

    with pytest.raises(ResultTimeout):
        get(wide_group_of(backend))


def test_a_group_fails_with_the_task_before_it(backend: Counted, get: Way) -> None:
    pending(backend, "task_1")
    backend.after_first_read = lambda: [  # type: ignore[assignment, return-value]
        fail(backend, uuid, error)
        for uuid, error in (("task_1", "oops"), ("task_2", "not run"), ("task_3", "not run"))
    ]

    with pytest.raises(TaskFailed, match=r"^oops$") as caught:
        get(wide_group_of(backend), None)
    assert caught.value.uuid == "task_1"


def test_a_group_that_ended_needs_only_its_members_states(backend: Counted, get: Way) -> None:
    succeed(backend, "task_2", 2)
    succeed(backend, "task_3", 3)

    assert get(wide_group_of(backend), None) == [2, 3]


def test_a_workflows_group_of_which_nothing_is_kept_is_not_waited_for(
    backend: Counted, get: Way
) -> None:
    with pytest.raises(ResultNotFound, match=r"^No state is kept for 'group_1' or any task before"):
        get(wide_group_of(backend), None)
    with pytest.raises(ResultNotFound):
        list(wide_group_of(backend).as_completed())


# -- members as they end -----------------------------------------------------------------------


def completed(result: Any, way: str) -> list[str]:
    if way == "as_completed":
        return [one.uuid for one in result.as_completed(timeout=10)]

    async def collect() -> list[str]:
        return [one.uuid async for one in result.aas_completed(timeout=10)]

    return asyncio.run(collect())


both_ways = pytest.mark.parametrize("way", ["as_completed", "aas_completed"])


@both_ways
@pytest.mark.parametrize("make", [chain_of, chord_of, wide_group_of])
def test_each_task_is_given_once_as_it_ends(
    backend: Counted, way: str, make: Callable[[RedisBackend], Any]
) -> None:
    result = make(backend)
    uuids = [member.uuid for member in result.members]
    for uuid in uuids:
        succeed(backend, uuid, 1)

    assert sorted(completed(result, way)) == sorted(uuids)


@both_ways
def test_tasks_whose_states_expired_are_not_waited_for_once_the_last_has_ended(
    backend: Counted, way: str
) -> None:
    succeed(backend, "task_2", 2)
    succeed(backend, "task_3", 3)

    assert sorted(completed(chain_of(backend), way)) == ["task_2", "task_3"]


@both_ways
def test_a_chain_of_which_nothing_is_kept_gives_no_members(backend: Counted, way: str) -> None:
    with pytest.raises(ResultNotFound):
        completed(chain_of(backend), way)


# -- canceling ---------------------------------------------------------------------------------


class Canceler(Canceling):
    """Cancels in a backend alone, and writes down what it is asked."""

    def __init__(self, backend: RedisBackend) -> None:
        super().__init__(own_broker(backend), backend)
        self.asked: list[tuple[list[str], list[str]]] = []

    def cancel_all(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        self.asked.append((list(uuids), list(ahead)))
        return super().cancel_all(uuids, ahead=ahead)

    async def acancel_all(
        self, uuids: Sequence[str], *, ahead: Sequence[str] = ()
    ) -> list[Canceled]:
        return self.cancel_all(uuids, ahead=ahead)


def test_canceling_a_workflow_names_what_may_have_a_state_and_what_is_to_come(
    backend: Counted, ask: Way
) -> None:
    pending(backend, "task_1")
    canceler = Canceler(backend)
    graph = TaskGraph.of_chain(["task_1", "task_2"])
    result: ChainResult[int] = ChainResult("task_2", backend, graph, canceler=canceler)

    done = ask(result, "cancel")

    assert done is True
    assert canceler.asked == [(["task_1"], ["task_2"])]
    with pytest.raises(TaskCanceled, match=r"^canceled$") as caught:
        result.get()
    assert caught.value.uuid == "task_1"


def test_what_has_ended_is_not_canceled(backend: Counted, ask: Way) -> None:
    succeed(backend, "task_1", 1)
    canceler = Canceler(backend)
    one: AsyncResult[int] = AsyncResult("task_1", backend, canceler=canceler)
    several: GroupResult[int] = GroupResult("group_1", backend, ["task_1"], canceler=canceler)

    assert (ask(one, "cancel"), ask(several, "cancel")) == (False, False)
    assert one.get() == 1


def test_a_handle_made_by_hand_cannot_cancel(backend: Counted, ask: Way) -> None:
    one: AsyncResult[int] = AsyncResult("task_1", backend)

    for handle in (one, chain_of(backend), wide_group_of(backend)):
        with pytest.raises(SignatureError, match=r"^This handle knows no server to cancel by"):
            ask(handle, "cancel")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("canceled", TaskCanceled),
        ("canceled: replaced", TaskCanceled),
        ("canceled by me", TaskFailed),
        ("expired: it was to start before 10:00", TaskExpired),
        ("expired", TaskFailed),
    ],
)
def test_an_error_says_what_kind_of_end_it_was(
    backend: Counted, get: Way, error: str, kind: type[TaskFailed]
) -> None:
    fail(backend, "task_1", error)

    with pytest.raises(TaskFailed) as caught:
        get(AsyncResult("task_1", backend))
    assert (type(caught.value), str(caught.value)) == (kind, error)
