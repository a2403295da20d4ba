"""Periodic tasks on a real server: who sends, how often, and what becomes of missed times."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, BrokerUnavailable, Signature, build
from machine.config import Config
from machine.periodic.entries import Entry
from machine.periodic.runs import run_of
from machine.periodic.watermarks import PeriodicState, Watermark
from machine.redis import keys
from machine.redis.lock import RedisLock
from machine.registry import Registry
from machine.runtime.supervisor.scheduler import Scheduler, lock_name
from machine.runtime.supervisor.timetable import TimetableInbox, send_timetable
from machine.wire.signature import new_uuid

if TYPE_CHECKING:
    from tests.integration.conftest import Yard

ROOT = Path(__file__).resolve().parents[2]
MINUTE_MS = 60_000


def sig(name: str, *values: int) -> Signature:
    return Signature(name=name, args=[Arg("int64", value) for value in values])


def now_ms(yard: Yard) -> int:
    """Return Redis's time."""
    seconds, micros = yard.raw.time()
    return int(seconds) * 1000 + int(micros) // 1000


def set_mark(yard: Yard, name: str, ago_ms: int, ran_ago_ms: int | None = None) -> int:
    """Let an entry have been served so long ago, on a whole second; return when."""
    at = (now_ms(yard) - ago_ms) // 1000 * 1000
    ran = at if ran_ago_ms is None else (now_ms(yard) - ran_ago_ms) // 1000 * 1000
    yard.raw.hset(keys.periodic(yard.queue), name, Watermark(at, ran).text)
    return at


def mark(yard: Yard, name: str) -> Watermark | None:
    text = yard.raw.hget(keys.periodic(yard.queue), name)
    return None if text is None else Watermark.of(text.decode())


def note(yard: Yard) -> list[int]:
    """Register a task that notes its arguments; return where."""
    ran: list[int] = []
    yard.task(lambda *values: ran.extend(values), name="note")
    return ran


def look(yard: Yard) -> Scheduler:
    """Let a new scheduler look once."""
    scheduler: Scheduler = yard.server.new_scheduler()
    scheduler.run_once(0.0)
    return scheduler


# -- once --------------------------------------------------------------------------------------
def test_an_entry_that_is_new_counts_from_now(yard: Yard) -> None:
    yard.server.register_periodic_task("* * * * *", "n", sig("note"))
    before_ms = now_ms(yard)

    look(yard)

    found = mark(yard, "n")
    assert found is not None
    assert before_ms - 1000 < found.last_ms <= now_ms(yard)
    assert found.ran_ms == 0
    assert yard.ready() == []


def test_what_is_due_is_sent_and_runs(yard: Yard) -> None:
    ran = note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note", 5))
    last_ms = set_mark(yard, "n", 90_000)

    look(yard)
    [message] = yard.ready()
    yard.run()

    [entry] = yard.server.timetable()
    assert message["UUID"] == run_of(entry, yard.queue, last_ms + MINUTE_MS).uuids[0]
    assert yard.document(message["UUID"])["State"] == "SUCCESS"
    assert mark(yard, "n") == Watermark(last_ms + MINUTE_MS, last_ms + MINUTE_MS)
    assert ran == [5]


def test_a_second_look_sends_nothing_more(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    set_mark(yard, "n", 90_000)

    for _ in range(3):
        look(yard)

    assert len(yard.ready()) == 1
    yard.run()


@pytest.mark.leaves("queue")
def test_of_many_schedulers_each_time_of_each_entry_is_sent_once(yard: Yard) -> None:
    for n in range(50):
        yard.server.register_periodic_task("@every 1s", f"n{n}", sig("note", n), catch_up="all")
    lasts = {f"n{n}": set_mark(yard, f"n{n}", 20_000) for n in range(50)}
    schedulers = [yard.server.new_scheduler() for _ in range(5)]

    def watch(scheduler: Scheduler) -> None:
        # Each tick that was lost to another makes a scheduler look again at once.
        for now_s in range(20):
            scheduler.run_once(float(now_s * 100))

    threads = [threading.Thread(target=watch, args=(one,)) for one in schedulers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    expected = {
        run_of(entry, yard.queue, due_ms).uuids[0]
        for entry in yard.server.timetable()
        for found in [mark(yard, entry.name)]
        if found is not None
        for due_ms in range(lasts[entry.name] + 1000, found.last_ms + 1, 1000)
    }
    sent = [message["UUID"] for message in yard.ready()]
    assert len(sent) == len(set(sent)) >= 50 * 19
    assert set(sent) == expected


def test_a_mark_that_a_failover_took_back_sends_nothing_twice(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    last_ms = set_mark(yard, "n", 90_000)
    look(yard)
    yard.run()

    yard.raw.hset(keys.periodic(yard.queue), "n", f"{last_ms}")
    look(yard)

    assert yard.ready() == []
    assert mark(yard, "n") == Watermark(last_ms + MINUTE_MS, last_ms + MINUTE_MS)


# -- missed times ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("catch_up", "count", "sends"), [("latest", 1, True), ("skip", 0, False), ("all", 5, True)]
)
def test_catch_up_is_done_as_the_entry_says(
    catch_up: Any, count: int, sends: bool, yard: Yard
) -> None:
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note"), catch_up=catch_up)
    last_ms = set_mark(yard, "n", 5 * MINUTE_MS + 30_000)

    look(yard)

    due_ms = last_ms + 5 * MINUTE_MS
    assert len(yard.ready()) == count
    assert mark(yard, "n") == Watermark(due_ms, due_ms if sends else last_ms)
    yard.run()


def test_a_clock_that_leaps_a_day_sends_once(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task("* * * * *", "n", sig("note"))
    set_mark(yard, "n", 24 * 60 * MINUTE_MS)

    look(yard)

    assert len(yard.ready()) == 1
    yard.run()


def test_a_clock_that_was_set_back_is_waited_for_and_told_once(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    last_ms = set_mark(yard, "n", -60 * MINUTE_MS)

    scheduler = look(yard)
    scheduler.run_once(100.0)

    assert yard.ready() == []
    assert mark(yard, "n") == Watermark(last_ms, last_ms)
    [record] = [r.getMessage() for r in caplog.records]
    assert record.startswith("schedule 'n' was served for 20")
    assert record.endswith(
        "Z, which is ahead of Redis's clock; it waits until then. "
        f"To begin anew: HDEL '{{{yard.queue}}}:periodic' 'n'"
    )


# -- overlap -----------------------------------------------------------------------------------
def begin(yard: Yard, kind: str, **ways: Any) -> int:
    """Register an entry, let its last run begin, and let a time come; return the run's time."""
    first, second = sig("note", 1), sig("note", 2)
    if kind == "task":
        yard.server.register_periodic_task("@every 60s", "n", first, **ways)
    elif kind == "chain":
        yard.server.register_periodic_chain("@every 60s", "n", first, second, **ways)
    elif kind == "group":
        yard.server.register_periodic_group("@every 60s", "n", 0, first, second, **ways)
    else:
        yard.server.register_periodic_chord("@every 60s", "n", 0, first, second, **ways)
    set_mark(yard, "n", 90_000)
    look(yard)
    found = mark(yard, "n")
    assert found is not None
    come_again(yard, found.ran_ms)
    return found.ran_ms


def come_again(yard: Yard, ran_ms: int) -> None:
    """Let the time half a minute after a run be due, and not yet served."""
    text = Watermark(ran_ms - 90_000, ran_ms).text
    yard.raw.hset(keys.periodic(yard.queue), "n", text)


each_kind = pytest.mark.parametrize("kind", ["task", "chain", "group", "chord"])


@each_kind
def test_without_overlap_a_time_passes_while_the_run_before_has_not_ended(
    kind: str, yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    note(yard)
    ran_ms = begin(yard, kind, overlap=False)
    waiting = yard.ready()
    caplog.set_level("INFO")

    look(yard)

    assert mark(yard, "n") == Watermark(ran_ms + 30_000, ran_ms)
    assert yard.ready() == waiting
    assert caplog.messages[0].startswith("schedule 'n' not sent for 20")
    assert caplog.messages[0].endswith("Z, because the run before has not ended")
    yard.run()


@each_kind
def test_without_overlap_the_next_run_begins_when_the_one_before_has_ended(
    kind: str, yard: Yard
) -> None:
    note(yard)
    ran_ms = begin(yard, kind, overlap=False)
    yard.run()

    look(yard)

    assert mark(yard, "n") == Watermark(ran_ms + 30_000, ran_ms + 30_000)
    assert len(yard.ready()) == {"task": 1, "chain": 1, "group": 2, "chord": 1}[kind]
    yard.run()


def test_without_overlap_a_chain_runs_until_its_last_link_has_ended(yard: Yard) -> None:
    note(yard)
    ran_ms = begin(yard, "chain", overlap=False)
    [entry] = yard.server.timetable()
    first, second = run_of(entry, yard.queue, ran_ms).uuids
    child = yard.child()
    child.run_once(0)
    child.run_once(0)
    states = [yard.document(uuid)["State"] for uuid in (first, second)]

    look(yard)

    assert states == ["SUCCESS", "PENDING"]
    assert mark(yard, "n") == Watermark(ran_ms + 30_000, ran_ms)
    yard.drain(child)


def test_with_overlap_a_run_begins_whatever_became_of_the_one_before(yard: Yard) -> None:
    note(yard)
    ran_ms = begin(yard, "task")

    look(yard)

    assert mark(yard, "n") == Watermark(ran_ms + 30_000, ran_ms + 30_000)
    assert len(yard.ready()) == 2
    yard.run()


def test_without_overlap_only_the_first_of_several_times_is_made_up_for(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task(
        "@every 60s", "n", sig("note"), catch_up="all", overlap=False
    )
    last_ms = set_mark(yard, "n", 5 * MINUTE_MS + 30_000)

    look(yard)

    assert len(yard.ready()) == 1
    assert mark(yard, "n") == Watermark(last_ms + 5 * MINUTE_MS, last_ms + MINUTE_MS)
    yard.run()


# -- what is sent ------------------------------------------------------------------------------
def test_chains_groups_and_chords_run_to_their_ends_with_new_ids_each_time(yard: Yard) -> None:
    ran = note(yard)
    yard.task(lambda *values: sum(values), name="add")
    add, server = sig("add", 1), yard.server
    add.uuid = new_uuid("task")
    server.register_periodic_chain("@every 60s", "chain", add, add, sig("note"))
    server.register_periodic_group("@every 60s", "group", 0, sig("note", 3), sig("note", 3))
    server.register_periodic_chord("@every 60s", "chord", 0, sig("note"), add, add)
    for name in ("chain", "group", "chord"):
        set_mark(yard, name, 150_000)
    look(yard)
    first = {message["UUID"] for message in yard.ready()}
    yard.run()
    for name in ("chain", "group", "chord"):
        set_mark(yard, name, 80_000)
    look(yard)
    second = {message["UUID"] for message in yard.ready()}
    yard.run()

    assert sorted(ran) == sorted([2, 3, 3, 1, 1] * 2)
    assert len(first) == len(second) == 5
    assert first & second == set()
    assert add.uuid not in first | second


def test_a_group_is_written_down_before_its_members_are_sent(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_group("@every 60s", "n", 0, sig("note", 1), sig("note", 2))
    set_mark(yard, "n", 90_000)

    look(yard)

    members = yard.ready()
    meta = yard.document(members[0]["GroupUUID"])
    assert meta["TaskUUIDs"] == [member["UUID"] for member in members]
    yard.run()


def test_a_full_queue_delays_a_run_and_loses_none(
    make_yard: Callable[..., Yard], caplog: pytest.LogCaptureFixture
) -> None:
    yard = make_yard(max_queue_length=1)
    ran = note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note", 1))
    last_ms = set_mark(yard, "n", 90_000)
    yard.server.send_task(sig("note", 2))

    scheduler = look(yard)
    scheduler.run_once(2.0)
    held = mark(yard, "n")
    yard.run()
    scheduler.run_once(4.0)
    yard.run()

    assert held == Watermark(last_ms, last_ms)
    assert ran == [2, 1]
    warnings = [r.getMessage() for r in caplog.records if r.name == "machine.worker"]
    [warning] = [text for text in warnings if "is not sent" in text]
    assert warning.endswith(": a queue is full; it is sent when there is room")


def test_a_broken_hook_keeps_its_own_entry_waiting_and_no_other(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    ran = note(yard)

    def hook(signature: Signature) -> None:
        if signature.args[0].value == 1:
            raise RuntimeError("no trace")

    yard.server.before_publish = hook
    for n in (1, 2):
        yard.server.register_periodic_task("@every 60s", f"n{n}", sig("note", n))
        set_mark(yard, f"n{n}", 90_000)

    scheduler = look(yard)
    scheduler.run_once(2.0)
    yard.run()

    assert ran == [2]
    [text] = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert text == "schedule 'n1' cannot be sent; it is tried again"


def test_with_results_elsewhere_a_run_is_pending_there(
    make_yard: Callable[..., Yard], redis_url: str
) -> None:
    yard = make_yard(result_backend=f"{redis_url.rpartition('/')[0]}/1")
    ran = note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note", 1))
    set_mark(yard, "n", 90_000)

    look(yard)
    [message] = yard.ready()
    state = yard.server.get_state(message["UUID"])
    yard.run()

    assert state is not None
    assert state.state == "PENDING"
    assert ran == [1]
    yard.server.purge_state(message["UUID"])


# -- when it looks -----------------------------------------------------------------------------
def test_between_two_times_the_server_is_asked_nothing(yard: Yard) -> None:
    yard.server.register_periodic_task("0 0 1 1 *", "n", sig("note"))
    scheduler = look(yard)
    yard.raw.delete(keys.periodic(yard.queue))

    scheduler.run_once(9.9)
    asleep = mark(yard, "n")
    scheduler.run_once(10.0)

    assert asleep is None
    assert mark(yard, "n") is not None


def test_who_lost_a_time_to_another_looks_again_at_once(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    last_ms = set_mark(yard, "n", 150_000)
    earlier = Watermark(last_ms + MINUTE_MS, last_ms + MINUTE_MS)

    def overtake(_signature: Signature) -> None:
        yard.server.before_publish = None
        yard.raw.hset(keys.periodic(yard.queue), "n", earlier.text)

    yard.server.before_publish = overtake
    scheduler = look(yard)
    lost = (mark(yard, "n"), yard.ready())
    scheduler.run_once(0.2)

    assert lost == (earlier, [])
    assert mark(yard, "n") == Watermark(last_ms + 2 * MINUTE_MS, last_ms + 2 * MINUTE_MS)
    assert len(yard.ready()) == 1
    yard.run()


def test_an_entry_that_comes_later_is_seen_at_once(yard: Yard) -> None:
    yard.server.register_periodic_task("0 0 1 1 *", "n", sig("note"))
    scheduler = look(yard)

    yard.server.register_periodic_task("0 0 1 1 *", "m", sig("note"))
    scheduler.run_once(0.1)

    assert mark(yard, "m") is not None


def test_without_entries_no_connection_is_made() -> None:
    with build.server(Config(broker="redis://127.0.0.1:1/0")) as server:
        scheduler = server.new_scheduler()

        scheduler.run_once(0.0)

        assert scheduler._read_at_s == float("-inf")


def test_while_the_server_is_away_a_scheduler_says_so_and_tries_again() -> None:
    config = Config(broker="redis://127.0.0.1:1/0")
    inbox = TimetableInbox()
    factories = build.worker(config, registry=Registry())._factories
    scheduler = factories.scheduler(factories.backend(), inbox)
    send_timetable(inbox.open(), [Entry.of("task", "@every 60s", "n", [sig("note")])])

    for now_s in (0.0, 1.0):
        with pytest.raises(BrokerUnavailable):
            scheduler.run_once(now_s)
    scheduler.run_once(1.9)


def test_intervals_below_a_second_are_looked_at_more_often(yard: Yard) -> None:
    yard.server.register_periodic_task("@every 1s", "n", sig("note"))
    scheduler = look(yard)
    at_first = scheduler.period_s

    yard.server.register_periodic_task(timedelta(seconds=0.5), "m", sig("note"))
    scheduler.run_once(0.1)

    assert (at_first, scheduler.period_s) == (0.2, 0.05)


# -- canceled ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["task", "chain", "group", "chord"])
@pytest.mark.parametrize("catch_up", ["latest", "skip", "all"])
def test_a_canceled_entry_is_sent_by_nobody_and_when_it_goes_on_nothing_is_made_up_for(
    kind: str, catch_up: Any, yard: Yard, make_yard: Callable[..., Yard]
) -> None:
    enter(yard, kind, catch_up=catch_up)
    ran_ms = set_mark(yard, "n", 600_000)
    other = make_yard()

    canceled = other.server.cancel_periodic("n")
    look(yard)
    passed = mark(yard, "n")
    resumed = other.server.resume_periodic("n")
    look(yard)

    assert (canceled, resumed) == (True, True)
    assert passed == Watermark(ran_ms + 600_000, ran_ms)
    assert yard.ready() == []


def test_what_came_due_while_no_scheduler_was_there_is_over_when_an_entry_goes_on(
    yard: Yard,
) -> None:
    yard.server.register_periodic_task("@every 60s", "n", sig("note"), catch_up="all")
    yard.server.cancel_periodic("n")
    set_mark(yard, "n", 600_000)

    yard.server.resume_periodic("n")
    look(yard)

    assert yard.ready() == []


def test_a_scheduler_that_looked_before_an_entry_was_canceled_sends_nothing(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    ran_ms = set_mark(yard, "n", 90_000)
    scheduler = yard.server.new_scheduler()
    tick = scheduler._store.tick

    def late(ticks: Any) -> Any:
        yard.server.cancel_periodic("n")
        return tick(ticks)

    monkeypatch.setattr(scheduler._store, "tick", late)
    scheduler.run_once(0.0)

    assert yard.ready() == []
    assert mark(yard, "n") == Watermark(ran_ms + MINUTE_MS, ran_ms)


def test_what_is_said_of_an_entry_is_what_the_store_knows(yard: Yard) -> None:
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    at_ms = set_mark(yard, "n", 90_000, ran_ago_ms=150_000)
    yard.server.cancel_periodic("another replica's")

    own, foreign = yard.server.periodic_tasks()
    assert asyncio.run(look_async(yard)) == [own, foreign]

    assert (own.name, own.spec, own.canceled) == ("n", "@every 60s", False)
    assert own.next_at == datetime.fromtimestamp((at_ms + 2 * MINUTE_MS) / 1000, UTC)
    assert own.served_at == datetime.fromtimestamp(at_ms / 1000, UTC)
    assert own.sent_at == datetime.fromtimestamp((at_ms - MINUTE_MS) / 1000, UTC)
    assert foreign == PeriodicState(
        name="another replica's",
        spec="",
        next_at=None,
        canceled=True,
        served_at=None,
        sent_at=None,
    )


async def look_async(yard: Yard) -> list[PeriodicState]:
    async with build.server(yard.config) as server:
        server.register_periodic_task("@every 60s", "n", sig("note"))
        return await server.aperiodic_tasks()


def test_asyncio_cancels_what_a_scheduler_sends_and_lets_it_go_on(yard: Yard) -> None:
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note"))
    set_mark(yard, "n", 90_000)

    async def switch(name: str) -> bool:
        async with build.server(yard.config) as server:
            done: bool = await getattr(server, name)("n")
            return done

    assert asyncio.run(switch("acancel_periodic"))
    look(yard)
    assert yard.ready() == []
    assert asyncio.run(switch("aresume_periodic"))
    set_mark(yard, "n", 90_000)
    look(yard)
    assert len(yard.ready()) == 1
    yard.run()


def enter(yard: Yard, kind: str, **ways: Any) -> None:
    """Register the entry "n", of this kind, every minute."""
    server = yard.server
    if kind == "task":
        server.register_periodic_task("@every 60s", "n", sig("note"), **ways)
    elif kind == "chain":
        server.register_periodic_chain("@every 60s", "n", sig("note"), sig("note"), **ways)
    elif kind == "group":
        server.register_periodic_group("@every 60s", "n", 0, sig("note"), sig("note"), **ways)
    else:
        server.register_periodic_chord("@every 60s", "n", 0, sig("note"), sig("note"), **ways)


# -- with Go -----------------------------------------------------------------------------------
@pytest.fixture
def shared(make_yard: Callable[..., Yard], queue: str) -> Iterator[tuple[Yard, str]]:
    """Return a yard whose timetable a Go program has too, and the key of entry "n"'s lock."""
    program = f"p{queue}"
    yard = make_yard(periodic_program=program)
    note(yard)
    yard.server.register_periodic_task("@every 60s", "n", sig("note", 1), catch_up="all")
    yield yard, lock_name(program, "n", "@every 60s")
    yard.run()


def test_a_run_that_is_shared_with_go_holds_its_lock_until_the_next_one(
    shared: tuple[Yard, str],
) -> None:
    yard, key = shared
    last_ms = set_mark(yard, "n", 90_000)

    look(yard)

    assert len(yard.ready()) == 1
    assert yard.raw.get(key) == str((last_ms + 2 * MINUTE_MS) * 10**6 - 1).encode()
    assert 0 < yard.raw.pttl(key) <= MINUTE_MS


def test_a_run_that_go_has_taken_is_not_sent(shared: tuple[Yard, str]) -> None:
    yard, key = shared
    last_ms = set_mark(yard, "n", 90_000)
    yard.raw.set(key, (now_ms(yard) + MINUTE_MS) * 10**6, px=MINUTE_MS)

    scheduler = look(yard)
    yard.raw.delete(key)  # what is Go's stays Go's, even if its lock should be gone
    scheduler.run_once(1000.0)

    assert yard.ready() == []
    assert mark(yard, "n") == Watermark(last_ms, last_ms)


def test_what_go_sent_for_a_while_is_not_made_up_for(shared: tuple[Yard, str]) -> None:
    yard, _ = shared
    set_mark(yard, "n", 10 * MINUTE_MS + 30_000)

    look(yard)

    assert len(yard.ready()) == 1


def test_a_canceled_entry_takes_no_lock_and_is_not_sent(shared: tuple[Yard, str]) -> None:
    yard, key = shared
    set_mark(yard, "n", 90_000)
    yard.server.cancel_periodic("n")

    look(yard)

    assert yard.ready() == []
    assert yard.raw.get(key) is None


def test_of_two_schedulers_and_go_one_sends(shared: tuple[Yard, str]) -> None:
    yard, key = shared
    set_mark(yard, "n", 90_000)
    lock = RedisLock(build.connections(yard.config, yard.config.lock_url))
    won: list[bool] = []
    now_ns = now_ms(yard) * 10**6

    def go() -> None:
        won.append(lock.lock(key, now_ns + 60 * 10**9, now_ns))

    threads = [threading.Thread(target=look, args=(yard,)) for _ in range(2)]
    threads.append(threading.Thread(target=go))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(yard.ready()) + won.count(True) == 1
    lock.close()


def test_a_lock_in_this_process_is_one_for_all_servers(make_yard: Callable[..., Yard]) -> None:
    program = new_uuid("p")
    one = make_yard(periodic_program=program, lock="eager")
    two = make_yard(periodic_program=program, lock="eager")

    first, second, now_ns = build.lock(one.config), build.lock(two.config), time.time_ns()

    assert first is not None
    assert second is not None
    assert first.lock(program, now_ns + 60 * 10**9, now_ns)
    assert not second.lock(program, now_ns + 60 * 10**9, now_ns)
    first.close()
    second.close()
    assert build.lock(make_yard().config) is None


# -- what children report ----------------------------------------------------------------------
def entries(*names: str, size: int = 1) -> list[Entry]:
    value = [Arg("string", "x" * size)]
    return [Entry.of("task", "@daily", n, [Signature(name="a", args=value)]) for n in names]


def test_a_report_is_read_when_it_is_whole() -> None:
    inbox = TimetableInbox()
    out = inbox.open()
    before = inbox.entries()

    send_timetable(out, entries("a", "b"))

    assert before == []
    assert [entry.name for entry in inbox.entries()] == ["a", "b"]
    assert inbox._unread == {}


def test_the_latest_report_counts() -> None:
    inbox = TimetableInbox()
    first, second = inbox.open(), inbox.open()
    send_timetable(second, entries("new"))
    seen = [entry.name for entry in inbox.entries()]
    send_timetable(first, [])

    assert seen == ["new"]
    assert inbox.entries() == []


def test_half_a_report_is_none() -> None:
    inbox = TimetableInbox()
    send_timetable(inbox.open(), entries("a"))
    inbox.entries()
    out = inbox.open()
    os.write(out, b'{"callback":null')
    half = [entry.name for entry in inbox.entries()]
    os.close(out)

    assert half == ["a"]
    assert [entry.name for entry in inbox.entries()] == ["a"]
    assert inbox._unread == {}


def test_a_report_may_be_larger_than_a_pipe() -> None:
    inbox = TimetableInbox()
    writer = threading.Thread(
        target=send_timetable, args=(inbox.open(), entries("a", size=500_000))
    )
    writer.start()

    while inbox._unread:
        found = inbox.entries()
    writer.join(10)

    assert found == entries("a", size=500_000)


def test_a_report_to_nobody_is_no_error() -> None:
    inbox = TimetableInbox()
    out = inbox.open()
    inbox.close()

    send_timetable(out, entries("a"))

    assert inbox.entries() == []


# -- a worker ----------------------------------------------------------------------------------
TASKS = """
import os
from datetime import UTC, datetime, timedelta
from machine import current_task, periodic, task

@periodic(timedelta(seconds=0.2), name="often")
@task
def who() -> None:
    with open("who.txt", "a") as file:
        file.write(f"{os.getppid()} {current_task().signature.uuid}\\n")
"""


def test_a_worker_sends_what_its_tasks_say_and_runs_it(
    tmp_path: Path, yard: Yard, wait_until: Callable[..., Any]
) -> None:
    (tmp_path / "their_tasks.py").write_text(TASKS)
    environ = os.environ | {
        "BROKER": yard.config.broker,
        "DEFAULT_QUEUE": yard.queue,
        "REDIS_DELAYED_TASKS_KEY": yard.delayed_key,
        "TASKS_MODULES": "their_tasks",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
    }
    command = [sys.executable, str(ROOT / "worker" / "worker.py"), "-p", "2"]
    runs = tmp_path / "who.txt"

    def three() -> list[str]:
        lines = runs.read_text().splitlines() if runs.exists() else []
        return lines if len(lines) >= 3 else []

    worker = subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(three, 30, "a worker has sent and run three")
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=30)

    supervisors, uuids = zip(*(line.split() for line in three()), strict=True)
    found = mark(yard, "often")
    [entry] = [Entry.of("task", timedelta(seconds=0.2), "often", [sig("who")])]
    assert worker.returncode == 0, log
    assert set(supervisors) == {str(worker.pid)}
    assert len(set(uuids)) == len(uuids)
    assert found is not None
    assert set(uuids) <= {
        run_of(entry, yard.queue, found.ran_ms - n * 200).uuids[0] for n in range(200)
    }
    assert "schedule 'often' is new; counting from" in log
    yard.run()
