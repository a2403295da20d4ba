"""
What every test may ask for: a server, names of its own, a clock, patience.

There is one real server for the whole run, or one for each of xdist's processes. Tests share
it and never flush it: each has its own queue name, and what it leaves behind is looked at by
`no_leaked_keys` and then deleted by name.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import settings

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.embedded import EmbeddedServer, NoServer, shared_url
from machine.redis.backend import RedisBackend
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections
from machine.redis.roles import QueueSettings
from machine.sending.messages import MessageRules
from machine.wire.limits import DELAYED_DEFAULT

T = TypeVar("T")

# No deadline: how long an example takes is the machine's business, not the test's.
settings.register_profile("werk", deadline=None, print_blob=True)
settings.load_profile("werk")

#: Kinds of key that stay without a TTL by design (docs/redis.md): fence, dead letters, marks.
PERMANENT = frozenset({"seq", "dlq", "periodic"})
#: Kinds that hold work; empty, and so gone, once a test has finished what it started.
WORK = frozenset(
    {"queue", "delayed", "hop", "workers", "w", "redel", "parked", "chords", "canceled"}
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses the server."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """Make a report that can be sent to xdist's main process: half a character cannot be."""
    return sendable((yield))


def sendable(value: Any) -> Any:
    """Return a value in whose texts surrogates, which tests print on purpose, are escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(sendable, value))
    return value


def message_rules(**changes: Any) -> MessageRules:
    """Return the rules of the default settings, with some of them changed."""
    config = Config()
    rules = MessageRules(
        default_queue=config.default_queue,
        keeps_states=True,
        max_message_bytes=config.max_message_bytes,
        delayed_key=DELAYED_DEFAULT,
    )
    return replace(rules, **changes)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """Start the run's server: the Valkey wheel, or what WERK_TEST_SERVER=valkey|redis says."""
    try:
        running = EmbeddedServer().start()
    except NoServer as error:
        # At a desk the rest is still worth running; in CI a skip would hide half the suite.
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a server: {error}", pytrace=False)
        pytest.skip(str(error))
    yield running
    running.stop()


@pytest.fixture
def redis_url(server: EmbeddedServer) -> str:
    """Return the server's URL, database 0."""
    return server.url


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Return a plain client for looking at what really is in Redis; it answers bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue() -> str:
    """Return a queue name that no other test has."""
    return f"q_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def delayed_key(queue: str) -> str:
    """Return a name for this test's delayed set."""
    return f"{queue}.delayed"


@pytest.fixture(autouse=True)
def no_leaked_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Fail a test that uses the server and leaves a key which would stay for ever.

    What may stay: a key with a TTL, and the kinds in `PERMANENT`. A test that
    stops in the middle of something on purpose names the kinds of key this
    leaves, from `WORK`: ``@pytest.mark.leaves("w", "workers")``. All new keys
    are deleted afterwards.
    """
    if request.node.get_closest_marker("server") is None or not uses_the_server(request):
        yield
        return
    url = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        before = set(client.scan_iter(count=1000))
        yield
        created = sorted(set(client.scan_iter(count=1000)) - before)
        found = [describe(client, key) for key in created]
        if created:
            client.delete(*created)
    allowed = PERMANENT | kinds_left_on_purpose(request.node)
    leaked = [text for kind, text in found if kind is not None and kind not in allowed]
    if leaked:
        listing = "\n  ".join(leaked)
        pytest.fail(f"keys without a TTL were left in Redis:\n  {listing}", pytrace=False)


def uses_the_server(request: pytest.FixtureRequest) -> bool:
    """Say whether the test runs on the shared server, and not only on one of its own."""
    return "server" in request.fixturenames


def kinds_left_on_purpose(node: pytest.Item) -> frozenset[str]:
    """Return what the test's ``leaves`` markers name."""
    kinds = frozenset(kind for mark in node.iter_markers("leaves") for kind in mark.args)
    if not kinds <= WORK:
        pytest.fail(
            f"@pytest.mark.leaves knows {', '.join(sorted(WORK))}; not {sorted(kinds - WORK)}",
            pytrace=False,
        )
    return kinds


def describe(client: redis.Redis, key: bytes) -> tuple[str | None, str]:
    """Return a key's kind, ``None`` where it passes by itself, and a line about it."""
    answer = client.type(key)
    type_ = answer.decode() if isinstance(answer, bytes) else answer
    name = key.decode(errors="backslashreplace")
    if type_ == "none" or client.pttl(key) >= 0:
        return None, name
    if name.startswith("{") and "}:" in name:
        kind = name.partition("}:")[2].partition(":")[0]
    else:
        kind = {"list": "queue", "zset": "delayed"}.get(type_, "state")
    return kind, f"{name} ({type_}, kind {kind!r})"


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """
    Return ``wait_until(predicate, timeout_s, what)`` for what other processes do.

    It returns the predicate's first true value, and fails saying ``what`` it
    waited for, in words, after ``timeout_s`` seconds.
    """

    def wait(predicate: Callable[[], T], timeout_s: float, what: str) -> T:
        give_up_at = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() >= give_up_at:
                pytest.fail(f"gave up after {timeout_s:g} s waiting until {what}")
            time.sleep(0.005)
        return value

    return wait


class FakeClock:
    """A `machine.clock.Clock` that moves when told to."""

    def __init__(self) -> None:
        self._wall_ns = 1_800_000_000 * 1_000_000_000
        self._monotonic_ns = 1_000 * 1_000_000_000

    def now_ns(self) -> int:
        """Return Unix nanoseconds; begins at 1 800 000 000 s."""
        return self._wall_ns

    def monotonic_s(self) -> float:
        """Return seconds; begins at 1 000."""
        return self._monotonic_ns / 1_000_000_000

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self._wall_ns += round(seconds * 1_000_000_000)
        self._monotonic_ns += round(seconds * 1_000_000_000)

    def step(self, seconds: float) -> None:
        """Set the wall clock forth or back, as an operator or NTP does; no time passes."""
        self._wall_ns += round(seconds * 1_000_000_000)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock of the test's own."""
    return FakeClock()


def own_links() -> Connections:
    """Return links to an empty database on a server of the test process's own."""
    return Connections(parse_address(shared_url()))


def own_settings(**changes: Any) -> QueueSettings:
    """Return how queues are kept by default, with these changes."""
    return replace(QueueSettings.of(Config(broker="eager")), **changes)


def own_backend() -> RedisBackend:
    """Return a result store of the test's own."""
    return RedisBackend(own_links(), results_expire_s=3600)


def own_broker(backend: RedisBackend | None, **changes: Any) -> RedisBroker:
    """Return a broker that nobody works for: beside a backend, or one that keeps no states."""
    links = own_links() if backend is None else backend._connections
    return RedisBroker(links, own_settings(keeps_states=backend is not None, **changes))
