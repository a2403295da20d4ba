"""
Run the benchmarks: ``make bench``, or ``python benchmarks/run.py --help``.

It starts a server of its own on all CPUs and one on a single CPU, measures both, prints
a table and a line for each goal, and ends what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

import drain
import report
from environment import Environment, can_pin, on_cpus
from samples import Samples


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--tasks", type=_count, default=20_000, metavar="N", help="tasks of one drain (20000)"
    )
    parser.add_argument(
        "--runs", type=_count, default=5, metavar="N", help="rounds, of which the median counts (5)"
    )
    parser.add_argument(
        "--only",
        type=_kinds,
        default=drain.KINDS,
        metavar="A,B",
        help=f"some of {','.join(drain.KINDS)}",
    )
    parser.add_argument(
        "--server", choices=("valkey", "redis"), help="which, if both are installed"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, every round's values in it"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _kinds(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := [kind for kind in wanted if kind not in drain.KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(drain.KINDS)}")
    return [kind for kind in drain.KINDS if kind in wanted]


def main() -> int:
    """Measure and print; return the exit status."""
    options = _parser().parse_args()
    load = os.getloadavg()[0]
    results: dict[str, Samples] = {}
    version = ""
    for name, cpus in report.CPU_LIMITS.items():
        if cpus and not can_pin():
            continue
        with on_cpus(cpus), Environment(options.server) as environment:
            version = environment.version
            results[name] = drain.measure(environment, options.only, options.tasks, options.runs)
    about = {
        "server": version,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load before": round(load, 1),
        "tasks": options.tasks,
        "runs": options.runs,
    }
    if options.json:
        print(json.dumps(report.as_json(results, about), indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    for line in (
        *report.table_lines(results),
        *report.chord_lines(results, options.tasks),
        *report.goal_lines(results),
    ):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
