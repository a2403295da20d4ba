"""Watermarks of the timetable: each time moves them on once, and queues what is due with it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.periodic.entries import Entry
from machine.periodic.runs import run_of
from machine.periodic.watermarks import Watermark, steps
from machine.ports.moves import Message
from machine.ports.periodic import PeriodicStore, Tick, Ticked, Watermarks
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.inline import InlineBroker, InlinePeriodicStore
from machine.redis.periodic import RedisPeriodicStore
from machine.redis.roles import QueueSettings
from machine.wire.messages import encode_signature
from machine.wire.signature import Signature, TaskState
from machine.wire.states import encode_state
from tests.conftest import FakeClock
from tests.contract.conftest import Bench

T = 1_800_000_000_000


def store_of(request: pytest.FixtureRequest, **options: Any) -> PeriodicStore:
    """Return another store of watermarks on a bench's store."""
    return redis_store(request.getfixturevalue("redis_url"), **options)


def redis_store(redis_url: str, **options: Any) -> RedisPeriodicStore:
    """Return watermarks on connections of their own."""
    settings = replace(QueueSettings.of(Config()), **options)
    return RedisPeriodicStore(Connections(parse_address(redis_url)), settings)


@pytest.fixture
def store(redis_url: str) -> Iterator[PeriodicStore]:
    """Return the watermarks beside the bench's queues."""
    made = redis_store(redis_url)
    yield made
    made.close()


@pytest.fixture
def tick(bench: Bench, store: PeriodicStore) -> Callable[..., Ticked]:
    """Return a function that moves the entry "nightly" on."""

    def move(before: str, after: str, *names: str, queue: str | None = None) -> Ticked:
        messages = [bench.message(name, queue=queue) for name in names]
        [outcome] = store.tick([Tick(bench.queue, "nightly", before, after, messages)])
        return outcome

    return move


def marks(store: PeriodicStore, bench: Bench) -> dict[str, str]:
    return dict(store.read_watermarks(bench.queue).texts)


def test_a_timetable_begins_empty_and_says_what_time_it_is(
    bench: Bench, store: PeriodicStore
) -> None:
    before_ms = bench.now_ns() // 1_000_000

    found = store.read_watermarks(bench.queue)

    assert found.texts == {}
    assert before_ms - 1000 <= found.now_ms <= bench.now_ns() // 1_000_000 + 1000


def test_a_tick_moves_the_mark_and_queues_its_messages(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    assert tick("", f"{T}", "a", "b") is Ticked.QUEUED

    assert marks(store, bench) == {"nightly": f"{T}"}
    assert bench.pending() == ["a", "b"]
    assert [bench.state_of(name) for name in "ab"] == ["PENDING", "PENDING"]


def test_a_tick_without_messages_only_moves_the_mark(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    assert tick("", f"{T} 0") is Ticked.QUEUED

    assert marks(store, bench) == {"nightly": f"{T} 0"}
    assert bench.pending() == []


def test_a_tick_that_is_sent_twice_does_its_work_once(
    bench: Bench, tick: Callable[..., Ticked]
) -> None:
    assert tick("", f"{T}", "a") is Ticked.QUEUED
    before = bench.dump()

    assert tick("", f"{T}", "a") is Ticked.DUPLICATE
    assert bench.dump() == before


@pytest.mark.parametrize("before", ["", "x", f"{T - 1}", f"{T} 0"])
def test_a_tick_from_another_mark_changes_nothing(
    before: str, bench: Bench, tick: Callable[..., Ticked]
) -> None:
    tick("", f"{T}")
    kept = bench.dump()

    assert tick(before, f"{T + 1}", "a") is Ticked.DUPLICATE
    assert bench.dump() == kept


@pytest.mark.parametrize("after", [f"{T}", f"{T} 0", f"{T - 1}", "0", "x"])
def test_a_mark_never_goes_back(
    after: str, bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    tick("", f"{T}")

    assert tick(f"{T}", after, "a") is Ticked.DUPLICATE
    assert marks(store, bench) == {"nightly": f"{T}"}
    assert bench.pending() == []


def test_ticks_given_together_are_done_in_order(bench: Bench, store: PeriodicStore) -> None:
    messages = {name: [bench.message(name)] for name in "abc"}
    ticks = [
        Tick(bench.queue, "nightly", "", f"{T}", messages["a"]),
        Tick(bench.queue, "nightly", f"{T}", f"{T + 1}", messages["b"]),
        Tick(bench.queue, "hourly", "", f"{T}", messages["c"]),
        Tick(bench.queue, "nightly", f"{T}", f"{T + 2}", ()),
    ]

    outcomes = store.tick(ticks)

    assert outcomes == [Ticked.QUEUED] * 3 + [Ticked.DUPLICATE]
    assert marks(store, bench) == {"nightly": f"{T + 1}", "hourly": f"{T}"}
    assert bench.pending() == ["a", "b", "c"]


def test_no_ticks_are_no_work(store: PeriodicStore) -> None:
    assert store.tick([]) == []


def test_a_message_that_was_sent_before_is_not_sent_again(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    # As after a failover that lost the mark's last move, and nothing else.
    bench.send("a")

    assert tick("", f"{T}", "a", "b") is Ticked.QUEUED

    assert bench.pending() == ["a", "b"]
    assert marks(store, bench) == {"nightly": f"{T}"}


def test_a_full_queue_holds_everything_back_until_there_is_room(
    make_bench: Callable[..., Bench], request: pytest.FixtureRequest
) -> None:
    bench = make_bench(max_queue_length=1)
    store = store_of(request, max_queue_length=1)
    bench.send("first")
    other = f"{bench.queue}.other"
    messages = [bench.message("a", queue=other), bench.message("b")]
    one = Tick(bench.queue, "nightly", "", f"{T}", messages)

    refused = store.tick([one])
    kept = (marks(store, bench), bench.pending(other), bench.state_of("a"))
    bench.take(bench.worker())
    taken = store.tick([one])

    assert refused == [Ticked.FULL]
    assert kept == ({}, [], None)
    assert taken == [Ticked.QUEUED]
    assert (bench.pending(other), bench.pending()) == (["a"], ["b"])
    store.close()


def test_a_queue_that_is_no_list_holds_everything_back(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    own = f"{bench.queue}.own"
    bench.broker.enqueue([bench.message("x")._replace(uuid=own)])

    assert tick("", f"{T}", "a", queue=own) is Ticked.BAD_KEY
    assert marks(store, bench) == {}
    assert bench.state_of("a") is None


def test_an_id_that_is_no_state_holds_everything_back(bench: Bench, store: PeriodicStore) -> None:
    bench.send("x")
    message = bench.message("a")._replace(uuid=bench.queue)

    assert store.tick([Tick(bench.queue, "n", "", f"{T}", [message])]) == [Ticked.BAD_KEY]
    assert bench.pending() == ["x"]


def test_without_states_of_its_own_the_mark_alone_decides(
    bench: Bench, store: PeriodicStore
) -> None:
    message = bench.message("a")._replace(pending=b"")

    assert store.tick([Tick(bench.queue, "n", "", f"{T}", [message])]) == [Ticked.QUEUED]
    assert store.tick([Tick(bench.queue, "n", "", f"{T}", [message])]) == [Ticked.DUPLICATE]
    assert bench.pending() == ["a"]
    assert bench.state_of("a") is None


def test_two_homes_share_no_marks(bench: Bench, store: PeriodicStore) -> None:
    home = f"{bench.queue}.home"

    store.tick([Tick(home, "n", "", f"{T}", ())])

    assert marks(store, bench) == {}
    assert dict(store.read_watermarks(home).texts) == {"n": f"{T}"}


def test_of_many_that_move_a_mark_one_does_it(bench: Bench, request: pytest.FixtureRequest) -> None:
    stores = [store_of(request) for _ in range(8)]
    outcomes: list[Ticked] = []

    def race(one: PeriodicStore) -> None:
        before = ""
        for n in range(20):
            after = f"{T + n}"
            outcomes.extend(
                one.tick([Tick(bench.queue, "n", before, after, [bench.message(f"{n}")])])
            )
            before = after

    threads = [threading.Thread(target=race, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert bench.pending() == [f"{n}" for n in range(20)]
    assert outcomes.count(Ticked.QUEUED) == 20
    assert len(outcomes) == 160
    for one in stores:
        one.close()


def test_the_scripts_are_sent_again_where_the_server_forgot_them(
    bench: Bench, tick: Callable[..., Ticked]
) -> None:
    tick("", f"{T}", "a")
    bench.forget_scripts()

    assert tick(f"{T}", f"{T + 1}", "b") is Ticked.QUEUED
    assert bench.pending() == ["a", "b"]


# -- canceled ----------------------------------------------------------------------------------
def test_a_canceled_entry_moves_on_and_sends_nothing(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    tick("", f"{T}", "a")

    changed = store.switch(bench.queue, "nightly", canceled=True)

    assert changed
    assert store.read_watermarks(bench.queue).canceled == {"nightly"}
    assert tick(f"{T}", f"{T + 1}", "b") is Ticked.CANCELED
    assert tick(f"{T + 1} {T}", f"{T + 2}", "c") is Ticked.CANCELED
    assert marks(store, bench) == {"nightly": f"{T + 2} {T}"}
    assert (bench.pending(), bench.state_of("b")) == (["a"], None)


def test_a_canceled_entry_that_was_never_sent_has_no_time_it_was_sent_for(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    store.switch(bench.queue, "nightly", canceled=True)

    assert tick("", f"{T}", "a") is Ticked.CANCELED
    assert marks(store, bench) == {"nightly": f"{T} 0"}


def test_canceling_and_resuming_twice_changes_nothing_the_second_time(
    bench: Bench, store: PeriodicStore
) -> None:
    def switch(*, canceled: bool) -> bool:
        return store.switch(bench.queue, "nightly", canceled=canceled)

    answers = [switch(canceled=is_off) for is_off in (False, True, True, False, False)]

    assert answers == [False, True, False, True, False]
    assert store.read_watermarks(bench.queue)[1:] == ({}, frozenset())


def test_of_two_entries_only_the_canceled_one_is_not_sent(
    bench: Bench, store: PeriodicStore
) -> None:
    store.switch(bench.queue, "nightly", canceled=True)
    store.switch(f"{bench.queue}.other", "hourly", canceled=True)
    ticks = [
        Tick(bench.queue, name, "", f"{T}", [bench.message(name)]) for name in ("nightly", "hourly")
    ]

    assert store.tick(ticks) == [Ticked.CANCELED, Ticked.QUEUED]
    assert bench.pending() == ["hourly"]


def test_who_resumes_moves_the_mark_to_now_as_what_passed_is_over(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    tick("", "5000", "a")
    tick("5000", "9000 5000")
    store.switch(bench.queue, "nightly", canceled=True)

    store.switch(bench.queue, "nightly", canceled=False)

    found = store.read_watermarks(bench.queue)
    mark = Watermark.of(found.texts["nightly"])
    assert mark is not None
    assert found.now_ms - 60_000 <= mark.last_ms <= found.now_ms
    assert mark.ran_ms == 5000
    assert tick(mark.text, f"{found.now_ms + 1}", "b") is Ticked.QUEUED


def test_who_resumes_moves_no_mark_back(
    bench: Bench, store: PeriodicStore, tick: Callable[..., Ticked]
) -> None:
    ahead = f"{T * 10}"
    tick("", ahead)
    store.switch(bench.queue, "nightly", canceled=True)

    store.switch(bench.queue, "nightly", canceled=False)

    assert marks(store, bench) == {"nightly": ahead}


def test_asyncio_cancels_resumes_and_looks_as_threads_do(
    bench: Bench, store: PeriodicStore
) -> None:
    async def all_of_it() -> list[Any]:
        done: list[Any] = [await store.aswitch(bench.queue, "n", canceled=True)]
        done.append((await store.aread_watermarks(bench.queue)).canceled)
        done.append(await store.aswitch(bench.queue, "n", canceled=False))
        done.append((await store.aread_watermarks(bench.queue)).canceled)
        await store.aclose()
        return done

    assert asyncio.run(all_of_it()) == [True, {"n"}, True, frozenset()]


# -- in Redis -----------------------------------------------------------------------------------
@pytest.mark.server
def test_a_mark_is_a_field_and_a_state_outlives_a_day(queue: str, redis_url: str, raw: Any) -> None:
    store = redis_store(redis_url, results_expire_s=60)
    from tests.contract.conftest import redis_bench

    bench = redis_bench(queue, redis_url)

    store.tick([Tick(queue, "nightly run", "", f"{T} 0", [bench.message("a")])])

    assert raw.hgetall(keys.periodic(queue)) == {b"nightly run": f"{T} 0".encode()}
    assert 86_400 - 10 <= raw.ttl(bench.uuid("a")) <= 86_400
    store.close()
    bench.close()


@pytest.mark.server
def test_a_mark_that_somebody_spoilt_is_begun_anew(queue: str, redis_url: str, raw: Any) -> None:
    store = redis_store(redis_url)
    raw.hset(keys.periodic(queue), "n", "yesterday")

    outcomes = store.tick([Tick(queue, "n", "yesterday", f"{T} 0", ())])

    assert outcomes == [Ticked.QUEUED]
    assert raw.hget(keys.periodic(queue), "n") == f"{T} 0".encode()
    store.close()


# -- any order of stale readers ----------------------------------------------------------------
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("tick"), st.integers(0, 2)),
        st.tuples(st.just("time"), st.integers(1, 300)),
        st.tuples(st.just("failover"), st.just(0)),
    ),
    max_size=40,
)


def test_whoever_reads_and_ticks_when_each_time_is_sent_once_and_no_mark_goes_back(
    make_bench: Callable[..., Bench], redis_url: str, raw: Any
) -> None:
    @settings(max_examples=40)
    @given(STEPS, st.sampled_from(["latest", "skip", "all"]))
    def walk_on(walk: list[tuple[str, int]], catch_up: Any) -> None:
        Walk(make_bench(), redis_url, raw, catch_up).go(walk)

    walk_on()


class Walk:
    """Several schedulers that read and tick one entry in any order, by a clock of the test's."""

    def __init__(self, bench: Bench, redis_url: str, raw: Any, catch_up: Any) -> None:
        self.bench, self.raw, self.home = bench, raw, bench.queue
        self.clock = FakeClock()
        settings = replace(QueueSettings.of(Config()), default_queue=self.home)
        links = Connections(parse_address(redis_url))
        self.store = InlinePeriodicStore(links, settings, InlineBroker(links, settings), self.clock)
        signature = Signature(name="a", routing_key=self.home, headers={})
        self.entry = Entry.of("task", "@every 60s", "n", [signature], catch_up=catch_up)
        self.seen: dict[int, Watermarks] = {}

    def go(self, walk: list[tuple[str, int]]) -> None:
        before, marks = "", [Watermark(0, 0)]
        for verb, number in walk:
            if verb == "read":
                self.seen[number] = self.store.read_watermarks(self.home)
            elif verb == "tick" and number in self.seen:
                self.move(self.seen[number])
            elif verb == "time":
                self.clock.advance(number)
            elif verb == "failover" and before:
                self.raw.hset(keys.periodic(self.home), "n", before)  # the last move is lost
                marks = [Watermark(0, 0)]
            now = self.store.read_watermarks(self.home).texts.get("n", "")
            marks.append(Watermark.of(now) or Watermark(0, 0))
            before = now if verb == "read" else before
        uuids = [json.loads(payload)["UUID"] for payload in self.bench.broker.pending(self.home)]
        self.store.close()
        assert len(uuids) == len(set(uuids))
        assert [mark.last_ms for mark in marks] == sorted(mark.last_ms for mark in marks)

    def move(self, found: Watermarks) -> None:
        text = found.texts.get("n", "")
        mark = Watermark.of(text)
        if mark is None:
            start = Watermark(self.entry.schedule.start(found.now_ms), 0)
            self.store.tick([Tick(self.home, "n", text, start.text, ())])
            return
        for step in steps(self.entry, mark.last_ms, found.now_ms):
            mark = Watermark(step.due_ms, step.due_ms if step.sends else mark.ran_ms)
            sent = self.messages(step.due_ms) if step.sends else []
            self.store.tick([Tick(self.home, "n", text, mark.text, sent)])
            text = mark.text

    def messages(self, due_ms: int) -> list[Message]:
        [one] = run_of(self.entry, self.home, due_ms).signatures
        pending = encode_state(TaskState(task_uuid=one.uuid, state="PENDING"))
        return [Message(one.uuid, self.home, encode_signature(one), pending)]
