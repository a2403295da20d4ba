"""Machinery's lock for periodic tasks: Go's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from machine.config.redis_url import parse_address
from machine.ports.periodic import Lock
from machine.redis.connections import Connections
from machine.redis.lock import RedisLock
from machine.runtime.supervisor.scheduler import TRIES, lock_name, lock_with_retries

#: By the tests' own clock; far enough ahead that Redis lets no key of theirs lapse meanwhile.
NOW = 1_900_000_000 * 10**9
MINUTE = 60 * 10**9


@pytest.fixture
def lock(redis_url: str) -> Iterator[Lock]:
    """Return a lock on each kind of server."""
    made = RedisLock(Connections(parse_address(redis_url)))
    yield made
    made.close()


@pytest.fixture
def key(queue: str) -> str:
    """Return the lock of this test's own program."""
    return lock_name(queue, "cleanup", "@every 2s")


def test_the_name_has_nothing_between_its_parts() -> None:
    assert lock_name("h", "pname", "@every 2s") == "machinery_lock_hpname@every 2s"


def test_a_free_lock_is_taken_once(lock: Lock, key: str) -> None:
    assert lock.lock(key, NOW + MINUTE, NOW)
    assert not lock.lock(key, NOW + MINUTE, NOW)
    assert not lock.lock(key, NOW + 2 * MINUTE, NOW + MINUTE)


def test_a_lock_that_is_held_is_not_had_by_trying_four_times(lock: Lock, key: str) -> None:
    lock.lock(key, NOW + MINUTE, NOW)

    assert not lock_with_retries(lock, key, NOW + MINUTE, NOW)


def test_a_lock_that_has_lapsed_by_its_value_is_taken_over_once(lock: Lock, key: str) -> None:
    lock.lock(key, NOW + MINUTE, NOW)
    later = NOW + MINUTE + 1

    assert lock.lock(key, later + MINUTE, later)
    assert not lock.lock(key, later + MINUTE, later)


def test_two_schedules_have_two_locks(lock: Lock, queue: str) -> None:
    assert lock.lock(lock_name(queue, "a", "@daily"), NOW + MINUTE, NOW)
    assert lock.lock(lock_name(queue, "b", "@daily"), NOW + MINUTE, NOW)


def test_a_lock_for_a_time_that_is_over_is_nobodys(lock: Lock, key: str) -> None:
    assert not lock.lock(key, NOW - 1, NOW)
    assert lock.lock(key, NOW + MINUTE, NOW)


def test_four_tries_are_made() -> None:
    class Slow:
        def __init__(self, tries: int) -> None:
            self.left = tries

        def lock(self, _key: str, _until_ns: int, _now_ns: int) -> bool:
            self.left -= 1
            return self.left == 0

        def close(self) -> None:
            """Do nothing."""

    assert TRIES == 4
    assert lock_with_retries(Slow(4), "k", NOW, NOW)
    assert not lock_with_retries(Slow(5), "k", NOW, NOW)


# -- on the wire -------------------------------------------------------------------------------
@pytest.fixture
def on_redis(redis_url: str) -> Iterator[RedisLock]:
    made = RedisLock(Connections(parse_address(redis_url)))
    yield made
    made.close()


def test_the_value_is_the_moment_it_lapses_and_so_is_the_ttl(
    on_redis: RedisLock, key: str, raw: Any
) -> None:
    on_redis.lock(key, NOW + MINUTE - 1, NOW)

    assert raw.get(key) == str(NOW + MINUTE - 1).encode()
    assert raw.pexpiretime(key) == (NOW + MINUTE - 1) // 10**6


def test_a_lock_taken_over_lapses_too(on_redis: RedisLock, key: str, raw: Any) -> None:
    raw.set(key, NOW - 1)

    assert on_redis.lock(key, NOW + MINUTE, NOW)

    assert raw.get(key) == str(NOW + MINUTE).encode()
    assert raw.pexpiretime(key) == (NOW + MINUTE) // 10**6


@pytest.mark.parametrize("value", ["0", "junk", ""])
def test_a_value_that_go_would_not_take_over_is_left_alone(
    value: str, on_redis: RedisLock, key: str, raw: Any
) -> None:
    raw.set(key, value, ex=60)

    assert not on_redis.lock(key, NOW + MINUTE, NOW)
    assert raw.get(key) == value.encode()


def test_a_database_in_the_url_counts(redis_url: str, key: str, raw: Any) -> None:
    in_two = f"{redis_url.rpartition('/')[0]}/2"
    lock = RedisLock(Connections(parse_address(in_two)))

    assert lock.lock(key, NOW + MINUTE, NOW)
    assert not lock.lock(key, NOW + MINUTE, NOW)

    assert raw.exists(key) == 0
    lock.close()
    raw.execute_command("SELECT", 2)
    assert raw.delete(key) == 1
