"""
Behind sentinels: finding the master, and going on when another one takes over.

Replication is asynchronous: what a master acknowledged and had not sent on yet
is lost with it, whoever asks. So what is required to survive a kill is what was
replicated before (``WAIT`` says so) and what was sent to the new master; of
what was sent in between, only that callers meet no error of redis-py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import BrokerRefused, BrokerUnavailable, build
from machine.config import RedisConfig
from machine.connection import Connections, Limits
from machine.redis_url import parse
from machine.registry import Registry
from tests.integration import servers_tasks
from tests.integration.servers_sentinel import MASTER, Watched, watched

if TYPE_CHECKING:
    from machine.config import Config
    from machine.server import Server
    from tests.integration.conftest import Yard

ROOT = Path(__file__).resolve().parents[2]
SECRET, SENTINEL_SECRET = "of-the-servers", "of-the-sentinels"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Watched]:
    """Start a master, a replica and three sentinels of the test's own."""
    with watched(tmp_path, secret=SECRET, sentinel_password=SENTINEL_SECRET) as running:
        yield running


@pytest.fixture
def make_watched(
    shop: Watched, make_config: Callable[..., Config], delayed_key: str
) -> Callable[..., Config]:
    """Return a function that makes settings for what the sentinels watch."""

    def make(broker: str = "", **settings: Any) -> Config:
        terms = {"master_name": MASTER, "sentinel_password": SENTINEL_SECRET} | settings
        redis_config = RedisConfig(delayed_tasks_key=delayed_key, **terms)
        return make_config(broker=broker or shop.url, redis=redis_config)

    return make


@pytest.fixture
def caller(make_watched: Callable[..., Config]) -> Iterator[Server]:
    """Return a server to send by."""
    registry = Registry()
    registry.collect(servers_tasks.__name__)
    with build.server(make_watched(), registry) as made:
        yield made


@pytest.fixture
def worker(shop: Watched, caller: Server, tmp_path: Path) -> Iterator[Path]:
    """Start a worker process; return where its log is, and stop it in the end as one should."""
    log = tmp_path / "worker.log"
    settings = {
        "BROKER": shop.url,
        "REDIS_MASTER_NAME": MASTER,
        "REDIS_SENTINEL_PASSWORD": SENTINEL_SECRET,
        "REDIS_DELAYED_TASKS_KEY": caller.config.redis.delayed_tasks_key,
        "DEFAULT_QUEUE": caller.config.default_queue,
        "TASKS_MODULES": servers_tasks.__name__,
        "PYTHONPATH": str(ROOT),
        "WORKER_PROCESSES": "1",
        "WORKER_CONCURRENCY": "2",
        "WORKER_LEASE_S": "3",
        "WORKER_BLOCK_S": "0.3",
    }
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "worker/worker.py"],
            cwd=ROOT,
            env=os.environ | settings,
            stderr=out,
            start_new_session=True,
        )
    yield log
    started.terminate()
    try:
        status = started.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        pytest.fail(f"the worker did not stop:\n{log.read_text()}")
    assert status == 0


# -- finding the master ------------------------------------------------------------------------


def assert_it_works(yard: Yard) -> None:
    """Send, run and wait, in threads and on an event loop."""
    add = yard.task(lambda a, b: a + b, name="add")
    sent = add.send(1, 2)
    yard.run()

    async def on_a_loop() -> Any:
        async with yard.server:
            result = await add.asend(3, 4)
            await asyncio.to_thread(yard.run)
            return await result.aget(timeout=5)

    assert sent.get(timeout=5) == 3
    assert asyncio.run(on_a_loop()) == 7


def yard_of(config: Config, raw: redis.Redis, make_yard: Callable[..., Yard]) -> Yard:
    return make_yard(raw=raw, broker=config.broker, redis=config.redis)


def test_a_task_is_sent_and_finished_on_the_master_the_sentinels_name(
    shop: Watched, make_watched: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    with shop.client(shop.servers[0]) as raw:
        assert_it_works(yard_of(make_watched(), raw, make_yard))


def test_one_sentinel_alone_is_enough_and_may_be_the_only_one_named(
    shop: Watched, make_watched: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    url = f"redis://{SECRET}@127.0.0.1:{shop.ports[1]}"

    with shop.client(shop.servers[0]) as raw:
        assert_it_works(yard_of(make_watched(url), raw, make_yard))


def test_a_database_is_chosen_behind_sentinels_too(
    shop: Watched, make_watched: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    with shop.client(shop.servers[0]) as raw:
        raw.select(5)

        assert_it_works(yard_of(make_watched(f"{shop.url}/5"), raw, make_yard))


def test_dead_sentinels_are_passed_over_and_not_asked_first_again(
    shop: Watched, make_watched: Callable[..., Config]
) -> None:
    for sentinel in shop.sentinels[:2]:
        sentinel.kill()
        sentinel.wait()
    links = build.connections(make_watched(), shop.url)

    answer = links.execute([("PING",)])
    links.close()

    assert answer == [b"PONG"]
    assert links._sentinels[0] == ("127.0.0.1", shop.ports[2])


# -- what is refused ---------------------------------------------------------------------------


def refusal(config: Config) -> str:
    with build.server(config) as server, pytest.raises(BrokerRefused) as caught:
        server.pending_tasks()

    async def on_a_loop() -> None:
        async with build.server(config) as other:
            await other.result("task_somewhere").aget(timeout=5)

    with pytest.raises(BrokerRefused) as on_loop:
        asyncio.run(on_a_loop())
    assert str(on_loop.value) == str(caught.value)
    assert SENTINEL_SECRET not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_a_master_that_no_sentinel_knows_is_named(
    shop: Watched, make_watched: Callable[..., Config]
) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in shop.ports)

    assert refusal(make_watched(master_name="shpo")) == (
        f"The sentinels at {hosts} know no master 'shpo'. Check redis.master_name."
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("wrong", "invalid username-password pair or user is disabled"),
        ("", "Authentication required"),
    ],
)
def test_a_wrong_password_for_the_sentinels_is_told_from_one_for_the_servers(
    shop: Watched, make_watched: Callable[..., Config], given: str, why: str
) -> None:
    assert refusal(make_watched(sentinel_password=given)) == (
        f"Redis at 127.0.0.1:{shop.ports[2]} refused the login: {why}. "
        "Check user and password. For a sentinel it is redis.sentinel_password."
    )


def test_a_wrong_password_for_the_servers_is_told_as_anywhere(
    shop: Watched, make_watched: Callable[..., Config]
) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in shop.ports)

    text = refusal(make_watched(shop.url.replace(SECRET, "wrong")))

    assert text == (
        f"Redis at {hosts} refused the login: invalid username-password pair or user is disabled. "
        "Check user and password."
    )


def test_no_sentinel_at_all_is_no_answer(shop: Watched) -> None:
    shop.stop()
    links = Connections(
        parse(shop.url, master_name=MASTER), limits=Limits(retry_s=0.1), master_name=MASTER
    )

    with pytest.raises(
        BrokerUnavailable,
        match=rf"^Redis at 127\.0\.0\.1:{shop.ports[2]} did not answer: .*refused\.$",
    ):
        links.execute([("PING",)])


# -- another master ----------------------------------------------------------------------------


def is_replicated(shop: Watched) -> bool:
    """Say whether the replica has everything that the first master was sent until now."""
    raw = shop.client(shop.servers[0])
    raw.set("mark", 1)
    return raw.wait(1, 10_000) == 1


def test_after_a_kill_the_tasks_that_were_replicated_end_and_sending_goes_on(
    shop: Watched, caller: Server, worker: Path, wait_until: Callable[..., object]
) -> None:
    add = caller.registry.get("add_slowly")
    first = [add.send(number, 0) for number in range(100)]
    wait_until(lambda: first[5].touch(), 20, "the worker has begun")
    assert is_replicated(shop)
    waited: list[Any] = []
    waiting = threading.Thread(target=lambda: waited.append(first[-1].get(timeout=30)))
    waiting.start()

    shop.servers[0].kill()
    meanwhile = add.send(1, 1)
    values = [result.get(timeout=30) for result in first]
    waiting.join(30)
    assert shop.is_master(shop.servers[1])
    second = [add.send(number, 1) for number in range(20)]

    assert values == list(range(100))
    assert waited == [99]
    assert meanwhile.get(timeout=30) == 2
    assert [result.get(timeout=30) for result in second] == [number + 1 for number in range(20)]
    assert "Traceback" not in worker.read_text()


def test_a_caller_on_an_event_loop_goes_on_after_a_kill(
    shop: Watched, caller: Server, worker: Path, wait_until: Callable[..., object]
) -> None:
    add = caller.registry.get("add_slowly")

    async def work() -> tuple[list[int], list[int]]:
        async with caller:
            first = [await add.asend(number, 0) for number in range(50)]
            waits = [asyncio.create_task(result.aget(timeout=30)) for result in first]
            await waits[5]
            assert await asyncio.to_thread(is_replicated, shop)
            await asyncio.to_thread(shop.servers[0].kill)
            second = [await add.asend(number, 1) for number in range(20)]
            later = [await result.aget(timeout=30) for result in second]
            return await asyncio.gather(*waits), later

    assert asyncio.run(work()) == (list(range(50)), [number + 1 for number in range(20)])
    assert "Traceback" not in worker.read_text()


def test_an_ordered_change_of_masters_is_not_noticed_by_callers(
    shop: Watched, caller: Server, worker: Path, wait_until: Callable[..., object]
) -> None:
    add = caller.registry.get("add")
    over = threading.Event()
    failed: list[BaseException] = []
    sent: list[Any] = []

    def send_on() -> None:
        try:
            while not over.is_set():
                sent.append(add.send(len(sent), 0))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failed.append(error)

    senders = [threading.Thread(target=send_on) for _ in range(3)]
    for sender in senders:
        sender.start()
    wait_until(lambda: len(sent) > 50, 20, "callers send")
    shop.sentinel(0).sentinel_failover(MASTER)
    wait_until(lambda: shop.is_master(shop.servers[1]), 20, "the sentinels agree")
    wait_until(lambda: role_of(shop, 0) == "slave", 20, "the old master follows the new one")
    count = len(sent)
    wait_until(lambda: len(sent) > count + 100, 20, "callers send to the new master")
    over.set()
    for sender in senders:
        sender.join(30)

    assert failed == []
    # Each sender may have had one send under way; all later ones began after the change.
    later = sent[count + len(senders) :]
    assert all(isinstance(result.get(timeout=30), int) for result in later)
    assert "Traceback" not in worker.read_text()


def role_of(shop: Watched, index: int) -> Any:
    return shop.client(shop.servers[index]).info("replication")["role"]
