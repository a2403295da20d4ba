"""
One bench, two servers: what the contract's tests are run on.

A bench is a broker and a backend on one store, with a queue of their own, and
two ways past the port: reading everything that is kept, and planting a
delayed message whose time has come, so that no test waits.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.embedded import EmbeddedServer, available_servers
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.moves import (
    Claim,
    Enqueued,
    Finish,
    Member,
    Message,
    Move,
    Retry,
    Start,
    Verdict,
)
from machine.redis.backend import RedisBackend
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections
from machine.redis.roles import QueueSettings
from machine.wire.signature import Attempt, TaskResult, TaskState
from machine.wire.states import encode_attempt, encode_letter, encode_state, encode_state_head

HOUR_NS = 3600 * 1_000_000_000


@dataclass(kw_only=True)
class Bench:
    """A broker, its backend, and short words for what every test does."""

    broker: Broker
    backend: Backend
    queue: str
    delayed_key: str
    now_ns: Callable[[], int]
    #: Everything the store keeps, comparable with ==.
    dump: Callable[[], dict[str, Any]]
    #: Put bytes into the delayed set under a score, whatever it is.
    put_delayed: Callable[[bytes, int], Any]
    #: Each delayed message's score in Unix ns.
    delayed_scores: Callable[[], dict[bytes, int]]
    #: Make the server forget our scripts, as a restart or SCRIPT FLUSH does.
    forget_scripts: Callable[[], Any]
    close: Callable[[], None]
    workers: list[str] = field(default_factory=list)

    def uuid(self, name: str) -> str:
        """Return the state key of the message of this name."""
        return f"task_{self.queue}_{name}"

    def message(self, name: str, *, queue: str | None = None, due_ns: int = 0) -> Message:
        """Return a message of task ``add`` whose id and bytes follow from ``name``."""
        to = self.queue if queue is None else queue
        uuid = self.uuid(name)
        pending = encode_state(self.state(uuid, "PENDING"))
        return Message(uuid, to, signature_bytes(uuid, to), pending, due_ns)

    def send(self, *names: str, queue: str | None = None) -> list[Message]:
        """Queue messages of these names."""
        messages = [self.message(name, queue=queue) for name in names]
        assert self.broker.enqueue(messages) == [Enqueued.QUEUED] * len(messages)
        return messages

    def worker(self, name: str = "w1", *queues: str) -> str:
        """Register a worker on these queues, or on the bench's own."""
        self.broker.register(name, queues or [self.queue])
        self.workers.append(name)
        return name

    def take(self, worker: str, want: int = 1, *queues: str) -> list[Claim]:
        """Claim up to ``want`` messages."""
        return self.broker.exchange(worker, queues or [self.queue], [], want).claims

    def take_one(self, name: str, worker: str = "w1") -> Claim:
        """Send a message and claim it with a worker that is registered for it."""
        self.send(name)
        (claim,) = self.take(self.worker(worker))
        return claim

    def make(self, *moves: Move) -> list[Verdict]:
        """Carry out moves, claiming nothing."""
        return self.broker.exchange("nobody", [], list(moves), 0).verdicts

    def stamp(self, worker: str) -> int:
        """Return the worker's stamp on the bench's queue."""
        return self.broker.roster(self.queue).stamps[worker]

    def reap(self, worker: str, heir: str = "heir", convict: tuple[str, ...] = ()) -> Any:
        """Reap a worker on the bench's queue with the stamp it has now."""
        return self.broker.reap(self.queue, worker, self.stamp(worker), heir, convict)

    def state(self, uuid: str, state: str, *, error: str = "") -> TaskState:
        """Return a state as a worker or caller would write it."""
        results = [TaskResult("int64", 2)] if state == "SUCCESS" else None
        created_at = "2026-11-20T15:15:26.418773057Z"
        return TaskState(
            task_uuid=uuid,
            state=state,
            task_name="add",
            results=results,
            error=error,
            created_at=created_at,
        )

    def head(self, uuid: str, state: str, *, error: str = "") -> bytes:
        """Return an encoded state without its creation time."""
        return encode_state_head(self.state(uuid, state, error=error))

    def finish(self, claim: Claim, state: str = "SUCCESS", **more: Any) -> Finish:
        """Return the move that ends a claim of one of our messages."""
        uuid = uuid_of(claim.payload)
        return Finish(claim=claim, state_key=uuid, state=self.head(uuid, state), **more)

    def start(self, claim: Claim) -> Start:
        """Return the move that shows a claim of one of our messages as started."""
        uuid = uuid_of(claim.payload)
        return Start(claim=claim, state_key=uuid, state=self.head(uuid, "STARTED"))

    def retry(self, claim: Claim, **changes: Any) -> Retry:
        """Return the move that puts one of our messages back, ready, with one byte more."""
        uuid = uuid_of(claim.payload)
        fields: dict[str, Any] = {
            "claim": claim,
            "state_key": uuid,
            "state": self.head(uuid, "RETRY"),
            "attempt": encode_attempt(Attempt(1, "wrong", "2026-11-20T15:15:27Z")),
            "payload": claim.payload + b" ",
            "queue": self.queue,
            "due_ns": 0,
        }
        return Retry(**(fields | changes))

    def letter(self, claim: Claim, reason: str, crash_count: int = 0) -> tuple[str, bytes]:
        """Return a new dead letter's id and envelope."""
        envelope = encode_letter(
            reason=reason,
            payload=claim.payload,
            crash_count=crash_count,
            worker_id=claim.worker_id,
            buried_ms=self.now_ns() // 1_000_000,
        )
        return claim.id, envelope

    def member(self, name: str, count: int, group: str = "g") -> Member:
        """Return a member of the bench's group with this callback."""
        callback = signature_bytes(self.uuid("callback"), self.queue)
        return Member(self.queue, self.group(group), self.uuid(name), count, callback)

    def group(self, name: str = "g") -> str:
        """Return a group's id."""
        return f"group_{self.queue}_{name}"

    def state_of(self, name: str) -> str | None:
        """Return the stored state's word, or ``None``."""
        (state,) = self.backend.read([self.uuid(name)])
        return None if state is None else state.state

    def pending(self, queue: str | None = None) -> list[str]:
        """Return the names of the messages ready in a queue, next first."""
        to = self.queue if queue is None else queue
        return [self.name_of(payload) for payload in self.broker.pending(to)]

    def name_of(self, payload: bytes) -> str:
        """Return the name a payload was made from."""
        return uuid_of(payload).removeprefix(f"task_{self.queue}_")


def uuid_of(payload: bytes) -> str:
    """Return a payload's UUID."""
    return str(json.loads(payload)["UUID"])


def signature_bytes(uuid: str, queue: str) -> bytes:
    """Return a signature as Go writes it, by hand and not by the code under test."""
    fields: dict[str, Any] = {
        "UUID": uuid,
        "Name": "add",
        "RoutingKey": queue,
        "ETA": None,
        "GroupUUID": "",
        "GroupTaskCount": 0,
        "Args": [{"Name": "", "Type": "int64", "Value": 1}],
        "Headers": {},
        "Priority": 0,
        "Immutable": False,
        "RetryCount": 0,
        "RetryTimeout": 0,
        "OnSuccess": None,
        "OnError": None,
        "ChordCallback": None,
        "BrokerMessageGroupId": "",
        "SQSReceiptHandle": "",
        "StopTaskDeletionOnError": False,
        "IgnoreWhenTaskNotRegistered": False,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def redis_bench(queue: str, redis_url: str, **options: Any) -> Bench:
    """Return a bench on a real server; its keys all carry the queue's name."""
    connections = Connections(parse_address(redis_url))
    raw = redis.Redis.from_url(redis_url)
    delayed_key = f"{queue}.delayed"
    settings = replace(
        QueueSettings.of(Config()), default_queue=queue, delayed_key=delayed_key, **options
    )
    broker = RedisBroker(connections, settings)
    backend = RedisBackend(connections, results_expire_s=3600)
    readers: dict[Any, Callable[[bytes], Any]] = {
        b"string": raw.get,
        b"list": lambda key: raw.lrange(key, 0, -1),
        b"hash": raw.hgetall,
        b"set": raw.smembers,
        b"zset": lambda key: raw.zrange(key, 0, -1, withscores=True),
    }

    def dump() -> dict[str, Any]:
        return {key.decode(): readers[raw.type(key)](key) for key in raw.scan_iter(f"*{queue}*")}

    def scores() -> Any:
        return raw.zrange(delayed_key, 0, -1, withscores=True)

    def close() -> None:
        broker.close()
        backend.close()
        keys = list(raw.scan_iter(f"*{queue}*"))
        if keys:
            raw.delete(*keys)
        raw.close()

    return Bench(
        broker=broker,
        backend=backend,
        queue=queue,
        delayed_key=delayed_key,
        now_ns=time.time_ns,
        dump=dump,
        put_delayed=lambda payload, score: raw.zadd(delayed_key, {payload: score}),
        delayed_scores=lambda: {payload: int(at) for payload, at in scores()},
        forget_scripts=raw.script_flush,
        close=close,
    )


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Start each kind of server once; every test here runs on both."""
    kind = str(request.param)
    if kind not in available_servers():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a {kind}-server", pytrace=False)
        pytest.skip(f"{kind} is not installed")
    with EmbeddedServer(prefer=kind) as running:
        yield running


@pytest.fixture
def make_bench(queue: str, redis_url: str) -> Iterator[Callable[..., Bench]]:
    """Return a function that builds benches, each with a queue of its own."""
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(redis_bench(f"{queue}.{len(benches)}", redis_url, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """Return a bench with default limits."""
    return make_bench()


@pytest.fixture
def broker(bench: Bench) -> Broker:
    """Return the bench's broker."""
    return bench.broker


@pytest.fixture
def backend(bench: Bench) -> Backend:
    """Return the bench's backend."""
    return bench.backend
