"""
The template's promise: each service runs without the other's folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machine import Arg, build, new_signature
from machine.config import Config
from machine.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
#: What each image holds beside its own folder (see the Dockerfiles).
SHARED = ("machine", "config.yml")


def copy_of(service: str, place: Path) -> Path:
    """Return a folder with what one service needs, and nothing of the other's."""
    place.mkdir()
    for name in (*SHARED, service):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


def environment(place: Path, url: str, queue: str) -> dict[str, str]:
    # First on the path, so that the copy is what runs, wherever the project is installed.
    return os.environ | {
        "PYTHONPATH": str(place),
        "BROKER": url,
        "DEFAULT_QUEUE": queue,
        "REDIS_DELAYED_TASKS_KEY": f"{queue}.delayed",
        "WORKER_PROCESSES": "1",
        "WORKER_BLOCK_S": "0.5",
    }


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers that end with the test."""
    running = []

    def start(place: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with (tmp_path / "worker.log").open("wb") as log:
            command = [sys.executable, "worker/worker.py"]
            running.append(subprocess.Popen(command, cwd=place, env=environ, stderr=log))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_the_worker_runs_without_the_callers_folder(
    started: Callable[..., subprocess.Popen[bytes]], redis_url: str, queue: str, tmp_path: Path
) -> None:
    place = copy_of("worker", tmp_path / "image")
    worker = started(place, environment(place, redis_url, queue))
    config = Config(broker=redis_url, default_queue=queue)

    with build.server(config, Registry()) as server:
        signature = new_signature("add", [Arg("int64", 1), Arg("int64", 2)])
        value = server.send_task(signature).get(timeout=30)

    worker.terminate()
    status = worker.wait(timeout=30)
    assert not (place / "caller").exists()
    assert value == 3
    assert status == 0, (tmp_path / "worker.log").read_text()


def test_the_caller_runs_without_the_workers_folder(
    started: Callable[..., subprocess.Popen[bytes]], redis_url: str, queue: str, tmp_path: Path
) -> None:
    place = copy_of("caller", tmp_path / "image")
    environ = environment(place, redis_url, queue)
    worker = started(ROOT, environ | {"PYTHONPATH": str(ROOT)})

    done = subprocess.run(
        [sys.executable, "caller/caller.py"],
        cwd=place,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    worker.terminate()
    worker.wait(timeout=30)
    assert not (place / "worker").exists()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout
