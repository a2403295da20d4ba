"""
Starting and stopping: signals, grace, and servers that are not there yet.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine.embedded import EmbeddedServer

from .conftest import Site, signature

Started = Callable[[int], list[tuple[str, int]]]


def test_sigterm_lets_the_running_task_end_and_takes_no_other(site: Site, started: Started) -> None:
    worker = site.start()
    running = site.send("until_released", "a", f"{site.queue}.go")
    started(1)
    waiting = site.send("hold", "b", 0.0)

    worker.send_signal(signal.SIGTERM)
    site.raw.rpush(f"{site.queue}.go", "go")

    assert worker.wait(timeout=30) == 0
    assert running.get(timeout=5).startswith("a by")
    assert [s.uuid for s in site.server.pending_tasks()] == [waiting.uuid]
    assert site.server.broker.roster(site.queue).stamps == {}


def test_what_outlives_the_grace_goes_back_uncounted(site: Site, started: Started) -> None:
    worker = site.start(WORKER_SHUTDOWN_TIMEOUT_S="0.5")
    result = site.send("until_released", "a", f"{site.queue}.go")
    started(1)

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=30) == 0
    assert [s.uuid for s in site.server.pending_tasks()] == [result.uuid]
    assert site.raw.exists(f"{{{site.queue}}}:redel") == 0


def test_a_second_signal_stops_at_once(site: Site, started: Started) -> None:
    worker = site.start()
    result = site.send("until_released", "a", f"{site.queue}.go")
    started(1)

    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)  # two of a kind could arrive as one

    assert worker.wait(timeout=20) == 1
    assert [s.uuid for s in site.server.pending_tasks()] == [result.uuid]


def test_ctrl_c_in_a_terminal_drains_as_sigterm_does(site: Site, started: Started) -> None:
    worker = site.start()
    result = site.send("until_released", "a", f"{site.queue}.go")
    started(1)

    os.killpg(worker.pid, signal.SIGINT)  # the terminal tells the whole group
    site.raw.rpush(f"{site.queue}.go", "go")

    assert worker.wait(timeout=30) == 0
    assert result.get(timeout=5).startswith("a by")


def test_a_worker_told_to_stop_while_it_starts_ends_soon(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    worker = site.start("-p", "2", WORKER_SHUTDOWN_TIMEOUT_S="60")
    wait_until(lambda: "processes x" in site.log(), 20, "the worker to begin")

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=20) == 0


def test_a_worker_waits_for_a_server_that_starts_later(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    with EmbeddedServer() as late:
        late.kill()
        worker = site.start(BROKER=late.url)
        wait_until(lambda: "waiting for Redis" in site.log(), 20, "the worker to say it waits")

        late.restart()
        site.url, before = late.url, site.server
        later = Site(late.url, site.queue, site.raw, site.logs)
        value = later.send("hold", "a", 0.0).get(timeout=30)
        later.server.close()
        site.server = before
        worker.terminate()

        assert value == "a"
        assert worker.wait(timeout=30) == 0


def test_a_worker_and_a_caller_survive_a_restart_of_the_server(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with EmbeddedServer(data_dir=str(tmp_path / "data"), args=["--appendonly", "yes"]) as server:
        worker = site.start(BROKER=server.url)
        other = Site(server.url, site.queue, site.raw, site.logs)
        first = other.send("hold", "a", 0.0).get(timeout=30)
        results = [other.send("hold", f"n{n}", 0.005) for n in range(100)]

        server.kill()
        server.restart()
        values = [result.get(timeout=60) for result in results]
        last = other.send("hold", "z", 0.0).get(timeout=30)
        other.server.close()
        worker.terminate()

        assert (first, last) == ("a", "z")
        assert values == [f"n{n}" for n in range(100)]
        assert worker.wait(timeout=30) == 0


def test_a_broken_tasks_module_ends_the_worker_with_its_traceback(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")

    worker = site.start(TASKS_MODULES="broken_tasks", PYTHONPATH=str(tmp_path))

    assert worker.wait(timeout=30) == 78
    assert "ZeroDivisionError" in site.log()


def test_a_worker_of_several_queues_takes_the_first_one_first(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    first, second = f"{site.queue}.a", f"{site.queue}.b"
    ledger = f"{site.queue}.order"
    for queue in (second, first):
        for number in range(3):
            task = signature("write_down", ledger, f"{queue[-1]}{number}")
            task.routing_key = queue
            site.server.send_task(task)

    worker = site.start("-Q", f"{first},{second}")
    wait_until(lambda: site.raw.llen(ledger) == 6, 30, "all six to run")
    worker.terminate()
    status = worker.wait(timeout=30)
    order = [name.decode()[0] for name in site.raw.lrange(ledger, 0, -1)]
    site.raw.delete(ledger, f"{{{first}}}:seq", f"{{{second}}}:seq")

    assert order == ["a"] * 3 + ["b"] * 3
    assert status == 0
