"""
The compose project on a real engine: scaled, killed, frozen, cut off, restarted.

It is started once, from the files as they stand, with four workers and three
HTTP callers behind the balancer. Every test begins with all of them healthy.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.service.compose_stack import APIS, WORKERS, Stack, engine_problem

pytestmark = pytest.mark.alone

Wait = Callable[..., Any]

RIGHTS = r"""
import re
print(re.findall(r"(?:Uid|CapEff|NoNewPrivs):\s+(\w+)", open("/proc/self/status").read()))
"""
#: The supervisor is the one process of the container's init; its children run tasks.
FIRST_CHILD = """
from pathlib import Path
parents = {}
for stat in Path("/proc").glob("[0-9]*/stat"):
    parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
[supervisor] = [pid for pid, parent in parents.items() if parent == 1]
print(min(pid for pid, parent in parents.items() if parent == supervisor))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if problem := engine_problem():
        if os.environ.get("WERK_TEST_DOCKER") == "promised":
            pytest.fail(f"CI promised a Docker engine: {problem}", pytrace=False)
        pytest.skip(f"needs a Docker engine with compose: {problem}")
    stack = Stack(f"werk-test-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("compose"))
    try:
        stack.compose("build")
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def stack(started: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    started.up()
    failed = request.session.testsfailed
    yield started
    if request.session.testsfailed > failed:
        print(started.log("worker", "api", "redis", "balancer"))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{n}" for n in range(count)]


def ran_once(stack: Stack, ids: dict[str, str]) -> bool:
    runs = stack.runs()
    return {name: runs.get(name, 0) for name in ids} == dict.fromkeys(ids, 1)


# -- what is started -----------------------------------------------------------------------


def test_the_demo_runs_once_and_ends_well(stack: Stack) -> None:
    run = stack.compose("run", "--rm", "-T", "--no-deps", "caller")

    assert "8 calls, 0 wrong" in run.stdout


def test_every_worker_takes_its_share_and_every_replica_answers(stack: Stack) -> None:
    ids = stack.send(names("spread", 60), 0.05)
    hosts = stack.results(ids)
    answers = [
        stack.ask_replica(api, f"/results/{uuid_}").json()["state"]
        for uuid_ in list(ids.values())[:5]
        for api in stack.containers("api")
    ]

    assert len(set(hosts.values())) == WORKERS
    assert answers == ["SUCCESS"] * 5 * APIS
    assert ran_once(stack, ids)
    for api in stack.containers("api"):
        # The balancer has found every replica.
        assert "/tasks/mark" in "".join(stack.docker("logs", api).stderr)


def test_a_container_is_confined(stack: Stack) -> None:
    for service in ("worker", "api"):
        container = stack.containers(service)[0]
        assert stack.run_in(container, "python", "-c", RIGHTS).stdout.strip() == (
            "['10001', '0000000000000000', '1']"
        )
        for path in ("/app/machine/x", "/run/keys/x", "/x"):
            write = stack.run_in(container, "touch", path, check=False)
            assert "Read-only file system" in write.stderr
    for container in (stack.containers("redis")[0], stack.containers("balancer")[0]):
        effective = stack.run_in(container, "grep", "-E", "CapEff|NoNewPrivs", "/proc/1/status")
        assert effective.stdout.split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_an_image_holds_its_own_service_and_no_installer(stack: Stack) -> None:
    worker, api = stack.containers("worker")[0], stack.containers("api")[0]

    assert stack.run_in(worker, "ls", "/app").stdout.split() == [
        "config.yml",
        "machine",
        "worker",
    ]
    assert stack.run_in(api, "ls", "/app").stdout.split() == ["caller", "config.yml", "machine"]
    for container in (worker, api):
        assert stack.run_in(container, "ls", "/venv/bin/pip", check=False).returncode


def test_a_service_sees_no_key_of_another(stack: Stack) -> None:
    seen = [
        sorted(stack.run_in(stack.containers(service)[0], "ls", "/run/keys").stdout.split())
        for service in ("worker", "api")
    ]

    assert seen == [["password", "url"], ["api_token", "password", "url"]]


# -- rights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "refused"),
    [
        ("caller", "LPOP machinery_tasks"),
        ("caller", "BLMOVE machinery_tasks machinery_tasks LEFT RIGHT 1"),
        ("caller", "HDEL {machinery_tasks}:w:somebody claim"),
        ("caller", "GET somebody_elses"),
        ("caller", "FLUSHALL"),
        ("worker", "FLUSHALL"),
        ("worker", "FLUSHDB"),
        ("worker", "KEYS *"),
        ("worker", "CONFIG GET *"),
        ("worker", "EVAL return 0"),
        ("worker", "SET somebody_elses 1"),
        ("worker", "ACL LIST"),
        ("health", "LLEN machinery_tasks"),
        ("admin", "FLUSHALL"),
    ],
)
def test_redis_refuses_a_user_what_it_does_not_need(
    user: str, refused: str, started: Stack
) -> None:
    with (
        started.redis_as(user) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*refused.split())


def test_redis_refuses_whoever_gives_no_name(started: Stack) -> None:
    answer = started.run_in(started.containers("redis")[0], "redis-cli", "PING")

    assert answer.stdout.startswith("NOAUTH")


def test_the_http_caller_wants_its_token(started: Stack) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        assert started.ask("GET", "/tasks", headers=headers).status_code == 401
    assert started.ask("GET", "/tasks").status_code == 200


@pytest.mark.parametrize(
    ("service", "status"),
    [("worker", 77), ("caller", 3)],
)
def test_a_wrong_password_is_refused_and_said(service: str, status: int, stack: Stack) -> None:
    wrong = ("-e", "BROKER_FILE=", "-e", f"BROKER=redis://{service}:wrong@redis:6379/0")
    run = stack.compose("run", "--rm", "-T", "--no-deps", *wrong, service, check=False)

    assert run.returncode == status
    assert "refused the login" in run.stderr
    assert "wrong@" not in run.stdout + run.stderr


# -- what may happen -----------------------------------------------------------------------


def test_a_killed_container_loses_no_task(stack: Stack) -> None:
    ids = stack.send(names("killed", 80), 0.1)
    stack.docker("kill", "--signal", "KILL", stack.containers("worker")[0])

    assert stack.results(ids).keys() == ids.keys()


def test_scaling_down_and_up_loses_no_task_and_runs_none_twice(stack: Stack) -> None:
    ids = stack.send(names("scaled-down", 80), 0.1)
    stack.up(workers=2, apis=1)
    ids |= stack.send(names("scaled-up", 80), 0.1)
    stack.up()

    assert stack.results(ids).keys() == ids.keys()
    assert ran_once(stack, ids)


def test_a_rolling_restart_of_workers_loses_no_task_and_runs_none_twice(stack: Stack) -> None:
    ids = stack.send(names("rolled", 120), 0.1)
    for worker in stack.containers("worker"):
        stack.docker("restart", worker)

    assert stack.results(ids).keys() == ids.keys()
    assert ran_once(stack, ids)


def test_a_restart_of_redis_loses_no_task(stack: Stack) -> None:
    ids = stack.send(names("before", 60), 0.1)
    stack.compose("restart", "redis")
    ids |= stack.send(names("after", 20), 0.1)

    assert stack.results(ids).keys() == ids.keys()


def test_what_a_frozen_worker_holds_is_run_by_others(stack: Stack, wait_until: Wait) -> None:
    ids = stack.send(names("frozen", 40), 0.2)
    frozen = stack.containers("worker")[0]
    stack.docker("pause", frozen)
    try:
        hosts = stack.results(ids)
    finally:
        stack.docker("unpause", frozen)
    [again] = stack.send(["thawed"], 0.0).items()

    assert hosts.keys() == ids.keys()
    assert stack.results(dict([again])).keys() == {"thawed"}
    wait_until(lambda: stack.health(frozen) == "healthy", 30, "the thawed worker to be healthy")


def test_a_worker_cut_off_from_redis_loses_no_task_and_comes_back(
    stack: Stack, wait_until: Wait
) -> None:
    ids = stack.send(names("cut", 60), 0.1)
    cut = stack.containers("worker")[0]
    network = f"{stack.project}_store"
    stack.docker("network", "disconnect", network, cut)
    try:
        hosts = stack.results(ids)
        alive = stack.run_in(cut, "python", "-m", "machine", "health", check=False)
    finally:
        stack.docker("network", "connect", "--alias", "worker", network, cut)
    name = stack.inspect(cut)["Config"]["Hostname"]

    def is_back() -> bool:
        more = stack.send([f"back-{uuid.uuid4()}" for _ in range(8)], 0.05)
        return name in stack.results(more).values()

    assert hosts.keys() == ids.keys()
    assert alive.returncode == 0, alive.stderr
    wait_until(is_back, 60, "the worker to take tasks again")
    assert stack.inspect(cut)["RestartCount"] == 0


def test_stopping_lets_a_task_end(stack: Stack, wait_until: Wait) -> None:
    ids = stack.send(names("stopped", WORKERS), 3.0)
    wait_until(lambda: ids.keys() <= stack.runs().keys(), 20, "every worker to run a task")
    workers = stack.containers("worker")
    stack.compose("stop", "worker")

    assert [stack.inspect(worker)["State"]["ExitCode"] for worker in workers] == [0] * WORKERS
    assert stack.results(ids, 0).keys() == ids.keys()
    assert ran_once(stack, ids)


def test_health_tells_a_hung_worker_from_a_busy_one(stack: Stack, wait_until: Wait) -> None:
    [hung, *others] = stack.containers("worker")
    child = stack.run_in(hung, "python", "-c", FIRST_CHILD).stdout.strip()
    stack.run_in(hung, "sh", "-c", f"kill -STOP {child}")
    stack.send(names("busy", WORKERS - 1), 26.0)

    def complaint() -> str:
        probe = stack.run_in(hung, "python", "-m", "machine", "health", check=False)
        return probe.stderr if probe.returncode == 1 else ""

    try:
        said = wait_until(complaint, 60, "the hung worker to be found")
        busy = [stack.health(worker) for worker in others]
        wait_until(lambda: stack.health(hung) == "unhealthy", 60, "the engine to know it")
    finally:
        stack.run_in(hung, "sh", "-c", f"kill -CONT {child}")

    assert f"child {child} is stopped" in said
    assert busy == ["healthy"] * (WORKERS - 1)
    wait_until(lambda: stack.health(hung) == "healthy", 60, "the worker to be healthy again")


def test_the_http_caller_says_so_when_redis_is_away(stack: Stack, wait_until: Wait) -> None:
    stack.compose("stop", "redis")
    try:
        ready = stack.ask("GET", "/readyz")
        alive = stack.ask("GET", "/livez")
        sent = stack.ask("POST", "/tasks/mark", json={"args": ["away", 0.0]})
    finally:
        stack.compose("start", "redis")

    assert (ready.status_code, alive.status_code, sent.status_code) == (503, 200, 503)
    assert "Retry-After" in sent.headers
    wait_until(lambda: stack.ask("GET", "/readyz").status_code == 200, 30, "Redis to be back")
