"""Behind sentinels: finding the master, and each way of not finding it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import BrokerRefused, BrokerUnavailable, build
from machine.config import RedisConfig
from machine.config.redis_url import parse_address
from machine.redis.connections import Connections, Limits
from tests.integration.servers_sentinel import MASTER, Watched, watched

if TYPE_CHECKING:
    from machine.config import Config
    from tests.integration.conftest import Yard

SECRET, SENTINEL_SECRET = "of-the-servers", "of-the-sentinels"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start a master, a replica and three sentinels."""
    folder = tmp_path_factory.mktemp("shop")
    with watched(folder, secret=SECRET, sentinel_password=SENTINEL_SECRET) as running:
        yield running


@pytest.fixture
def make_watched(
    shop: Watched, make_config: Callable[..., Config], delayed_key: str
) -> Callable[..., Config]:
    """Return a function that makes settings for what the sentinels watch."""

    def make(broker: str = "", **terms: str) -> Config:
        redis_config = RedisConfig(delayed_tasks_key=delayed_key, **shop.terms(**terms))
        return make_config(broker=broker or shop.url, redis=redis_config)

    return make


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
    shop: Watched, make_watched: Callable[..., Config], dead_ports: list[int]
) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in [*dead_ports, shop.ports[2]])
    url = f"redis://{SECRET}@{hosts}"
    links = build.connections(make_watched(url), url)

    answer = links.execute([("PING",)])
    links.close()

    assert answer == [b"PONG"]
    assert links._sentinels[0] == ("127.0.0.1", shop.ports[2])


@pytest.fixture
def dead_ports() -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


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


def test_no_sentinel_at_all_is_no_answer(dead_ports: list[int]) -> None:
    url = ",".join(f"127.0.0.1:{port}" for port in dead_ports)
    address = parse_address(f"redis://{url}", master_name=MASTER)
    links = Connections(address, limits=Limits(retry_s=0.1), master_name=MASTER)

    with pytest.raises(BrokerUnavailable) as caught:
        links.execute([("PING",)])

    where = rf"127\.0\.0\.1:{dead_ports[1]}"
    assert re.search(
        rf"^Redis at {where} did not answer: Error \d+ connecting to {where}. .+ refused\.$",
        str(caught.value),
    )
