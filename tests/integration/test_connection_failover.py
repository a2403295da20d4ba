"""
Behind sentinels when another master takes over: callers and workers go on.

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

from machine import build
from machine.config import RedisConfig
from machine.registry import Registry
from tests.integration import servers_tasks
from tests.integration.servers_sentinel import MASTER, Watched, watched

if TYPE_CHECKING:
    from machine.config import Config
    from machine.server import Server

# A sentinel that gets no processor for two seconds takes no decision for half a minute.
pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Watched]:
    """Start a master, a replica and three sentinels of the test's own."""
    with watched(
        tmp_path, secret="of-the-servers", sentinel_password="of-the-sentinels"
    ) as running:
        yield running


@pytest.fixture
def caller(shop: Watched, make_config: Callable[..., Config], delayed_key: str) -> Iterator[Server]:
    """Return a server to send by."""
    registry = Registry()
    registry.collect(servers_tasks.__name__)
    terms = RedisConfig(delayed_tasks_key=delayed_key, **shop.terms())
    with build.server(make_config(broker=shop.url, redis=terms), registry) as made:
        yield made


@pytest.fixture
def worker(shop: Watched, caller: Server, tmp_path: Path) -> Iterator[Path]:
    """Start a worker process; return where its log is, and stop it in the end as one should."""
    log = tmp_path / "worker.log"
    settings = {
        "BROKER": shop.url,
        "REDIS_MASTER_NAME": MASTER,
        "REDIS_SENTINEL_PASSWORD": shop.sentinel_password,
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
    wait_until(first[5].touch, 20, "the worker has begun")
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
    shop: Watched, caller: Server, worker: Path
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
