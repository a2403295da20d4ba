"""
2,000 tasks, 4 workers, 20 SIGKILLs, 5 freezes of twice the lease: nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from machine import Arg, build, new_group, new_signature
from machine.config import Config
from machine.embedded import EmbeddedServer
from machine.ports.broker import Broker
from machine.registry import Registry
from machine.results.group import GroupResult
from machine.server import Server

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 2.5
#: Each worker's processes and slots: inline children, and threads.
SHAPES = [("2", "1"), ("2", "1"), ("1", "4"), ("1", "4")]
STEPS = 20
TASKS_A_STEP = 100
FREEZE_EVERY = 4
SETTINGS = {
    "WORKER_LEASE_S": str(LEASE_S),
    "WORKER_HEARTBEAT_S": "0.8",
    "WORKER_BLOCK_S": "0.5",
    # The storm kills at random: a task may well be in dead hands three times without any guilt.
    "WORKER_MAX_DELIVERIES": "20",
    "TASKS_MODULES": "storm_tasks",
    "LOG_LEVEL": "warning",
}


class Fleet:
    """The workers, and what was done to them."""

    def __init__(self, server: EmbeddedServer, logs: Path) -> None:
        self.environ = os.environ | SETTINGS | {"BROKER": server.url, "STORM_LEDGER": server.url}
        self.environ["CONFIG_FILE"] = os.devnull
        self.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
        self.logs = logs
        self.hurt: set[int] = set()
        self.frozen: set[int] = set()
        self.workers = [self.start(place) for place in range(len(SHAPES))]

    def start(self, place: int) -> subprocess.Popen[bytes]:
        processes, slots = SHAPES[place]
        command = [sys.executable, "worker/worker.py", "-p", processes, "-c", slots]
        with (self.logs / f"worker-{place}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environ, stderr=log, start_new_session=True
            )

    def children(self, place: int) -> list[int]:
        pid = self.workers[place].pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            return []
        return [int(child) for child in text.split()]

    def healthy(self) -> list[int]:
        return [p for p, w in enumerate(self.workers) if w.pid not in self.frozen]

    def somebody(self, chance: random.Random, wait_until: Callable[..., object]) -> int:
        """Return a worker that is not frozen; two must be, so that one is left to work."""
        wait_until(lambda: len(self.healthy()) > 1, 60, "a second worker that is not frozen")
        return chance.choice(self.healthy())

    def kill_child(self, place: int, chance: random.Random) -> None:
        children = self.children(place)
        if not children:
            self.kill_worker(place)
            return
        victim = chance.choice(children)
        self.hurt.add(victim)
        with contextlib.suppress(ProcessLookupError):  # it has just been replaced
            os.kill(victim, signal.SIGKILL)

    def kill_worker(self, place: int) -> None:
        self.hurt.update(self.children(place))
        self.workers[place].kill()
        self.workers[place].wait()
        self.workers[place] = self.start(place)

    def freeze(self, place: int) -> threading.Timer:
        """Stop a whole worker; it goes on after twice the lease."""
        worker = self.workers[place]
        self.frozen.add(worker.pid)
        self.hurt.update(self.children(place))
        os.killpg(worker.pid, signal.SIGSTOP)
        timer = threading.Timer(2 * LEASE_S, self._thaw, [worker.pid])
        timer.start()
        return timer

    def _thaw(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the test is over
            os.killpg(pid, signal.SIGCONT)
        self.frozen.discard(pid)

    def stop(self) -> list[int]:
        for worker in self.workers:
            worker.terminate()
        return [worker.wait(timeout=60) for worker in self.workers]

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()

    def log(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in sorted(self.logs.iterdir()))


@pytest.fixture
def storm_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def fleet(storm_server: EmbeddedServer, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(storm_server, tmp_path)
    yield made
    made.end()


@pytest.mark.server
def test_a_storm_of_kills_and_freezes_loses_nothing(
    storm_server: EmbeddedServer, fleet: Fleet, wait_until: Callable[..., None]
) -> None:
    seed = int(os.environ.get("STORM_SEED", "0")) or secrets.randbelow(10**6) + 1
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    print(f"STORM_SEED={seed}")
    raw = redis.Redis.from_url(storm_server.url)
    config = Config(broker=storm_server.url)

    with build.server(config, Registry()) as server:
        results = rage(fleet, chance, server, raw, wait_until)
        outcomes = {
            number: result.get(timeout=60)
            for number, result in enumerate(r for g in results for r in g)
        }
    statuses = fleet.stop()

    runs = ledger(raw)
    assert set(range(STEPS * TASKS_A_STEP)) == set(runs), fleet.log()
    for number, fences in runs.items():
        # Only whoever lost a claim is followed by another: the last owner's result stands.
        assert outcomes[number] == max(fences), (number, fences, seed, fleet.log())
        lost = {pid for fence, pid in fences.items() if fence != max(fences)}
        assert lost <= fleet.hurt, (number, fences, fleet.hurt, seed)
    assert statuses == [0] * len(SHAPES), fleet.log()
    check_nothing_is_left(build.broker(config), raw, config.default_queue)
    raw.close()


def rage(
    fleet: Fleet,
    chance: random.Random,
    server: Server,
    raw: redis.Redis,
    wait_until: Callable[..., None],
) -> list[GroupResult[int]]:
    """Send tasks and hurt workers, step by step; return what was sent."""
    results, timers = [], []
    for step in range(STEPS):
        numbers = range(step * TASKS_A_STEP, (step + 1) * TASKS_A_STEP)
        members = [
            new_signature("work", [Arg("int64", number), Arg("int64", chance.randrange(20))])
            for number in numbers
        ]
        results.append(server.send_group(new_group(*members)))
        if step % FREEZE_EVERY == FREEZE_EVERY - 1:
            timers.append(fleet.freeze(fleet.somebody(chance, wait_until)))
        place = fleet.somebody(chance, wait_until)
        if step % 2:
            fleet.kill_child(place, chance)
        else:
            fleet.kill_worker(place)
        enough = step * TASKS_A_STEP + TASKS_A_STEP // 4
        wait_until(lambda: raw.llen("ledger") >= enough, 60, f"{enough} runs at step {step}")  # noqa: B023
    for timer in timers:
        timer.join()
    return results


def ledger(raw: redis.Redis) -> dict[int, dict[int, int]]:
    """Return for each task the process of each run, by fence."""
    runs: dict[int, dict[int, int]] = defaultdict(dict)
    for line in raw.lrange("ledger", 0, -1):
        number, fence, pid = map(int, line.split())
        runs[number][fence] = pid
    return runs


def check_nothing_is_left(broker: Broker, raw: redis.Redis, queue: str) -> None:
    broker.close()
    held = list(raw.scan_iter(f"{{{queue}}}:w:*"))
    left = {
        "ready": raw.llen(queue),
        "hop": raw.llen(f"{{{queue}}}:hop"),
        "delayed": raw.zcard("delayed_tasks"),
        "redelivered": raw.hlen(f"{{{queue}}}:redel"),
        "chords": raw.hlen(f"{{{queue}}}:chords"),
        "dead": raw.hlen(f"{{{queue}}}:dlq"),
        "workers": raw.zcard(f"{{{queue}}}:workers"),
        "held": len(held),
    }
    assert left == dict.fromkeys(left, 0)
