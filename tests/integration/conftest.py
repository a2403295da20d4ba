"""
A worker in the test's own process, on the real server: its parts, moved by hand.

A `Yard` is one queue with a server to send by, children to run by, and the
supervisor's duties, each called when the test wants it and not by a clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from machine import build
from machine.config import Config, RedisConfig
from machine.embedded import EmbeddedServer
from machine.ports.clock import SystemClock
from machine.redis import keys
from machine.registry import Registry
from machine.registry.task import Task, task
from machine.runtime.child.child import Child, ChildSettings
from machine.runtime.child.session import new_worker_id
from machine.runtime.chords import Chords, ChordSweep
from machine.runtime.supervisor.promoter import Promoter
from machine.runtime.supervisor.reaper import Reaper
from machine.server import Server

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PATIENCE_S = 10.0
#: Makes a server keep all it has acknowledged.
KEEPS = ("--appendonly", "yes", "--appendfsync", "always")
LEASE_S, HEARTBEAT_S = 2.5, 0.8


class Yard:
    """One queue, and everything that happens to it."""

    def __init__(self, config: Config, raw: redis.Redis) -> None:
        self.config = config
        self.raw = raw
        self.queue = config.default_queue
        self.delayed_key = config.redis.delayed_tasks_key
        self.registry = Registry()
        self.server: Server = build.server(config, self.registry)
        self.clock = SystemClock()
        self.children: dict[Child, ChildSettings] = {}
        worker = build.worker(config, registry=self.registry)
        self._factories, self._settings = worker._factories, worker._settings
        self.broker = self._factories.broker()
        self.backend = self._factories.backend()
        self._open: list[Any] = [self.broker, self.backend]

    # -- making ----------------------------------------------------------------------------
    def task(self, fn: Callable[..., Any], **options: Any) -> Task[Any, Any]:
        """Register a function as a task."""
        made = task(**options)(fn)
        return self.server.register_task(made.name, made)

    def child(self, config: Config | None = None, **changes: Any) -> Child:
        """Return a child that is registered and has claimed nothing."""
        made = self.new_child(config, **changes)
        made.start()
        return made

    def new_child(self, config: Config | None = None, **changes: Any) -> Child:
        """Return a child that is not registered yet: its own `run` does that."""
        factories = self._factories
        if config:
            factories = build.worker(config, registry=self.registry)._factories
        broker, backend = factories.broker(), factories.backend()
        self._open += (broker, backend)
        settings = replace(self._settings.child, **changes)
        chords = Chords(broker, backend, settings.rules, self.clock)
        made = Child(broker, chords, backend, self.registry, settings, self.clock)
        self.children[made] = settings
        return made

    def leave(self, child: Child) -> None:
        """Let a child settle what it holds and leave the roster."""
        del self.children[child]
        child.stop()
        leaving = threading.Thread(target=child.run, daemon=True)
        leaving.start()
        leaving.join(PATIENCE_S / 2)
        if leaving.is_alive():
            pytest.fail(f"a child holds on to what it cannot finish: {self.left()}")

    def promoter(self) -> Promoter:
        """Return the duty that moves due messages."""
        return Promoter(self.broker, 1.0)

    def sweep(self) -> ChordSweep:
        """Return the duty that fires forgotten chords."""
        return ChordSweep(self.broker, self.chords(), [self.queue], 1.0)

    def chords(self) -> Chords:
        """Return what fires armed chords."""
        return Chords(self.broker, self.backend, self._settings.child.rules, self.clock)

    def reaper(self, own_id: str = "") -> Reaper:
        """Return the duty that takes from the dead; its heir is on the roster."""
        own_id = own_id or new_worker_id()
        self.broker.register(own_id, [self.queue])
        return Reaper(
            self.broker,
            self.backend,
            self._settings.child.rules,
            self.clock,
            self.chords(),
            [self.queue],
            own_id,
            lease_s=LEASE_S,
            heartbeat_s=HEARTBEAT_S,
        )

    def bury(self, child: Child, reaper: Reaper) -> None:
        """Let the reaper find this child dead: its stamp has stood still for long."""
        self.children.pop(child, None)
        reaper.run_once(0.0)
        reaper.run_once(LEASE_S + 2 * HEARTBEAT_S)

    # -- moving ----------------------------------------------------------------------------
    def drain(self, *children: Child) -> None:
        """Let children work until their queues are empty and they hold nothing."""
        give_up_at = time.monotonic() + PATIENCE_S
        # All take their turn before it is asked whether any has more to do.
        while sum(self.turn(child) for child in children):
            if time.monotonic() > give_up_at:
                pytest.fail(f"the queue is not empty after {PATIENCE_S:g} s: {self.left()}")

    def turn(self, child: Child) -> bool:
        """Let a child do one turn; say whether there is more to do."""
        settings = self.children[child]
        child.run_once(0 if settings.slots == 1 else 0.01)
        return any(
            self.raw.exists(queue, keys.hop(queue), keys.held(queue, child.worker_id))
            for queue in settings.queues
        )

    def run(self) -> None:
        """Let one new child work until the queue is empty."""
        self.drain(self.child())

    def make_due(self) -> None:
        """Let the time of every delayed message come, and move them."""
        for member in self.raw.zrange(self.delayed_key, 0, -1):
            self.raw.zadd(self.delayed_key, {member: 1})
        self.promoter().run_once(0.0)

    def push(self, message: dict[str, Any] | bytes, queue: str = "") -> bytes:
        """Put a message into the queue as another program would."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.raw.rpush(queue or self.queue, payload)
        return payload

    # -- looking ---------------------------------------------------------------------------
    def document(self, uuid: str) -> dict[str, Any]:
        """Return a state as it stands in Redis."""
        found: dict[str, Any] = json.loads(self.raw.get(uuid))
        return found

    def waiting(self, queue: str = "") -> list[bytes]:
        """Return the messages ready in a queue, next first; a wake-up may have moved one on."""
        queue = queue or self.queue
        lists = (keys.hop(queue), queue)
        return [payload for name in lists for payload in self.raw.lrange(name, 0, -1)]

    def ready(self) -> list[dict[str, Any]]:
        """Return the messages in the queue, next first."""
        return [json.loads(payload) for payload in self.waiting()]

    def delayed(self) -> list[tuple[dict[str, Any], float]]:
        """Return the delayed messages and their scores, earliest first."""
        found = self.raw.zrange(self.delayed_key, 0, -1, withscores=True)
        return [(json.loads(payload), score) for payload, score in found]

    def letters(self) -> list[tuple[bytes, str]]:
        """Return payload and reason of each dead letter."""
        return [(letter.payload, letter.reason) for letter in self.broker.dead(self.queue)]

    def left(self) -> dict[str, Any]:
        """Return what is on its way or in hands."""
        names = [keys.hop(self.queue), *self.raw.scan_iter(keys.held(self.queue, "*"))]
        return {
            "ready": self.raw.llen(self.queue),
            "delayed": self.raw.zcard(self.delayed_key),
            **{str(name): self.raw.exists(name) for name in names},
        }

    def close(self) -> None:
        """Let every child leave, and close all connections."""
        for child in list(self.children):
            self.leave(child)
        for worker_id in self.raw.zrange(keys.workers(self.queue), 0, -1):
            self.broker.unregister(worker_id.decode(), [self.queue])
        self.server.close()
        for one in self._open:
            one.close()


@pytest.fixture
def make_config(redis_url: str, queue: str, delayed_key: str) -> Callable[..., Config]:
    """Return a function that makes settings for this test's queue."""

    def make(**changes: Any) -> Config:
        settings: dict[str, Any] = {
            "broker": redis_url,
            "default_queue": queue,
            "redis": RedisConfig(delayed_tasks_key=delayed_key),
            "worker_lease_s": LEASE_S,
            "worker_heartbeat_s": HEARTBEAT_S,
            "worker_block_s": 0.5,
        }
        return Config(**(settings | changes))

    return make


@pytest.fixture
def make_yard(
    make_config: Callable[..., Config], raw: redis.Redis
) -> Iterator[Callable[..., Yard]]:
    """Return a function that makes a yard with other settings, also on another server."""
    yards: list[Yard] = []

    def make(*, raw: redis.Redis = raw, **changes: Any) -> Yard:
        yards.append(Yard(make_config(**changes), raw))
        return yards[-1]

    yield make
    for yard in yards:
        yard.close()


@pytest.fixture
def yard(make_yard: Callable[..., Yard]) -> Yard:
    """Return a yard with the test's own queue."""
    return make_yard()


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Start a server of the test's own, which keeps all it acknowledged."""
    with EmbeddedServer(args=getattr(request, "param", KEEPS)) as running:
        yield running


@pytest.fixture
def own_raw(own_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """Return a plain client of the own server."""
    with redis.Redis.from_url(own_server.url) as client:
        yield client


@pytest.fixture
def own(own_server: EmbeddedServer, own_raw: redis.Redis, make_yard: Callable[..., Yard]) -> Yard:
    """Return a yard on the own server."""
    return make_yard(raw=own_raw, broker=own_server.url, result_backend=own_server.url)


@pytest.fixture
def golden() -> Callable[[str], bytes]:
    """Return a function that reads what Go wrote."""
    return lambda name: (GOLDEN / f"{name}.json").read_bytes()


@pytest.fixture
def ran(yard: Yard) -> list[str]:
    """Register a good task; return where it notes its runs."""
    notes: list[str] = []
    yard.task(lambda: notes.append("ran"), name="good")
    return notes


@pytest.fixture
def works_on(yard: Yard, ran: list[str]) -> Callable[[], None]:
    """Return a check that a good task behind bad ones runs, and that no bad one is left."""

    def check() -> None:
        ran.clear()
        yard.push({"UUID": "", "Name": "good"})
        yard.run()
        assert ran[-1:] == ["ran"]
        assert yard.left() == {"ready": 0, "delayed": 0, str(keys.hop(yard.queue)): 0}

    return check
