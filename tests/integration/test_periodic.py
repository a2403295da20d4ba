"""Periodic workflows, and canceled entries that outlive workers and Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machine import PeriodicState, build, chain, chord, group
from machine.config import Config
from machine.embedded import EmbeddedServer
from machine.periodic.runs import run_of
from machine.periodic.watermarks import Watermark
from machine.redis import keys
from machine.registry import Registry
from machine.runtime.supervisor.scheduler import lock_name
from machine.runtime.supervisor.timetable import decode_timetable, encode_timetable
from machine.server import Server
from machine.workflow.plan import GATHER

if TYPE_CHECKING:
    from tests.integration.conftest import Yard

ROOT = Path(__file__).resolve().parents[2]


class Sums:
    """Three tasks; the last one notes what it was given."""

    def __init__(self, server: Server) -> None:
        self.notes: list[tuple[int, ...]] = []
        self.add: Any = server.register_task("add", lambda *n: sum(n))
        self.fail: Any = server.register_task("fail", self._fail)
        self.note: Any = server.register_task("note", self._note)

    def _note(self, *numbers: int) -> int:
        self.notes.append(numbers)
        return len(numbers)

    def _fail(self) -> None:
        raise RuntimeError("boom")


def task_of_a_chain(server: Server, s: Sums) -> None:
    """Enter a whole workflow where a task may stand."""
    server.register_periodic_task("@every 60s", "n", chain(s.add.s(1), s.note.partial(2)))


def chain_with_a_group(server: Server, s: Sums) -> None:
    """Enter a chain: a task, a group, a task."""
    pair = group(s.add.partial(1), s.add.partial(2))
    server.register_periodic_chain("@every 60s", "n", s.add.s(1), pair, s.note.partial())


def group_of_chains(server: Server, s: Sums) -> None:
    """Enter a group, a member of which is a chain."""
    server.register_periodic_group(
        "@every 60s", "n", 0, chain(s.add.s(1), s.note.partial(2)), s.note.s(7)
    )


def chord_of_chains(server: Server, s: Sums) -> None:
    """Enter a chord, the members of which are a chain and a chord."""
    server.register_periodic_chord(
        "@every 60s", "n", 0, s.note.partial(),
        chain(s.add.s(1), s.add.partial(2)), chord([s.add.s(3), s.add.s(4)], s.add.partial()),
    )  # fmt: skip


def groups_in_a_row(server: Server, s: Sums) -> None:
    """Enter a group and a group after it."""
    first = group(s.add.s(1), s.add.s(2))
    second = group(s.note.partial(10), s.note.partial(20))
    server.register_periodic_chain("@every 60s", "n", first, second)


WORKFLOWS = [
    pytest.param(task_of_a_chain, [(2, 1)], id="a chain as a task"),
    pytest.param(chain_with_a_group, [(2, 3)], id="a group in a chain"),
    pytest.param(group_of_chains, [(2, 1), (7,)], id="chains in a group"),
    pytest.param(chord_of_chains, [(3, 7)], id="chains and a chord in a chord"),
    pytest.param(groups_in_a_row, [(10, 1, 2), (20, 1, 2)], id="groups in a row"),
]
workflows = pytest.mark.parametrize(("enter", "notes"), WORKFLOWS)


def late(yard: Yard, ago_ms: int = 90_000) -> int:
    """Let the entry "n" have been served so long ago; return the next time, Unix ms."""
    seconds, _ = yard.raw.time()
    last_ms = int(seconds) * 1000 - ago_ms
    yard.raw.hset(keys.periodic(yard.queue), "n", Watermark(last_ms, last_ms).text)
    return last_ms + 60_000


def look(yard: Yard) -> None:
    """Let a new scheduler look once."""
    yard.server.new_scheduler().run_once(0.0)


def mark_of(yard: Yard) -> Watermark | None:
    text = yard.raw.hget(keys.periodic(yard.queue), "n")
    return None if text is None else Watermark.of(text.decode())


# -- workflows ---------------------------------------------------------------------------------
@workflows
def test_a_workflow_is_sent_at_its_times_with_new_ids_each_time(
    enter: Callable[[Server, Sums], None], notes: list[Any], yard: Yard
) -> None:
    sums = Sums(yard.server)
    enter(yard.server, sums)
    [entry] = yard.server.timetable()
    uuids = []
    for ago_ms in (90_000, 61_000):
        uuids += run_of(entry, yard.queue, late(yard, ago_ms)).uuids
        look(yard)
        yard.run()

    assert sorted(sums.notes) == sorted(notes * 2)
    assert len(set(uuids)) == len(uuids)
    assert {yard.document(uuid)["State"] for uuid in uuids} == {"SUCCESS"}


@workflows
def test_of_two_schedulers_that_send_a_workflow_for_the_same_time_one_does(
    enter: Callable[[Server, Sums], None], notes: list[Any], yard: Yard, make_yard: Any
) -> None:
    yards, sums = [yard, make_yard()], Sums(yard.server)
    for one in yards:
        enter(one.server, sums)
    due_ms = late(yard)
    first, second = (run_of(one.server.timetable()[0], yard.queue, due_ms) for one in yards)

    for one in yards:
        # As a failover leaves it that forgot the mark's last move.
        yard.raw.hset(keys.periodic(yard.queue), "n", Watermark(due_ms - 60_000, 0).text)
        look(one)
    yard.run()

    assert first == second
    assert sorted(sums.notes) == notes


def test_the_groups_of_a_workflow_are_recorded_before_it_is_sent(yard: Yard) -> None:
    chain_with_a_group(yard.server, Sums(yard.server))
    [entry] = yard.server.timetable()
    [meta] = run_of(entry, yard.queue, late(yard)).metas

    look(yard)

    assert yard.document(meta.group_uuid)["TaskUUIDs"] == meta.task_uuids
    assert meta.nested
    yard.run()


@workflows
def test_with_results_elsewhere_a_workflow_runs_to_its_end(
    enter: Callable[[Server, Sums], None],
    notes: list[Any],
    make_yard: Callable[..., Yard],
    redis_url: str,
) -> None:
    yard = make_yard(result_backend=f"{redis_url.rpartition('/')[0]}/1")
    sums = Sums(yard.server)
    enter(yard.server, sums)
    [entry] = yard.server.timetable()
    run = run_of(entry, yard.queue, late(yard))

    look(yard)
    pending = [yard.server.get_state(head.uuid) for head in run.signatures]
    yard.run()

    states = [yard.server.get_state(uuid) for uuid in run.uuids]
    assert {state.state for state in pending if state} == {"PENDING"}
    assert [state.state for state in states if state] == ["SUCCESS"] * len(run.uuids)
    assert sorted(sums.notes) == notes
    for uuid in (*run.uuids, *(meta.group_uuid for meta in run.metas)):
        yard.server.purge_state(uuid)


@workflows
def test_a_workflow_that_is_shared_with_go_is_sent_by_whoever_has_the_lock(
    enter: Callable[[Server, Sums], None],
    notes: list[Any],
    make_yard: Callable[..., Yard],
    queue: str,
) -> None:
    yard = make_yard(periodic_program=f"p{queue}")
    sums = Sums(yard.server)
    enter(yard.server, sums)
    due_ms = late(yard)
    yard.raw.set(lock_name(f"p{queue}", "n", "@every 60s"), (due_ms + 120_000) * 10**6, px=60_000)
    look(yard)
    while_go_has_it = yard.ready()
    yard.raw.delete(lock_name(f"p{queue}", "n", "@every 60s"))

    look(yard)
    yard.run()

    assert while_go_has_it == []
    assert sorted(sums.notes) == notes


def test_without_overlap_a_workflow_runs_until_its_last_task_has_ended(yard: Yard) -> None:
    sums = Sums(yard.server)
    yard.server.register_periodic_task(
        "@every 60s", "n", chain(sums.add.s(1), group(sums.note.partial(5))), overlap=False
    )
    late(yard)
    look(yard)
    child = yard.child()
    child.run_once(0)
    child.run_once(0)
    mark = mark_of(yard)
    assert mark is not None
    yard.raw.hset(keys.periodic(yard.queue), "n", f"{mark.last_ms - 60_000} {mark.ran_ms}")

    look(yard)

    after = mark_of(yard)
    yard.drain(child)
    assert after == mark
    assert sums.notes == [(5, 1)]


def test_a_workflow_of_which_a_member_fails_ends_and_the_next_time_is_sent(yard: Yard) -> None:
    sums = Sums(yard.server)
    yard.server.register_periodic_chord(
        "@every 60s",
        "n",
        0,
        sums.note.partial(),
        chain(sums.fail.s(), sums.add.s(1)),
        sums.add.s(1),
    )
    [entry] = yard.server.timetable()
    for ago_ms in (90_000, 61_000):
        run = run_of(entry, yard.queue, late(yard, ago_ms))
        look(yard)
        yard.run()

        assert yard.document(run.uuids[-1])["State"] == "FAILURE"

    assert sums.notes == []


def test_a_child_reports_a_workflow_with_all_that_is_in_it(yard: Yard) -> None:
    groups_in_a_row(yard.server, Sums(yard.server))
    [entry] = yard.server.timetable()

    [read_again] = decode_timetable(encode_timetable([entry]))

    assert read_again == entry
    callback = read_again.signatures[0].chord_callback
    assert callback is not None
    assert callback.name == GATHER


@workflows
def test_in_memory_a_workflow_runs_at_its_times(
    enter: Callable[[Server, Sums], None],
    notes: list[Any],
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "SystemClock", lambda: clock)
    with build.server(Config(broker="eager")) as server:
        sums = Sums(server)
        enter(server, sums)
        scheduler = server.new_scheduler()
        scheduler.run_once(clock.monotonic_s())
        for _ in range(2):
            clock.advance(60)
            scheduler.run_once(clock.monotonic_s())

    assert sorted(sums.notes) == sorted(notes * 2)


# -- canceled ----------------------------------------------------------------------------------
TASKS = """
from datetime import timedelta
from machine import periodic, task

@periodic(timedelta(seconds=0.2), name="often")
@task
def often() -> None:
    with open("ran.txt", "a") as file:
        file.write("x")
"""


@contextmanager
def worker(folder: Path, yard: Yard) -> Iterator[None]:
    """Run a worker of these tasks, and stop it as an operator does."""
    environ = os.environ | {
        "BROKER": yard.config.broker,
        "DEFAULT_QUEUE": yard.queue,
        "REDIS_DELAYED_TASKS_KEY": yard.delayed_key,
        "TASKS_MODULES": "their_tasks",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
    }
    command = [sys.executable, str(ROOT / "worker" / "worker.py"), "-p", "1", "-l", "warning"]
    running = subprocess.Popen(command, env=environ, cwd=folder)
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_a_canceled_entry_stays_canceled_when_worker_and_redis_start_again(
    way: str,
    tmp_path: Path,
    own: Yard,
    own_server: EmbeddedServer,
    wait_until: Callable[..., Any],
) -> None:
    (tmp_path / "their_tasks.py").write_text(TASKS)
    ran = tmp_path / "ran.txt"

    def switch(name: str) -> bool:
        async def work() -> bool:
            async with build.server(own.config, Registry()) as server:
                done: bool = await getattr(server, f"a{name}")("often")
                return done

        return asyncio.run(work()) if way == "asyncio" else getattr(own.server, name)("often")

    def state() -> PeriodicState:
        [found] = own.server.periodic_tasks()
        return found

    with worker(tmp_path, own):
        wait_until(ran.exists, 30, "a worker has run the entry")
        canceled = switch("cancel_periodic")
        sent_at = state().sent_at
    own_server.kill()
    own_server.restart()
    before = state()
    with worker(tmp_path, own):
        wait_until(lambda: state().served_at != before.served_at, 30, "a time has passed")
        after, count = state(), ran.stat().st_size
        resumed = switch("resume_periodic")
        wait_until(lambda: ran.stat().st_size > count, 30, "the entry goes on")

    assert (canceled, resumed) == (True, True)
    assert before.canceled
    assert after.canceled
    assert after.sent_at == before.sent_at == sent_at


def test_canceling_is_logged_once_and_so_is_resuming(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="machine.worker")
    yard.server.register_periodic_task("@every 60s", "n", Sums(yard.server).note.s())
    scheduler = yard.server.new_scheduler()
    yard.server.cancel_periodic("n")
    for now_s in (0.0, 100.0, 200.0):
        late(yard)
        scheduler.run_once(now_s)
    yard.server.resume_periodic("n")
    scheduler.run_once(300.0)

    said = [r.getMessage() for r in caplog.records if r.name == "machine.worker"]
    assert said == [
        "schedule 'n' is canceled; nothing is sent for it until it is resumed",
        "schedule 'n' is no longer canceled; it goes on",
    ]
