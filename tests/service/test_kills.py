"""
Somebody dies: the task is run again, or failed, exactly as promised.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis

from machine import TaskFailed

from .conftest import LEASE_S, Site, signature

Started = Callable[[int], list[tuple[str, int]]]


def test_a_killed_childs_task_runs_again_at_once(site: Site, started: Started) -> None:
    # A lease of a minute: only the supervisor can have noticed.
    site.start(WORKER_LEASE_S="60", WORKER_HEARTBEAT_S="20")
    result = site.send("until_released", "a", f"{site.queue}.go")
    [(_, victim)] = started(1)

    os.kill(victim, signal.SIGKILL)
    (_, _), (_, successor) = started(2)
    site.raw.rpush(f"{site.queue}.go", "go")

    assert victim != successor
    assert result.get(timeout=30) == f"a by {successor}"
    assert site.workers[0].poll() is None


def test_a_killed_workers_task_is_finished_by_another(site: Site, started: Started) -> None:
    first = site.start()
    result = site.send("until_released", "a", f"{site.queue}.go")
    started(1)
    site.start()

    first.kill()
    _, (_, successor) = started(2)
    site.raw.rpush(f"{site.queue}.go", "go")

    assert result.get(timeout=30) == f"a by {successor}"


def test_children_die_with_their_supervisor(
    site: Site, started: Started, wait_until: Callable[..., Any]
) -> None:
    worker = site.start()
    site.send("until_released", "a", f"{site.queue}.go")
    [(_, child)] = started(1)

    worker.kill()
    worker.wait()

    wait_until(lambda: not is_running(child), 10, "the child to end")


def test_a_frozen_workers_late_result_changes_nothing(
    site: Site, started: Started, wait_until: Callable[..., Any]
) -> None:
    frozen = site.start()
    result = site.send("until_released", "a", f"{site.queue}.go")
    [(_, sleeper)] = started(1)
    os.killpg(frozen.pid, signal.SIGSTOP)
    site.start()
    _, (_, successor) = started(2)
    site.raw.rpush(f"{site.queue}.go", "go", "go")
    value = result.get(timeout=30)
    document = site.raw.get(result.uuid)

    os.killpg(frozen.pid, signal.SIGCONT)
    wait_until(
        lambda: "nothing was changed" in site.log() or "lost its lease" in site.log(),
        *(20, "the frozen worker to learn that its claim is gone"),
    )
    # It works on: two workers, two tasks that wait, both begin.
    results = [site.send("until_released", name, f"{site.queue}.go") for name in ("b", "c")]
    began = started(4)
    site.raw.rpush(f"{site.queue}.go", "go", "go")

    assert value == f"a by {successor}"
    assert site.raw.get(result.uuid) == document
    assert {pid for _, pid in began[2:]} == {sleeper, successor}
    assert [r.get(timeout=30).split()[0] for r in results] == ["b", "c"]


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
def test_poison_is_buried_after_three_deaths_and_harms_nobody_else(
    site: Site, how: str, wait_until: Callable[..., Any]
) -> None:
    innocents = [site.send("hold", f"i{n}", 0.01) for n in range(10)]
    guilty = site.send("poison", "guilty", how)
    innocents += [site.send("hold", f"j{n}", 0.01) for n in range(10)]

    site.start("-c", "4")

    with pytest.raises(TaskFailed, match="quarantined: killed 3 workers"):
        guilty.get(timeout=60)
    assert [r.get(timeout=30)[0] for r in innocents] == ["i"] * 10 + ["j"] * 10
    assert [name for name, _ in site.runs()].count("guilty") == 3
    [letter] = site.server.broker.dead(site.queue)
    assert (letter.crash_count, json.loads(letter.payload)["UUID"]) == (3, guilty.uuid)
    wait_until(
        lambda: site.raw.hlen(f"{{{site.queue}}}:redel") <= 1, 10, "the innocents to be forgiven"
    )


def test_a_task_that_must_not_run_twice_fails_when_its_worker_dies(
    site: Site, started: Started
) -> None:
    site.start()
    once = signature("hold_once", "a", 30.0)
    once.headers = {"x-on-crash": "fail"}  # as its decorator does where the task is imported
    result = site.server.send_task(once)
    [(_, victim)] = started(1)

    os.kill(victim, signal.SIGKILL)

    with pytest.raises(TaskFailed, match="on_crash is 'fail'"):
        result.get(timeout=30)
    assert [name for name, _ in site.runs()] == ["a"]


def test_a_task_that_holds_the_interpreter_does_not_cost_the_lease(site: Site) -> None:
    site.start()
    site.start()

    value = site.send("hog", "a").get(timeout=60)

    assert value == "a"
    assert len(site.runs()) == 1, f"it took longer than the lease of {LEASE_S} s, and ran again"


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_left_is_nothing(site: Site, raw: redis.Redis) -> None:
    worker = site.start()
    site.send("hold", "a", 0.0).get(timeout=30)

    worker.terminate()

    assert worker.wait(timeout=30) == 0
    assert list(raw.scan_iter(f"{{{site.queue}}}:*")) == [f"{{{site.queue}}}:seq".encode()]
