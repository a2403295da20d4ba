"""The benchmarks run, with counts too small to say anything about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "benchmarks" / "run.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("server")
def test_every_part_is_measured_on_all_cpus_beside_the_same_by_hand() -> None:
    done = run("--tasks", "40", "--runs", "1", "--json")

    assert done.stderr == ""
    assert set(json.loads(done.stdout)["places"]["all CPUs"]["median"]) == {
        "enqueue",
        "enqueue.bare",
        "bulk",
        "bulk.bare",
        "drain.1",
        "drain.2",
        "drain.bare",
        "drain.batches",
        "roundtrip.p50",
        "roundtrip.p99",
        "roundtrip.bare.p50",
        "roundtrip.bare.p99",
        "chord.small",
        "chord.large",
        "chord.nested",
    }


@pytest.mark.usefixtures("server")
def test_the_table_has_a_line_for_each_part_and_one_for_each_goal() -> None:
    done = run("--tasks", "40", "--runs", "1", "--only", "enqueue,drain")

    labels = [line[2:30].strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert done.stderr == ""
    assert labels[:4] == [
        "enqueue one by one",
        "drain, 1 process",
        "drain, 2 processes",
        "bare loop, a script for 100",
    ]
    assert "drain / bare one-by-one: " in done.stdout
    assert "round trip" not in done.stdout


@pytest.mark.usefixtures("server")
def test_chords_have_a_line_each_and_one_for_how_they_grow() -> None:
    done = run("--tasks", "40", "--runs", "1", "--only", "chords")

    labels = [line.partition(":")[0] for line in done.stdout.splitlines() if "all CPUs:" in line]
    assert done.stderr == ""
    assert labels == [
        "chord of 2, all CPUs",
        "chord of 20, all CPUs",
        "chord of 2 chains of 2, all CPUs",
        "ten times the members, all CPUs",
    ]
    assert "ours" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--only", "speed"), "'speed' is none of enqueue,bulk,drain,roundtrip,chords"),
        (("--runs", "0"), "'0' is not a number of 1 or more"),
        (("--tasks", "many"), "'many' is not a number of 1 or more"),
    ],
)
def test_a_wrong_option_is_refused_by_name(arguments: tuple[str, str], text: str) -> None:
    done = run(*arguments)

    assert done.returncode == 2
    assert done.stderr.endswith(f"error: argument {arguments[0]}: {text}\n")
