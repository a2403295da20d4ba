"""
Samples -> a table, a line for each goal, or JSON. Pure: medians, ratios, text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import chords
from samples import Samples

#: Name of a value -> its line in the table. Its unit: ms where it is a round trip, else tasks/s.
_NAMES = {
    "enqueue": "enqueue one by one",
    "bulk": "enqueue bulk (group)",
    "drain.1": "drain, 1 process",
    "drain.2": "drain, 2 processes",
    "drain.batches": "bare loop, a script for 100",
    "roundtrip.p50": "round trip p50",
    "roundtrip.p99": "round trip p99",
}
#: What each is compared with.
_BARE = {
    "enqueue": "enqueue.bare",
    "bulk": "bulk.bare",
    "drain.1": "drain.bare",
    "drain.2": "drain.bare",
    "drain.batches": "drain.bare",
    "roundtrip.p50": "roundtrip.bare.p50",
    "roundtrip.p99": "roundtrip.bare.p99",
}


@dataclass(frozen=True)
class Goal:
    """
    What a value is to reach.

    Attributes:
        cpus: One of `CPU_LIMITS`.
        name: Of the value.
        bound: At least so many tasks/s, or at most so many ms; with ``against``, so many times it.
        against: Name of the value it is divided by, or "".
        label: What people call the two.
    """

    cpus: str
    name: str
    bound: float
    against: str = ""
    label: str = ""


#: Everything is measured under each of these: name -> CPUs, 0 = all.
CPU_LIMITS = {"all CPUs": 0, "1 CPU": 1}

GOALS = (
    Goal("all CPUs", "drain.2", 2.5, "drain.bare", "drain / bare one-by-one"),
    Goal("all CPUs", "drain.2", 50_000),
    Goal("1 CPU", "drain.1", 30_000),
    Goal("1 CPU", "enqueue", 20_000),
    Goal("1 CPU", "bulk", 100_000),
    Goal("all CPUs", "roundtrip.p50", 0.5),
    Goal("all CPUs", "roundtrip.p99", 1.5),
)


def table_lines(results: Mapping[str, Samples]) -> Iterator[str]:
    """Yield the lines of one table for each of `CPU_LIMITS`."""
    for cpus, samples in results.items():
        if not samples.values.keys() & _NAMES.keys():
            continue
        yield f"{cpus:28}  {'ours':>12}  {'bare':>12}  {'ratio':>7}  {'CPU µs':>7}  {'server':>7}"
        for name, label in _NAMES.items():
            if not samples.values.get(name):
                continue
            ours, bare = median(samples.values[name]), median(samples.values[_BARE[name]])
            cpu, server = _format_cpu(samples.cpu, name), _format_cpu(samples.server, name)
            yield (
                f"  {label:26}  {_format_value(name, ours):>12}  {_format_value(name, bare):>12}  "
                f"{ours / bare:6.2f}x  {cpu:>7}  {server:>7}"
            )
        yield ""


def chord_lines(results: Mapping[str, Samples], count: int) -> Iterator[str]:
    """Yield one line for each chord, and one that says whether they grow as their members do."""
    members = max(1, count // 2 // 10)
    for cpus, samples in results.items():
        if not samples.values.get(chords.LARGE):
            continue
        seconds = {}
        for name, label, size, parts in (
            (chords.SMALL, f"chord of {members:,}", members, "members"),
            (chords.LARGE, f"chord of {10 * members:,}", 10 * members, "members"),
            (chords.NESTED, f"chord of {members:,} chains of 2", 2 * members, "tasks"),
        ):
            rate = median(samples.values[name])
            seconds[name] = size / rate
            yield (
                f"{label}, {cpus}: {seconds[name]:.2f} s, {rate:,.0f} {parts}/s; CPU µs each: "
                f"caller {_format_cpu(samples.cpu, name + '.caller')}, workers "
                f"{_format_cpu(samples.cpu, name)}, server {_format_cpu(samples.server, name)}"
            )
        ratio = seconds[chords.LARGE] / seconds[chords.SMALL]
        yield f"ten times the members, {cpus}: {ratio:.1f} times as long (linear: 10)"
        yield ""


def goal_lines(results: Mapping[str, Samples]) -> Iterator[str]:
    """Yield one line for each goal whose values were measured."""
    for goal in GOALS:
        values = results[goal.cpus].values if goal.cpus in results else {}
        if not values.get(goal.name):
            continue
        reached = median(values[goal.name])
        if goal.against:
            ratio = reached / median(values[goal.against])
            yield f"{goal.label}: {ratio:.1f}x (goal {goal.bound:g}x)"
        else:
            text, bound = (_format_value(goal.name, value) for value in (reached, goal.bound))
            yield f"{_NAMES[goal.name]}, {goal.cpus}: {text} (goal {bound})"


def as_json(results: Mapping[str, Samples], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything measured, medians first, as what JSON holds."""
    places = {
        cpus: {
            "median": {name: median(values) for name, values in samples.values.items()},
            "cpu_us": {name: median(values) for name, values in samples.cpu.items()},
            "server_us": {name: median(values) for name, values in samples.server.items()},
            "values": dict(samples.values),
        }
        for cpus, samples in results.items()
    }
    return {**about, "places": places, "goals": list(goal_lines(results))}


def _format_cpu(micros: Mapping[str, list[float]], name: str) -> str:
    return f"{median(micros[name]):.1f}" if any(micros.get(name, ())) else "-"


def _format_value(name: str, value: float) -> str:
    return f"{value:.2f} ms" if name.startswith("roundtrip") else f"{value:,.0f}/s"
