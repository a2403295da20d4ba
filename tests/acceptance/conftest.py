"""
A bench for the acceptance list: one queue, a server to send by, workers in threads.

A worker here is a real child on the real server, running its own loop in a
thread; what the server is told can be listened to, command by command.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis

from machine import build
from machine.config import Config, RedisConfig
from machine.ports.clock import SystemClock
from machine.registry import Registry
from machine.registry.task import Task, task
from machine.runtime.child.child import Child, ChildSettings
from machine.runtime.chords import Chords
from machine.runtime.supervisor.promoter import Promoter

PATIENCE_S = 10.0


class Bench:
    """One queue: what is sent to it, and who works on it."""

    def __init__(self, config: Config, raw: redis.Redis) -> None:
        self.config, self.raw, self.queue = config, raw, config.default_queue
        self.registry = Registry()
        self.server = build.server(config, self.registry)
        self._mover = build.broker(config, for_worker=True)

    def task(self, fn: Callable[..., Any], name: str) -> Task[Any, Any]:
        """Register a function as a task."""
        return self.server.register_task(name, task(name=name)(fn))

    @contextmanager
    def worker(self, *queues: str, **changes: Any) -> Iterator[Child]:
        """Run a worker's loop in a thread; stop it at the end, and see that it stops."""
        broker = build.broker(self.config, for_worker=True)
        backend = build.backend(self.config, for_worker=True)
        changes["queues"] = queues or (self.queue,)
        settings = replace(ChildSettings.of(self.config), **changes)
        chords = Chords(broker, backend, settings.rules, SystemClock())
        child = Child(broker, chords, backend, self.registry, settings, SystemClock())
        thread = threading.Thread(target=child.run, daemon=True)
        thread.start()
        try:
            yield child
        finally:
            child.stop()
            thread.join(PATIENCE_S)
            broker.close()
            backend.close()
        assert not thread.is_alive(), "the worker did not end"

    def move_what_is_due(self) -> None:
        """Do once what every worker's supervisor does all the time."""
        Promoter(self._mover, 1.0).run_once(0.0)

    def push(self, message: dict[str, Any]) -> bytes:
        """Put a message into the queue as another program would."""
        payload = json.dumps(message).encode()
        self.raw.rpush(self.queue, payload)
        return payload

    def close(self) -> None:
        """Close every connection."""
        self.server.close()
        self._mover.close()


@pytest.fixture
def make_bench(
    redis_url: str, queue: str, delayed_key: str, raw: redis.Redis
) -> Iterator[Callable[..., Bench]]:
    """Return a function that makes a bench with other settings."""
    made: list[Bench] = []

    def make(*, redis_section: dict[str, Any] | None = None, **changes: Any) -> Bench:
        settings: dict[str, Any] = {"broker": redis_url, "default_queue": queue} | changes
        section = RedisConfig(**{"delayed_tasks_key": delayed_key} | (redis_section or {}))
        made.append(Bench(Config(redis=section, worker_block_s=0.5, **settings), raw))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """Return a bench with the test's own queue."""
    return make_bench()


@pytest.fixture
def overheard(raw: redis.Redis) -> Callable[[Callable[[], object]], list[list[str]]]:
    """Return a function that calls another, and returns what the server was told meanwhile."""

    def listen(act: Callable[[], object]) -> list[list[str]]:
        with raw.monitor() as monitor:
            act()
            raw.echo("that is all")
            lines = []
            while "that is all" not in (line := monitor.next_command()["command"]):
                lines.append(line.split(" "))
        return lines

    return listen
