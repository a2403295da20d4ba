"""The health file: kept by the supervisor, read by a probe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machine.runtime import health
from machine.runtime.health import HealthFile, Liveness, is_stopped

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "alive"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def make_file(
    file: Path, liveness: Liveness, patience_s: float, pid: int | None = None
) -> HealthFile:
    made = HealthFile(str(file), patience_s)
    made.watch_child(pid or os.getpid(), liveness)
    liveness.mark_turn()
    return made


def test_a_worker_without_a_health_file_keeps_none() -> None:
    HealthFile("", 20.0).update([os.getpid()])


def test_a_worker_whose_children_turn_is_healthy(file: Path) -> None:
    make_file(file, Liveness(), 3600.0).update([os.getpid()])

    assert file.read_text() == ""
    assert health.main(["--file", str(file)]) == 0


def test_a_child_that_does_not_turn_and_runs_nothing_hangs(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_file(file, Liveness(), 0.0).update([os.getpid()])

    assert health.main(["--file", str(file)]) == 1
    assert capsys.readouterr().err == (
        f"unhealthy: child {os.getpid()} has not turned for 0 s, and runs no task\n"
    )


def test_a_child_that_runs_a_task_may_take_as_long_as_it_likes(file: Path) -> None:
    liveness = Liveness()
    kept = make_file(file, liveness, 0.0)
    liveness.mark_turn(busy=True)
    kept.update([os.getpid()])

    assert file.read_text() == ""


def test_a_task_that_ended_excuses_no_child_that_does_not_turn(file: Path) -> None:
    liveness = Liveness()
    kept = make_file(file, liveness, 0.0)
    liveness.mark_turn(busy=True)
    liveness.mark_idle()
    kept.update([os.getpid()])

    assert "runs no task" in file.read_text()


def test_a_child_that_starts_has_more_time_than_one_that_works(file: Path) -> None:
    kept = HealthFile(str(file), 3600.0)
    kept.watch_child(os.getpid(), Liveness())
    kept.update([os.getpid()])

    assert file.read_text() == ""


def test_a_stopped_child_hangs_whatever_it_runs(
    file: Path, child: subprocess.Popen[bytes], wait_until: Callable[..., object]
) -> None:
    liveness = Liveness()
    kept = make_file(file, liveness, 0.0, child.pid)
    liveness.mark_turn(busy=True)
    child.send_signal(signal.SIGSTOP)
    if sys.platform == "linux":
        wait_until(lambda: is_stopped(child.pid), 10, "the child to be stopped")
        kept.update([child.pid])
        assert f"child {child.pid} is stopped" in file.read_text()
        child.send_signal(signal.SIGCONT)
        wait_until(lambda: not is_stopped(child.pid), 10, "the child to go on")
    kept.update([child.pid])

    assert file.read_text() == ""


def test_a_child_that_has_ended_is_not_waited_for(file: Path) -> None:
    make_file(file, Liveness(), 0.0).update([])

    assert file.read_text() == ""


def test_a_health_file_that_cannot_be_written_stops_no_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = make_file(tmp_path / "none" / "alive", Liveness(), 3600.0)
    kept.update([os.getpid()])
    kept.update([os.getpid()])

    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("health: the health file cannot be written: [Errno 2]")


def test_a_file_that_nobody_touches_is_unhealthy(file: Path) -> None:
    file.touch()
    os.utime(file, (1000.0, 1000.0))

    assert health.find_problem(file, 30.0, 1030.0) == ""
    assert health.find_problem(file, 30.0, 1031.0) == (
        f"{file} was last touched 31 s ago; 30 s are allowed"
    )


def test_no_file_is_unhealthy(file: Path) -> None:
    assert health.find_problem(file, 30.0, 0.0).startswith(f"{file}: No such file or directory")


def test_the_probe_needs_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORKER_HEALTH_FILE", raising=False)

    assert health.main([]) == 2
    assert "Set WORKER_HEALTH_FILE, or give --file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["health"], 0), (["health", "--max-age", "0"], 1), ([], 2), (["nonsense"], 2)],
)
def test_the_probe_is_a_command(arguments: list[str], status: int, file: Path) -> None:
    file.touch()
    run = subprocess.run(
        [sys.executable, "-m", "machine", *arguments],
        cwd=ROOT,
        env=os.environ | {"WORKER_HEALTH_FILE": str(file)},
        capture_output=True,
        check=False,
    )

    assert run.returncode == status, run.stderr


def test_the_probe_loads_neither_the_redis_client_nor_yaml() -> None:
    loaded = "import sys, machine.__main__; print({'redis', 'yaml', 'hiredis'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert run.stdout == "set()\n"
