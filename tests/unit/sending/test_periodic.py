"""How entries get into the timetable: above a task, and by a server's four methods."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from machine import Config, Server, build, chain, chord, group, periodic, task
from machine.errors import ConfigError, SignatureError
from machine.periodic.entries import Entry
from machine.registry import Registry
from machine.wire.signature import Arg, Signature


@pytest.fixture
def eager() -> Iterator[Server]:
    """Return a server in memory."""
    with build.server(Config(broker="eager", default_queue="home")) as made:
        yield made


def sig(name: str = "add", *values: int, **fields: Any) -> Signature:
    return Signature(name=name, args=[Arg("int64", value) for value in values], **fields)


def nothing() -> None:
    """Do nothing."""


# -- above a task ------------------------------------------------------------------------------
def test_a_periodic_task_is_still_a_task() -> None:
    @periodic("@daily")
    @task(queue="q")
    def cleanup() -> int:
        return 7

    assert cleanup() == 7
    assert cleanup.s().routing_key == "q"
    assert [entry.name for entry in cleanup.schedules] == ["cleanup"]


def test_what_is_said_above_a_task_stands_in_its_entry() -> None:
    made = periodic(
        timedelta(seconds=30), name="often", catch_up="skip", overlap=False, tz="Europe/Paris"
    )(task(name="mail.send", queue="q")(nothing))

    assert made.schedules == (
        Entry(
            name="often",
            spec="@interval 30000ms",
            signatures=(Signature(name="mail.send", routing_key="q"),),
            catch_up="skip",
            overlap=False,
            tz="Europe/Paris",
        ),
    )


def test_a_task_may_have_several_schedules() -> None:
    @periodic("@daily", name="by day")
    @periodic("@every 90s", name="often")
    @task
    async def both() -> None: ...

    registry = Registry()
    registry.register_tasks({"both": both})

    assert sorted(registry.schedules) == ["by day", "often"]


def test_a_function_that_is_no_task_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"^@periodic\('@daily'\) stands above <function "
                       r"nothing at .*>, which is no task; put it above @task\.$"):  # fmt: skip
        periodic("@daily")(nothing)  # type: ignore[type-var]


def test_a_task_that_needs_arguments_is_refused() -> None:
    @task
    def needy(x: int) -> int:
        return x

    with pytest.raises(SignatureError) as caught:
        periodic("@daily")(needy)

    assert str(caught.value).startswith("Task 'needy' is periodic and so called without arguments")
    assert str(caught.value).endswith("Give them defaults, or use server.register_periodic_task().")


def test_a_bad_specification_shows_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"^Schedule '@dayly': unknown descriptor"):
        periodic("@dayly")(task(nothing))


def test_two_tasks_may_not_share_a_schedule_name() -> None:
    registry = Registry()
    one = periodic("@daily", name="same")(task(name="one")(nothing))
    two = periodic("@daily", name="same")(task(name="two")(nothing))
    registry.register_tasks({"one": one})

    with pytest.raises(SignatureError) as caught:
        registry.register_tasks({"two": two})

    assert str(caught.value) == (
        "Two schedules are called 'same'; give one another name, as in @periodic(…, name='other')."
    )
    assert "two" not in registry


def test_a_task_under_another_name_has_no_schedule() -> None:
    registry = Registry()

    registry.register_tasks({"other": periodic("@daily")(task(nothing))})

    assert registry.schedules == {}


# -- at a server -------------------------------------------------------------------------------
def test_a_registered_task_is_filled_in_as_when_it_is_sent(eager: Server) -> None:
    eager.register_task("once", task(name="once", on_crash="fail")(nothing))

    eager.register_periodic_task("@daily", "nightly", sig("once"), tz="Europe/Paris")

    [entry] = eager.timetable()
    [signature] = entry.signatures
    assert (entry.name, entry.tz, entry.kind) == ("nightly", "Europe/Paris", "task")
    assert signature.routing_key == "home"
    assert signature.headers == {"x-on-crash": "fail"}


def test_chains_groups_and_chords_can_be_registered(eager: Server) -> None:
    eager.register_periodic_chain("@daily", "chain", sig("a"), sig("b"))
    eager.register_periodic_group("@daily", "group", 2, sig("a"), sig("b"), overlap=False)
    eager.register_periodic_chord("@daily", "chord", 0, sig("c"), sig("a"), sig("b"))

    found = {entry.name: entry for entry in eager.timetable()}

    assert {name: entry.kind for name, entry in found.items()} == {
        "chain": "chain", "group": "group", "chord": "chord",
    }  # fmt: skip
    assert not found["group"].overlap
    assert found["chord"].callback is not None
    assert found["chord"].callback.name == "c"
    assert [s.name for s in found["chord"].signatures] == ["a", "b"]


def test_registering_the_same_again_changes_nothing(eager: Server) -> None:
    for _ in range(2):
        eager.register_periodic_task("@daily", "nightly", sig("add", 1))

    assert len(eager.timetable()) == 1


def test_another_entry_of_the_same_name_is_refused(eager: Server) -> None:
    eager.register_periodic_task("@daily", "nightly", sig("add", 1))

    with pytest.raises(SignatureError, match=r"^Two schedules are called 'nightly'"):
        eager.register_periodic_task("@daily", "nightly", sig("add", 2))


@pytest.mark.parametrize("method", ["register_periodic_group", "register_periodic_chord"])
def test_a_negative_send_concurrency_is_refused(method: str, eager: Server) -> None:
    with pytest.raises(SignatureError) as caught:
        getattr(eager, method)("@daily", "n", -1, sig(), sig())

    assert str(caught.value) == "send_concurrency -1 is out of bounds; give 0 or more."


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("register_periodic_task", (sig(),)),
        ("register_periodic_chain", (sig(), sig())),
        ("register_periodic_group", (0, sig())),
        ("register_periodic_chord", (0, sig(), sig())),
    ],
)
def test_every_method_refuses_a_bad_specification(
    method: str, arguments: tuple[Any, ...], eager: Server
) -> None:
    with pytest.raises(ConfigError, match=r"expected exactly 5 fields, found 4: "):
        getattr(eager, method)("* * * *", "n", *arguments)

    assert eager.timetable() == []


@pytest.mark.parametrize(
    "bad",
    [sig(routing_key="task_x"), sig("add", 2**63), sig("x" * 2**20)],
    ids=["queue", "int", "size"],
)
def test_what_cannot_be_sent_is_refused_at_once(bad: Signature, eager: Server) -> None:
    with pytest.raises(SignatureError):
        eager.register_periodic_task("@daily", "nightly", bad)

    assert eager.timetable() == []


def test_what_is_registered_is_not_written_into(eager: Server) -> None:
    signature, callback = sig(), sig("c")

    eager.register_periodic_chord("@daily", "n", 0, callback, signature)
    eager.timetable()

    assert (signature, callback) == (sig(), sig("c"))


def test_a_server_made_by_hand_says_that_it_cannot_schedule(eager: Server) -> None:
    bare = Server(eager.config, eager.broker, eager.backend)

    with pytest.raises(ConfigError) as caught:
        bare.start_scheduler()

    assert str(caught.value) == (
        "This server cannot make schedulers; make it by machine.connect(), which can."
    )


def test_a_worker_made_by_a_server_sees_to_what_is_registered_there() -> None:
    with build.server(Config()) as server:
        server.register_periodic_task("@daily", "nightly", sig())
        server.register_task("x", periodic("@daily", name="x")(task(name="x")(nothing)))
        worker = server.new_worker()

        entries = worker._factories.timetable(server.registry)

    assert [entry.name for entry in entries] == ["nightly", "x"]
    assert [entry.signatures[0].routing_key for entry in entries] == ["machinery_tasks"] * 2


# -- workflows ---------------------------------------------------------------------------------
ADD = task(name="add")(lambda *numbers: sum(numbers))
ONE: Any = ADD.s(1)
TWO: Any = ADD.partial(2)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("register_periodic_task", (chain(ONE, TWO),)),
        ("register_periodic_chain", (ONE, group(TWO, TWO), TWO)),
        ("register_periodic_group", (0, chain(ONE, TWO), ONE)),
        ("register_periodic_chord", (0, TWO, chain(ONE, TWO), chord([ONE], TWO))),
    ],
)
def test_every_method_takes_workflows_and_entering_one_twice_is_once(
    method: str, arguments: tuple[Any, ...], eager: Server
) -> None:
    for _ in range(2):
        getattr(eager, method)("@daily", "n", *arguments)

    [entry] = eager.timetable()
    assert (entry.kind, entry.callback) == ("workflow", None)
    assert entry.outline is not None
    assert {signature.routing_key for signature in entry.signatures} == {"home"}


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (
            "register_periodic_task",
            (5,),
            "Schedule 'n': 5 is not a signature; for a task it is task.s(…), or task.partial(…) ",
        ),
        (
            "register_periodic_chord",
            (0, chain(ONE, TWO), ONE),
            "Schedule 'n': Only tasks may stand in this chord's place for the callback, not ",
        ),
        (
            "register_periodic_chord",
            (0, TWO, group(), ONE),
            "Schedule 'n': A group in a group needs at least one member.",
        ),
        (
            "register_periodic_task",
            (group(),),
            "Schedule 'n': a workflow cannot have 0 signatures.",
        ),
        (
            "register_periodic_chain",
            (group(ONE), *[TWO] * 70),
            "Schedule 'n': The message of task 'add' would hold 70 tasks one after another; at ",
        ),
        ("register_periodic_task", (chain(ONE.options(unique="k"), TWO),), "Task 'add' "),
    ],
)
def test_a_workflow_that_cannot_be_sent_is_refused_at_once(
    method: str, arguments: tuple[Any, ...], message: str, eager: Server
) -> None:
    with pytest.raises(SignatureError) as caught:
        getattr(eager, method)("@daily", "n", *arguments)

    assert str(caught.value).startswith(message)
    assert eager.timetable() == []


# -- canceling ---------------------------------------------------------------------------------
SWITCHES = ("cancel_periodic", "resume_periodic", "acancel_periodic", "aresume_periodic")


def call(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method, which may be a coroutine function."""

    async def awaited() -> Any:
        return await method(*arguments)

    return asyncio.run(awaited()) if inspect.iscoroutinefunction(method) else method(*arguments)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201])
@pytest.mark.parametrize("method", SWITCHES)
def test_a_name_that_no_entry_can_have_is_refused(method: str, name: str, eager: Server) -> None:
    with pytest.raises(SignatureError) as caught:
        call(getattr(eager, method), name)

    assert str(caught.value) == (
        f"Schedule name {name!r} is not usable: give 1 to 200 printable characters."
    )


@pytest.mark.parametrize(
    ("method", "arguments"),
    [*((name, ("n",)) for name in SWITCHES), ("periodic_tasks", ()), ("aperiodic_tasks", ())],
)
def test_a_server_made_by_hand_says_that_it_knows_no_timetable(
    method: str, arguments: tuple[str, ...], eager: Server
) -> None:
    bare = Server(eager.config, eager.broker, eager.backend)

    with pytest.raises(ConfigError) as caught:
        call(getattr(bare, method), *arguments)

    assert str(caught.value) == (
        "This server does not know where its timetable is; make it by machine.connect(), which "
        "tells it."
    )


@pytest.mark.parametrize("prefix", ["", "a"])
def test_in_memory_a_canceled_entry_does_not_run_until_it_goes_on(
    prefix: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SystemClock", lambda: clock)
    notes: list[int] = []
    with build.server(Config(broker="eager")) as server:
        note = server.register_task("note", task(name="note")(notes.append))
        server.register_periodic_task("@every 60s", "n", note.partial(1), catch_up="all")
        scheduler = server.new_scheduler()
        scheduler.run_once(clock.monotonic_s())

        answers = [call(getattr(server, f"{prefix}cancel_periodic"), "n") for _ in range(2)]
        for _ in range(3):
            clock.advance(60)
            scheduler.run_once(clock.monotonic_s())
        [off] = call(getattr(server, f"{prefix}periodic_tasks"))
        answers += [call(getattr(server, f"{prefix}resume_periodic"), "n") for _ in range(2)]
        scheduler.run_once(clock.monotonic_s())
        while_off = list(notes)
        clock.advance(60)
        scheduler.run_once(clock.monotonic_s())

    assert answers == [True, False, True, False]
    assert (off.canceled, off.next_at, off.sent_at) == (True, None, None)
    assert (while_off, notes) == ([], [1])


# -- from a thread -----------------------------------------------------------------------------
def test_a_started_scheduler_sends_until_the_server_is_closed() -> None:
    ran = threading.Event()
    with build.server(Config(broker="eager")) as server:
        server.register_task("note", task(name="note")(ran.set))
        server.register_periodic_task(timedelta(seconds=0.1), "often", sig("note"))
        scheduler = server.start_scheduler()

        assert ran.wait(10)

    assert not scheduler._thread.is_alive()


def test_in_eager_mode_what_is_due_runs_at_once(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SystemClock", lambda: clock)
    notes: list[int] = []
    with build.server(Config(broker="eager")) as server:
        note = server.register_task("note", task(name="note")(notes.append))
        server.register_task("total", task(name="total")(lambda *n: notes.append(sum(n))))
        server.register_task("add", task(name="add")(lambda *n: sum(n)))
        server.register_periodic_task("@every 60s", "task", note.partial(1))
        server.register_periodic_chain("@every 60s", "chain", sig("add", 1, 1), sig("note"))
        server.register_periodic_chord(
            "@every 60s", "chord", 0, sig("total"), sig("add", 3), sig("add", 4)
        )
        scheduler = server.new_scheduler()

        scheduler.run_once(clock.monotonic_s())
        at_first = list(notes)
        for _ in range(2):
            clock.advance(60)
            scheduler.run_once(clock.monotonic_s())

    assert at_first == []
    assert notes == [1, 2, 7] * 2
