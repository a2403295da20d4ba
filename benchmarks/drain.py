"""
Sending, draining and the round trip: ours beside the same by hand, in one run.

Each round measures ours and the bare loop in turn, so that a machine that
slows down slows both. Rates are tasks a second, round trips milliseconds,
CPU is microseconds a task; see README.md for how to read them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import bare
import chords
import redis
from environment import HERE, Environment
from samples import Samples

from machine import tasks

#: What is measured, in this order; `--only` chooses from these.
KINDS = ("enqueue", "bulk", "drain", "roundtrip", "chords")
_STAGED, _QUEUE, _SAMPLE = "bench.staged", "bench", "bench.sample"
_CHUNK = 500
#: Members of a group that is sent in one call.
_GROUP = 1000
#: Seconds after which a task counts as lost.
_LOST_S = 60.0


def measure(environment: Environment, kinds: Sequence[str], count: int, runs: int) -> Samples:
    """
    Measure these kinds ``runs`` times.

    Args:
        environment: Where; its server is emptied again and again.
        kinds: Of `KINDS`.
        count: Tasks of one drain; sending, round trips and chords take fewer.
        runs: Rounds.
    """
    samples = Samples(environment.embedded.pid)
    steps: dict[str, Callable[[Samples], None]] = {
        "enqueue": lambda into: _enqueue(environment, max(1, count // 4), into),
        "bulk": lambda into: _bulk(environment, count, into),
        "drain": _Drain(environment, count).run if "drain" in kinds else lambda _: None,
        "roundtrip": lambda into: _round_trips(environment, max(1, count // 40), into),
        "chords": lambda into: chords.run(environment, max(1, count // 2), into),
    }
    for _ in range(runs):
        for kind in kinds:
            environment.raw.flushall()
            steps[kind](samples)
    return samples


def _enqueue(environment: Environment, count: int, into: Samples) -> None:
    message = _message(environment)
    with into.rate("enqueue", count):
        for i in range(count):
            tasks.add.send(i, i)
    bare.push_each(environment.raw, _QUEUE, [message])
    with into.rate("enqueue.bare", count):
        bare.push_each(environment.raw, _QUEUE, [message] * count)


def _bulk(environment: Environment, count: int, into: Samples) -> None:
    message = _message(environment)
    with into.rate("bulk", count):
        for start in range(0, count, _GROUP):
            tasks.add.map([(i, i) for i in range(start, min(count, start + _GROUP))]).send()
    with into.rate("bulk.bare", count):
        bare.push_batches(environment.raw, _QUEUE, [message] * count)


def _message(environment: Environment) -> bytes:
    """Send one task, and return its message; links are open then, and scripts known."""
    tasks.add.s(1, 1).options(queue=_SAMPLE).send()
    return environment.caller.broker.pending(_SAMPLE, 1)[0]


class _Drain:
    """The same tasks again and again, their states set back to PENDING each time."""

    def __init__(self, environment: Environment, count: int) -> None:
        self._environment, self._count = environment, count
        environment.raw.flushall()
        sent = [tasks.add.send(i, i).uuid for i in range(count)]
        self._messages = environment.caller.broker.pending(environment.config.default_queue)
        self._states = [
            dict(zip(chunk, environment.raw.mget(chunk), strict=True))
            for chunk in (sent[i : i + _CHUNK] for i in range(0, count, _CHUNK))
        ]

    def run(self, into: Samples) -> None:
        """Drain by one process and by two, and by each bare loop."""
        self._ours(1, into)
        self._bare("drain.bare", bare.drain_each, into)
        self._ours(2, into)
        self._bare("drain.batches", bare.drain_batches, into)

    def _stage(self) -> None:
        for states in self._states:
            self._environment.raw.mset(states)
        bare.push_batches(self._environment.raw, _STAGED, self._messages)

    def _bare(self, name: str, drain: Callable[[redis.Redis, str], float], into: Samples) -> None:
        self._stage()
        with into.rate(name, self._count):
            drain(self._environment.raw, _STAGED)
        self._check(name)

    def _ours(self, processes: int, into: Samples) -> None:
        self._stage()
        raw, name = self._environment.raw, f"drain.{processes}"
        with self._environment.worker(processes, _QUEUE) as pids:
            with into.rate(name, self._count, pids):
                # All at once into a queue that idle workers wait at.
                raw.rename(_STAGED, _QUEUE)
                self._wait()
            self._check(name)

    def _wait(self) -> None:
        """Wait until nothing is left; looks rarely at first, so as not to be in the way."""
        started_s = time.perf_counter()
        while left := self._environment.unfinished(_QUEUE):
            passed_s = time.perf_counter() - started_s
            rest_s = passed_s * left / max(1, self._count - left)
            if passed_s > _LOST_S:
                sys.exit(f"error: {left} of {self._count} tasks have not ended in {_LOST_S:g} s")
            time.sleep(min(0.2, max(0.001, rest_s / 2)))

    def _check(self, name: str) -> None:
        done = 0
        for states in self._states:
            done += sum(b'"SUCCESS"' in state for state in self._environment.raw.mget(list(states)))
        if done != self._count:
            sys.exit(f"error: {name}: {done} of {self._count} tasks succeeded")


def _round_trips(environment: Environment, count: int, into: Samples) -> None:
    warm_up = max(1, count // 10)
    with environment.worker(1, environment.config.default_queue):
        times = [_round_trip(i) for i in range(warm_up + count)]
        _quantiles("roundtrip", times[warm_up:], into)
        message = _message(environment)
    with environment.process([sys.executable, str(HERE / "bare.py")], 1):
        times = [bare.ask(environment.raw, message) for _ in range(warm_up + count)]
        _quantiles("roundtrip.bare", times[warm_up:], into)


def _round_trip(number: int) -> float:
    started_s = time.perf_counter()
    tasks.add.send(number, number).get(timeout=_LOST_S)
    return time.perf_counter() - started_s


def _quantiles(name: str, times_s: Sequence[float], into: Samples) -> None:
    ordered = sorted(times_s)
    for percent in (50, 99):
        at = min(len(ordered) - 1, len(ordered) * percent // 100)
        into.values[f"{name}.p{percent}"].append(ordered[at] * 1000)
