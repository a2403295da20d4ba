"""
A running worker whose settings file changes: real processes, and no task lost or run twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site

Started = Callable[[int], list[tuple[str, int]]]
Wait = Callable[..., Any]

EXTRA = """
from machine import task


@task
def extra() -> str:
    return "extra"
"""


class File:
    """The settings file of a worker, which is looked at ten times a second."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self._path = site, folder / "settings.yml"

    def write(self, *lines: str) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._path)

    def start(self, *lines: str, **variables: str) -> Any:
        """Start a worker that reads these settings."""
        self.write(*lines)
        flags = ("--config", str(self._path))
        return self.site.start(*flags, **{"WORKER_RELOAD_S": "0.1"} | variables)


@pytest.fixture
def file(site: Site, tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(site, tmp_path_factory.mktemp("settings"))


def test_more_slots_count_at_once_and_what_runs_runs_on(
    site: Site, file: File, started: Started, wait_until: Wait
) -> None:
    worker = file.start("worker_concurrency: 1")
    go = f"{site.queue}.go"
    first = site.send("until_released", "first", go)
    [(_, old)] = started(1)

    file.write("worker_concurrency: 3")
    others = [site.send("until_released", f"n{n}", go) for n in range(3)]
    runs = started(4)

    pids = {pid for _, pid in runs[1:]}
    assert len(pids) == 1
    assert old not in pids
    assert first.state.state == "STARTED"
    site.raw.rpush(go, *["go"] * 4)
    assert first.get(timeout=20) == f"first by {old}"
    assert sorted(one.get(timeout=20).split()[0] for one in others) == ["n0", "n1", "n2"]
    wait_until(lambda: f"child {old}, relieved, ended" in site.log(), 20, "the old child to end")
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    assert Counter(name for name, _ in site.runs()) == dict.fromkeys(["first", "n0", "n1", "n2"], 1)


def test_no_task_is_lost_or_run_twice_while_settings_change_under_load(
    site: Site, file: File, wait_until: Wait
) -> None:
    worker = file.start("worker_concurrency: 1")
    results = [site.send("hold", "first", 0.0)]
    results[0].get(timeout=30)  # from here on the file is looked at
    for round_ in range(4):
        results += [site.send("hold", f"{round_}.{n}", 0.002) for n in range(100)]
        taken = "settings changed: worker_concurrency; new processes"
        file.write(f"worker_concurrency: {round_ + 2}")
        wait_until(
            lambda n=round_, said=taken: site.log().count(said) > n, 20, "the change to be seen"
        )

    assert [result.get(timeout=60) for result in results[1:]] == [
        f"{round_}.{n}" for round_ in range(4) for n in range(100)
    ]
    assert set(Counter(name for name, _ in site.runs()).values()) == {1}
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    assert site.server.broker.roster(site.queue).stamps == {}


def test_tasks_of_a_module_added_to_the_file_are_run(
    site: Site, file: File, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "extra_tasks.py").write_text(EXTRA)
    here = Path(__file__).parent
    worker = file.start(
        "tasks_modules: [service_tasks]",
        TASKS_MODULES="",
        PYTHONPATH=f"{here.parents[1]}:{here}:{folder}",
    )
    assert site.send("hold", "a", 0.0).get(timeout=30) == "a"

    file.write("tasks_modules: [service_tasks, extra_tasks]")

    assert site.send("extra").get(timeout=30) == "extra"
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_the_log_changes_its_level_and_format(site: Site, file: File, wait_until: Wait) -> None:
    worker = file.start("log_level: warning", "log_format: text", LOG_FORMAT="")
    site.send("hold", "a", 0.0).get(timeout=30)
    assert "INFO" not in site.log()

    file.write("log_level: info", "log_format: json")

    wait_until(lambda: "settings changed" in site.log(), 20, "the change to be seen")
    wait_until(lambda: "relieved" in site.log(), 20, "the old child to end")
    site.send("hold", "b", 0.0).get(timeout=30)
    wait_until(lambda: "ended: SUCCESS" in site.log(), 20, "a child to say what it ran")
    lines = [line for line in site.log().splitlines() if "ended: SUCCESS" in line]
    assert [json.loads(line)["level"] for line in lines] == ["info"]
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_what_needs_a_restart_is_named_and_stays(site: Site, file: File, wait_until: Wait) -> None:
    worker = file.start("worker_max_deliveries: 3")
    site.send("hold", "a", 0.0).get(timeout=30)

    file.write("worker_max_deliveries: 5", "redis:", "  read_timeout: 3")

    said = "need a restart of the worker keep their values: worker_max_deliveries, redis.read_time"
    wait_until(lambda: said in site.log(), 20, "the worker to say so")
    assert site.send("hold", "b", 0.0).get(timeout=30) == "b"
    assert "new processes take over" not in site.log()
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_a_broken_file_changes_nothing_until_it_is_mended(
    site: Site, file: File, wait_until: Wait
) -> None:
    worker = file.start("worker_concurrency: 1")
    site.send("hold", "a", 0.0).get(timeout=30)

    file.write("worker_concurrency: [")
    wait_until(lambda: "Failed to reload config" in site.log(), 20, "the worker to complain")
    assert site.send("hold", "b", 0.0).get(timeout=30) == "b"
    file.write("worker_concurrency: 2")

    wait_until(lambda: "settings changed: worker_concurrency" in site.log(), 20, "the new one")
    assert site.log().count("Failed to reload config") == 1
    assert site.send("hold", "c", 0.0).get(timeout=30) == "c"
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_settings_with_which_no_task_can_be_loaded_are_not_taken_up(
    site: Site, file: File, wait_until: Wait
) -> None:
    worker = file.start("tasks_modules: [service_tasks]", TASKS_MODULES="")
    site.send("hold", "a", 0.0).get(timeout=30)

    file.write("tasks_modules: [no_such_module]")

    wait_until(lambda: "the changed settings cannot work" in site.log(), 20, "the refusal")
    assert site.send("hold", "b", 0.0).get(timeout=30) == "b"
    assert len({pid for _, pid in site.runs()}) == 1
    file.write("tasks_modules: [service_tasks]", "worker_concurrency: 2")
    wait_until(lambda: "relieved, ended with status 0" in site.log(), 20, "the next change")
    assert site.send("hold", "c", 0.0).get(timeout=30) == "c"
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_a_worker_told_not_to_look_does_not(site: Site, file: File) -> None:
    worker = file.start("worker_concurrency: 1", WORKER_RELOAD_S="0")
    site.send("hold", "a", 0.0).get(timeout=30)

    file.write("worker_concurrency: 2")

    assert site.send("hold", "b", 0.3).get(timeout=30) == "b"
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    assert "settings changed" not in site.log()


def test_each_line_of_the_log_says_which_process_of_which_worker_wrote_it(
    site: Site, started: Started
) -> None:
    worker = site.start("-n", "builder", "-p", "2")
    go = f"{site.queue}.go"
    results = [site.send("until_released", f"n{n}", go) for n in range(2)]
    pids = {pid for _, pid in started(2)}
    assert len(pids) == 2

    site.raw.rpush(go, "go", "go")
    for result in results:
        result.get(timeout=20)
    worker.terminate()
    assert worker.wait(timeout=30) == 0

    lines = [line.split() for line in site.log().splitlines() if line[:2] == "20"]
    ends = {line[2] for line in lines if "SUCCESS" in line}
    assert ends == {f"builder[{pid}]" for pid in pids}
    assert {line[2] for line in lines} - ends == {f"builder[{worker.pid}]"}
