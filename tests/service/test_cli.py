"""
The worker's command line: flags, precedence, and what it says when it cannot start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_worker(
    *flags: str, place: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the worker's program to its end: for calls that cannot start."""
    environ = {k: v for k, v in os.environ.items() if k not in ("BROKER", "RESULT_BACKEND")}
    return subprocess.run(
        [sys.executable, str(ROOT / "worker" / "worker.py"), *flags],
        cwd=place,
        env=environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_flag() -> None:
    shown = run_worker("--help").stdout

    for flag in ("--concurrency", "--processes", "--queues", "--name", "--log-level", "--config"):
        assert flag in shown


def test_an_unknown_flag_is_a_usage_error() -> None:
    ended = run_worker("--colour", "green")

    assert ended.returncode == 2
    assert "unrecognized arguments: --colour green" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("-c", "many"), "worker_concurrency"),
        (("-p", "-1"), "worker_processes"),
        (("-l", "loud"), "log_level"),
        (("-Q", "task_a"), "queues"),
        (("-Q", "high=3,low"), "write 'low=1', or leave out all weights"),
    ],
)
def test_a_bad_flag_names_the_setting_and_ends_with_78(flags: tuple[str, ...], text: str) -> None:
    ended = run_worker(*flags)

    assert ended.returncode == 78
    assert ended.stderr.startswith("error: ")
    assert text in ended.stderr


def test_all_bad_settings_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("results_expire_in: soon\nworker_lease: 3\n")

    ended = run_worker(place=tmp_path, WORKER_FLUSH_MS="never")

    assert ended.returncode == 78
    assert "config.yml:1" in ended.stderr
    assert "config.yml:2: unknown setting 'worker_lease'; did you mean" in ended.stderr
    assert "environment WORKER_FLUSH_MS='never'" in ended.stderr


def test_a_bad_value_is_told_in_whichever_layer_it_stands(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("log_level: loud\n")

    ended = run_worker("-c", "many", place=tmp_path, WORKER_CONCURRENCY="some")

    assert "config.yml:1: log_level='loud'" in ended.stderr
    assert "environment WORKER_CONCURRENCY='some'" in ended.stderr
    assert "flag worker_concurrency='many'" in ended.stderr


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("broker: redis://127.0.0.1:1\n")

    ended = run_worker(place=tmp_path, BROKER="eager")

    assert "no worker is needed" in ended.stderr  # the environment's broker, not the file's


def test_a_broker_that_is_none_is_named_without_its_password() -> None:
    ended = run_worker(BROKER="bogus://user:secret@host")

    assert ended.returncode == 78
    assert "Factory failed with broker URL: " in ended.stderr
    assert "secret" not in ended.stderr


def test_eager_needs_no_worker_and_says_so() -> None:
    ended = run_worker(BROKER="eager")

    assert ended.returncode == 78
    assert "no worker is needed" in ended.stderr
