"""Waiting for results while everything around it goes wrong, in threads and on event loops."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from machine.config.redis_url import parse_address
from machine.embedded import EmbeddedServer
from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    MachineError,
    ResultNotFound,
    ResultTimeout,
)
from machine.redis.aio import links_of
from machine.redis.awatcher import watcher_of
from machine.redis.backend import RedisBackend
from machine.redis.connections import Connections, Limits
from tests.contract.conftest import Bench, redis_bench
from tests.integration.servers_faults import FaultyServer

KEEPS = ("--appendonly", "yes", "--appendfsync", "always")
MANY = 20


class Post:
    """A server, tasks on it that end when the test says so, and waiting for them."""

    def __init__(self, url: str, direct: str, queue: str, **limits: float) -> None:
        self.bench: Bench = redis_bench(queue, direct)
        self.connections = Connections(parse_address(url), limits=Limits(**limits))
        self.backend = RedisBackend(self.connections, results_expire_s=3600)
        self.threads = ThreadPoolExecutor(4 * MANY)
        self.raw = redis.Redis.from_url(direct)

    def end(self, *names: str, state: str = "SUCCESS") -> None:
        for name in names:
            self.bench.backend.record(self.bench.state(self.bench.uuid(name), state))

    def wait(self, *names: str, timeout_s: float | None = 20.0, missing_ok: bool = False) -> set:
        """Return the names that ended."""
        uuids = [self.bench.uuid(name) for name in names]
        found = list(self.backend.completed(uuids, timeout_s, missing_ok=missing_ok))
        assert len(found) == len(set(names))
        return {self.name_of(state.task_uuid) for state in found}

    async def await_(self, *names: str, timeout_s: float | None = 20.0, **how: bool) -> set:
        """Do what `wait` does, on an event loop."""
        uuids = [self.bench.uuid(name) for name in names]
        states = self.backend.acompleted(uuids, timeout_s, **how)
        return {self.name_of(state.task_uuid) async for state in states}

    def waiting(self, *names: str, **how: Any) -> Future[set]:
        """Wait in a thread."""
        return self.threads.submit(self.wait, *names, **how)

    def on_loop(self, *names: str, **how: Any) -> Future[set]:
        """Wait on an event loop of its own, in a thread."""
        return self.threads.submit(lambda: asyncio.run(self.await_(*names, **how)))

    def name_of(self, uuid: str) -> str:
        return uuid.removeprefix(self.bench.uuid(""))

    def reads(self) -> int:
        """Return how often anybody read states."""
        stats = self.raw.info("commandstats")
        return int(stats.get("cmdstat_mget", {"calls": 0})["calls"])

    def trackers(self) -> list[dict[str, Any]]:
        """Return the connections that are told of changes."""
        return [client for client in self.raw.client_list() if "t" in client["flags"]]

    def close(self) -> None:
        self.threads.shutdown()
        self.backend.close()
        self.bench.close()
        self.raw.close()


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """Start a server of the test's own, which keeps all it acknowledged."""
    with EmbeddedServer(args=KEEPS) as running:
        yield running


@pytest.fixture
def make_post(own: EmbeddedServer, queue: str) -> Iterator[Callable[..., Post]]:
    """Return a function that makes a post which waits through this URL."""
    posts: list[Post] = []

    def make(url: str, **limits: float) -> Post:
        posts.append(Post(url, own.url, queue, **limits))
        return posts[-1]

    yield make
    for post in posts:
        post.close()


@pytest.fixture
def post(make_post: Callable[..., Post], own: EmbeddedServer) -> Post:
    """Return a post on the test's own server."""
    return make_post(own.url)


@pytest.fixture
def faulty(own: EmbeddedServer) -> Iterator[FaultyServer]:
    """Return a proxy before the test's own server."""
    with FaultyServer(own.port) as running:
        yield running


@pytest.fixture
def watched(wait_until: Callable[..., object]) -> Callable[[Post, int], None]:
    """Return a function that waits until so many keys are watched, each connection's counted."""

    def wait(post: Post, count: int) -> None:
        def is_enough() -> bool:
            return bool(post.raw.info("stats")["tracking_total_items"] >= count)

        wait_until(is_enough, 10, f"{count} keys are watched")

    return wait


@pytest.fixture
def new_tracker(wait_until: Callable[..., object]) -> Callable[[Post, int], int]:
    """Return a function that waits for a connection that has read, and returns its id."""

    def wait(post: Post, old: int) -> int:
        def found() -> list[int]:
            trackers = [one for one in post.trackers() if one["cmd"] == "mget"]
            return [int(one["id"]) for one in trackers if int(one["id"]) > old]

        wait_until(found, 10, "there is a new connection")
        return found()[0]

    return wait


both_ways = pytest.mark.parametrize("how", ["waiting", "on_loop"], ids=["threads", "loops"])


# -- who leads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]])
def test_each_gets_its_own_whenever_the_leaders_result_comes(
    post: Post, watched: Callable[..., None], order: list[str]
) -> None:
    post.bench.send("a", "b", "c")
    waiting = {}
    for count, name in enumerate("abc", 1):  # so "a" leads
        waiting[name] = post.waiting(name)
        watched(post, count)

    for name in order:
        post.end(name)
        assert waiting[name].result(10) == {name}

    assert len(post.trackers()) == 1


def test_a_leader_whose_time_is_up_hands_on(post: Post, watched: Callable[..., None]) -> None:
    post.bench.send("a", "b", "c")
    leader = post.waiting("a", timeout_s=0.3)
    watched(post, 1)
    others = [post.waiting("b"), post.waiting("b", "c")]

    with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
        leader.result(10)
    post.end("b", "c")

    assert [other.result(10) for other in others] == [{"b"}, {"b", "c"}]


def test_a_leader_that_stops_iterating_hands_on(post: Post, watched: Callable[..., None]) -> None:
    post.bench.send("a", "b")
    leading = post.backend.completed([post.bench.uuid("a"), post.bench.uuid("b")], 20)
    post.end("a")
    first = next(iter(leading))

    follower = post.waiting("b")
    watched(post, 2)
    post.end("b")

    assert follower.result(10) == {"b"}
    assert [first.task_uuid, *(state.task_uuid for state in leading)] == [
        post.bench.uuid("a"),
        post.bench.uuid("b"),
    ]


@both_ways
def test_no_state_is_missed_by_whoever_waits_for_many_at_once(post: Post, how: str) -> None:
    names = [f"n{number}" for number in range(40)]
    post.bench.send(*names)
    chance = random.Random(4)  # noqa: S311 - a test's own dice
    choices = [chance.sample(names, 15) for _ in range(MANY)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        waiting = [getattr(post, how)(*choice) for choice in choices]
        for name in chance.sample(names, len(names)):
            post.end(name)
        found = [one.result(20) for one in waiting]
    finally:
        sys.setswitchinterval(interval)

    assert found == [set(choice) for choice in choices]


# -- the connection goes -----------------------------------------------------------------------


@both_ways
def test_a_restart_of_the_server_under_many_waits(
    post: Post, own: EmbeddedServer, watched: Callable[..., None], how: str
) -> None:
    names = [f"n{number}" for number in range(MANY)]
    post.bench.send(*names)
    waiting = [getattr(post, how)(name) for name in names]
    watched(post, 5)

    own.kill()
    own.restart()
    post.end(*names)

    assert [one.result(20) for one in waiting] == [{name} for name in names]


def test_a_restart_under_many_waits_of_one_loop(
    post: Post, own: EmbeddedServer, watched: Callable[..., None]
) -> None:
    names = [f"n{number}" for number in range(MANY)]
    post.bench.send(*names)

    async def work() -> list[set]:
        waits = [asyncio.create_task(post.await_(name)) for name in names]
        await asyncio.to_thread(watched, post, 1)
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.restart)
        await asyncio.to_thread(post.end, *names)
        return await asyncio.gather(*waits)

    assert asyncio.run(work()) == [{name} for name in names]


@both_ways
def test_a_wait_outlives_one_lost_connection_after_another(
    make_post: Callable[..., Post], own: EmbeddedServer, new_tracker: Callable[..., int], how: str
) -> None:
    # Patience is for one absence: each loss that was mended must not count towards the next.
    post = make_post(own.url, retry_s=0.5)
    post.bench.send("a")
    waiting = getattr(post, how)("a")
    tracker = 0
    for _ in range(8):
        tracker = new_tracker(post, tracker)
        post.raw.client_kill_filter(_id=tracker)

    post.end("a")

    assert waiting.result(20) == {"a"}


@both_ways
def test_what_ends_while_the_connection_is_away_is_not_missed(
    post: Post, watched: Callable[..., None], how: str
) -> None:
    post.bench.send("a")
    waiting = getattr(post, how)("a")
    watched(post, 1)
    [tracker] = post.trackers()

    post.raw.execute_command("CLIENT", "PAUSE", 100, "WRITE")
    post.raw.client_kill_filter(_id=tracker["id"])
    post.end("a")

    assert waiting.result(20) == {"a"}


def test_closing_under_those_who_wait_only_makes_them_connect_again(
    post: Post, watched: Callable[..., None], new_tracker: Callable[..., int]
) -> None:
    post.bench.send("a", "b")
    waiting = [post.waiting("a"), post.waiting("b")]
    watched(post, 2)

    tracker = 0
    for _ in range(5):
        tracker = new_tracker(post, tracker)
        post.backend.close()
    post.end("a", "b")

    assert [one.result(10) for one in waiting] == [{"a"}, {"b"}]


def test_closing_a_loops_connection_ends_its_waits(
    post: Post, watched: Callable[..., None]
) -> None:
    post.bench.send("a")

    async def work() -> None:
        waiting = asyncio.create_task(post.await_("a", timeout_s=None))
        await asyncio.to_thread(watched, post, 1)
        await post.backend.aclose()
        await waiting

    with pytest.raises(BrokerUnavailable) as caught:
        asyncio.run(work())

    where = post.connections.where
    assert str(caught.value) == f"The connection to Redis at {where} was closed."


@both_ways
def test_a_server_that_hangs_is_left_and_found_again(
    make_post: Callable[..., Post], own: EmbeddedServer, how: str
) -> None:
    post = make_post(own.url, answer_s=0.2)
    post.bench.send("a", "b")
    getattr(post, how)("a", timeout_s=0).exception(10)  # connected now, in threads
    os.kill(own.pid, signal.SIGSTOP)
    try:
        waiting = getattr(post, how)("b")
        with pytest.raises((BrokerUnavailable, ResultTimeout)):
            getattr(post, how)("a", timeout_s=0.3).result(10)
    finally:
        os.kill(own.pid, signal.SIGCONT)

    post.end("b")

    assert waiting.result(20) == {"b"}


# -- nobody is there ---------------------------------------------------------------------------


@both_ways
def test_a_server_that_is_away_is_told_when_the_time_is_up(
    make_post: Callable[..., Post], own: EmbeddedServer, how: str
) -> None:
    post = make_post(own.url)
    own.kill()

    with pytest.raises(
        BrokerUnavailable, match=rf"^Redis at 127\.0\.0\.1:{own.port} did not answer: "
    ):
        getattr(post, how)("a", timeout_s=0.1).result(4)

    own.restart()


@both_ways
def test_whoever_has_looked_once_gets_a_timeout_though_the_server_went_away(
    post: Post, own: EmbeddedServer, watched: Callable[..., None], how: str
) -> None:
    post.bench.send("a")
    waiting = getattr(post, how)("a", timeout_s=1.0)
    watched(post, 1)
    own.kill()

    with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
        waiting.result(10)

    own.restart()


def test_a_server_that_stays_away_ends_all_waits_after_one_patience(
    make_post: Callable[..., Post], own: EmbeddedServer, watched: Callable[..., None]
) -> None:
    # One patience for all: each waiting through its own in turn would take minutes.
    post = make_post(own.url, retry_s=1.0)
    names = [f"n{number}" for number in range(2 * MANY)]
    post.bench.send(*names)
    waiting = [post.waiting(name, timeout_s=60) for name in names]
    watched(post, len(names))
    own.kill()

    errors = [one.exception(15) for one in waiting]

    assert {type(error) for error in errors} == {BrokerUnavailable}
    own.restart()


def test_a_server_that_stays_away_ends_all_waits_of_a_loop(
    make_post: Callable[..., Post], own: EmbeddedServer, watched: Callable[..., None]
) -> None:
    post = make_post(own.url, retry_s=0.3)
    names = [f"n{number}" for number in range(MANY)]
    post.bench.send(*names)

    async def work() -> list[Any]:
        waits = [asyncio.create_task(post.await_(name, timeout_s=None)) for name in names]
        await asyncio.to_thread(watched, post, 1)
        await asyncio.to_thread(own.kill)
        return await asyncio.gather(*waits, return_exceptions=True)

    errors = asyncio.run(work())

    assert {type(error) for error in errors} == {BrokerUnavailable}
    own.restart()


# -- the server refuses ------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("refusal", ["an ACL", "an old server"])
def test_without_tracking_somebody_looks_again(
    own: EmbeddedServer,
    make_post: Callable[..., Post],
    faulty: FaultyServer,
    wait_until: Callable[..., object],
    how: str,
    refusal: str,
) -> None:
    url = faulty.url
    if refusal == "an ACL":
        with redis.Redis.from_url(own.url) as admin:
            rights = ("+@all", "-client|tracking")
            admin.execute_command("ACL", "SETUSER", "blind", "on", ">word", "~*", *rights)
        url = f"redis://blind:word@127.0.0.1:{own.port}"
    else:
        faulty.refuse("CLIENT", *["ERR Unknown subcommand or wrong number of arguments"] * 9)
    post = make_post(url)
    post.bench.send("a", "b")
    waiting = [getattr(post, how)("a"), getattr(post, how)("a", "b")]
    waiting.append(getattr(post, how)("missing", missing_ok=True))
    wait_until(lambda: post.reads() >= 8, 10, "somebody has looked again")

    post.end("a")
    first = waiting[0].result(10)
    post.end("b", "missing")

    assert first == {"a"}
    assert [one.result(10) for one in waiting[1:]] == [{"a", "b"}, {"missing"}]
    assert post.trackers() == []


@both_ways
def test_a_server_that_is_busy_just_now_is_asked_to_track_again(
    make_post: Callable[..., Post], faulty: FaultyServer, watched: Callable[..., None], how: str
) -> None:
    post = make_post(faulty.url)
    post.bench.send("a")
    faulty.refuse("CLIENT", "BUSY Redis is busy running a script.")
    waiting = getattr(post, how)("a")
    watched(post, 1)

    assert len(post.trackers()) == 1
    post.end("a")
    assert waiting.result(10) == {"a"}


@both_ways
@pytest.mark.parametrize(
    "error", ["LOADING Redis is loading the dataset in memory", "MASTERDOWN Link is down."]
)
def test_a_read_that_is_refused_for_now_is_repeated(
    make_post: Callable[..., Post], faulty: FaultyServer, how: str, error: str
) -> None:
    post = make_post(faulty.url)
    post.bench.send("a")
    post.end("a")
    faulty.refuse("MGET", error, error)

    assert getattr(post, how)("a").result(10) == {"a"}


def test_a_read_that_is_refused_for_good_ends_those_who_asked_and_no_others(
    make_post: Callable[..., Post], faulty: FaultyServer, watched: Callable[..., None]
) -> None:
    post = make_post(faulty.url)
    post.bench.send("a", "b", "c")
    patient = post.waiting("a")
    watched(post, 1)
    faulty.refuse("MGET", "NOPERM User x has no permissions.")

    refused = post.waiting("b").exception(10)
    # Answers are told apart by their order alone: it must still be right.
    later = post.waiting("c")
    watched(post, 2)
    post.end("c", "b", "a")

    assert isinstance(refused, BrokerRefused)
    assert str(refused).endswith("has no permissions. Grant it to this user's ACL.")
    assert (later.result(10), patient.result(10)) == ({"c"}, {"a"})
    assert len(post.trackers()) == 1


def test_a_read_that_is_refused_for_good_ends_only_that_wait_on_a_loop(
    make_post: Callable[..., Post], faulty: FaultyServer, watched: Callable[..., None]
) -> None:
    post = make_post(faulty.url)
    post.bench.send("a", "b", "c")

    async def work() -> tuple[set, set]:
        patient = asyncio.create_task(post.await_("a"))
        await asyncio.to_thread(watched, post, 1)
        faulty.refuse("MGET", "NOPERM User x has no permissions.")
        with pytest.raises(BrokerRefused, match=r"Grant it to this user's ACL\.$"):
            await post.await_("b")
        later = asyncio.create_task(post.await_("c"))
        await asyncio.to_thread(watched, post, 2)
        await asyncio.to_thread(post.end, "c", "b", "a")
        return await later, await patient

    assert asyncio.run(work()) == ({"c"}, {"a"})


@both_ways
def test_a_login_that_ends_ends_all_waits(
    own: EmbeddedServer, make_post: Callable[..., Post], watched: Callable[..., None], how: str
) -> None:
    with redis.Redis.from_url(own.url) as admin:
        admin.execute_command("ACL", "SETUSER", "guest", "on", ">word", "~*", "+@all")
        post = make_post(f"redis://guest:word@127.0.0.1:{own.port}")
        post.bench.send("a", "b")
        waiting = [getattr(post, how)(name) for name in "ab"]
        watched(post, 2)
        admin.execute_command("ACL", "SETUSER", "guest", "off")
        admin.client_kill_filter(_type="normal", skipme=True)

        errors = [one.exception(10) for one in waiting]
        admin.execute_command("ACL", "SETUSER", "guest", "on")

    text = (
        f"Redis at 127.0.0.1:{own.port} refused the login: invalid username-password pair or "
        "user is disabled. Check user and password."
    )
    assert [str(error) for error in errors] == [text] * 2


# -- the state goes ----------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("loss", ["flushall", "delete", "expire"])
def test_a_state_that_vanishes_ends_its_wait(
    post: Post, watched: Callable[..., None], how: str, loss: str
) -> None:
    post.bench.send("a")
    uuid = post.bench.uuid("a")
    waiting = getattr(post, how)("a")
    watched(post, 1)

    {
        "flushall": post.raw.flushall,
        "delete": lambda: post.raw.delete(uuid),
        "expire": lambda: post.raw.pexpire(uuid, 1),
    }[loss]()

    with pytest.raises(ResultNotFound) as caught:
        waiting.result(10)
    assert str(caught.value) == (
        f"No state is kept under '{uuid}'. "
        "It was never sent, or it is older than results_expire_in."
    )


@both_ways
def test_a_flush_does_not_end_a_wait_for_what_is_still_to_come(
    post: Post, watched: Callable[..., None], wait_until: Callable[..., object], how: str
) -> None:
    waiting = getattr(post, how)("a", missing_ok=True)
    watched(post, 1)
    before = post.reads()
    post.raw.flushall()
    wait_until(lambda: post.reads() > before, 10, "the key was read again")

    post.end("a")

    assert waiting.result(10) == {"a"}


@both_ways
def test_a_state_that_cannot_be_read_ends_only_the_waits_for_it(
    post: Post, watched: Callable[..., None], how: str
) -> None:
    post.bench.send("a", "b")
    waiting = [getattr(post, how)("a"), getattr(post, how)("b")]
    watched(post, 2)

    post.raw.set(post.bench.uuid("a"), b"{no state")
    error = waiting[0].exception(10)
    post.end("b")

    assert isinstance(error, MachineError)
    assert waiting[1].result(10) == {"b"}


# -- quiet, and nothing left -------------------------------------------------------------------


@both_ways
def test_idle_waits_cost_the_server_one_read_each(post: Post, how: str) -> None:
    names = [f"n{number}" for number in range(MANY)]
    post.bench.send(*names)
    before = post.raw.info("stats")["total_commands_processed"]

    waiting = [getattr(post, how)(name, timeout_s=0.5) for name in names]
    errors = [one.exception(10) for one in waiting]

    spent = post.raw.info("stats")["total_commands_processed"] - before
    assert {type(error) for error in errors} == {ResultTimeout}
    connecting = 2 if how == "waiting" else 2 * MANY  # HELLO and CLIENT TRACKING
    assert spent <= connecting + MANY + 1 + 1


@both_ways
def test_a_timeout_has_machinerys_words(post: Post, how: str) -> None:
    post.bench.send("a")

    for timeout_s in (0, 0.05):
        with pytest.raises(ResultTimeout, match=r"^Timeout reached$"):
            getattr(post, how)("a", timeout_s=timeout_s).result(10)


def test_cancelled_waits_leave_nothing_behind(post: Post, watched: Callable[..., None]) -> None:
    names = [f"n{number}" for number in range(MANY)]
    post.bench.send(*names)

    async def work() -> tuple[list[str], set[str], list[str]]:
        waits = [asyncio.create_task(post.await_(name), name="wait") for name in names]
        await asyncio.to_thread(watched, post, 1)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        watcher = watcher_of(post.connections)
        left = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
        wanted = watcher._waiters.wanted_keys()
        await asyncio.to_thread(post.end, "n3")
        still = await post.await_("n3")
        await post.backend.aclose()
        return wanted, still, left

    wanted, still, left = asyncio.run(work())

    assert wanted == []
    assert still == {"n3"}
    assert not [name for name in left if "completed" in name or "await_" in name]
    assert post.trackers() == []


def test_a_wait_that_is_cancelled_while_it_connects_leaves_nothing_behind(
    post: Post, wait_until: Callable[..., object]
) -> None:
    post.bench.send("a")
    before = len(post.raw.client_list())

    async def work() -> None:
        for turns in range(60):
            reading = asyncio.create_task(post.backend.aread([post.bench.uuid("a")]))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert await post.await_("b", missing_ok=True, timeout_s=0.01) is None

    with pytest.raises(ResultTimeout):
        asyncio.run(work())

    wait_until(lambda: len(post.raw.client_list()) <= before, 5, "connections to close")


def test_one_event_loop_after_another_leaves_no_connection_and_no_loop(
    post: Post, wait_until: Callable[..., object]
) -> None:
    post.bench.send("a")
    post.end("a")
    before = len(post.raw.client_list())

    async def work() -> set:
        await post.backend.aread([post.bench.uuid("a")])
        return await post.await_("a")

    found = [asyncio.run(work()) for _ in range(10)]

    assert found == [{"a"}] * 10
    assert len(post.connections.loops) == 1
    wait_until(lambda: len(post.raw.client_list()) <= before, 5, "connections to close")


def test_two_event_loops_at_once_have_connections_of_their_own(
    post: Post, watched: Callable[..., None]
) -> None:
    post.bench.send("a")
    waiting = [post.on_loop("a"), post.on_loop("a")]
    watched(post, 2)
    trackers = len(post.trackers())

    post.end("a")

    assert trackers == 2
    assert [one.result(10) for one in waiting] == [{"a"}] * 2


def test_links_of_a_loop_are_used_again(post: Post) -> None:
    async def work() -> int:
        for _ in range(10):
            await post.backend.aread([post.bench.uuid("a")])
        return len(links_of(post.connections)._idle)

    assert asyncio.run(work()) == 1
