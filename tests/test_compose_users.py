"""
The users that the compose project gives to Redis: how they are made, and what they may do.

On a real server, started as compose starts it, but without an engine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from machine.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "compose"
SERVICES = ("worker", "caller")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- how they are made -------------------------------------------------------------------------


class Keys(NamedTuple):
    """What keys.sh has made."""

    folder: Path

    def text(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def users(self) -> dict[str, list[str]]:
        lines = [line.split() for line in self.text("redis/users.acl").splitlines()]
        return {words[1]: words[2:] for words in lines}


@pytest.fixture
def make_keys(tmp_path: Path) -> Callable[..., Keys]:
    """Run keys.sh in a folder of the test's own."""
    for name in ("keys.sh", "users.acl"):
        shutil.copy(DEPLOY / name, tmp_path)
    shutil.copy(ROOT / "config.yml", tmp_path)
    for service in ("redis", "worker", "caller"):
        (tmp_path / "keys" / service).mkdir(parents=True)

    def make(*words: str, **variables: str) -> Keys:
        environ = {"PATH": os.environ["PATH"], "KEYS": str(tmp_path / "keys"), **variables}
        command = ["sh", str(tmp_path / "keys.sh"), *words]
        subprocess.run(command, env=environ, check=True, capture_output=True)
        return Keys(tmp_path / "keys")

    return make


def test_keys_are_made_once_and_kept(make_keys: Callable[..., Keys]) -> None:
    files = ("caller/url", "worker/url", "caller/api_token", "redis/admin", "redis/users.acl")
    first = {name: make_keys().text(name) for name in files}
    again = {name: make_keys().text(name) for name in files}
    fresh = {name: make_keys("new").text(name) for name in files}

    assert again == first
    assert [name for name in files if fresh[name] == first[name]] == []
    assert len(first["caller/api_token"]) == 64


def test_a_token_of_ones_own_is_taken(make_keys: Callable[..., Keys]) -> None:
    assert make_keys(API_TOKEN="my own").text("caller/api_token") == "my own"


def test_no_password_stands_in_the_list_of_users(make_keys: Callable[..., Keys]) -> None:
    made = make_keys()

    for name in ("worker/password", "caller/password", "redis/admin", "redis/health"):
        assert made.text(name) not in made.text("redis/users.acl")


def test_users_may_use_every_queue_that_is_named(make_keys: Callable[..., Keys]) -> None:
    users = make_keys(
        DEFAULT_QUEUE="mine", QUEUES="high=3, low=1", REDIS_DELAYED_TASKS_KEY="later"
    ).users()

    for name in ("mine", "high", "low"):
        assert {f"~{name}", f"~{{{name}}}:*"} <= set(users["worker"])
        assert f"~{name}" in users["caller"]
    assert "~later" in users["worker"]
    assert not any("machinery" in word or "delayed" in word for word in users["worker"])


def test_users_have_the_rights_that_the_manual_explains() -> None:
    [block] = re.findall(r"```acl\n(.*?)```", read("docs/operations.md"), re.DOTALL)
    manual = {line.split()[1]: set(line.split()[4:]) for line in block.splitlines()}
    lines = [line.split() for line in read("deploy/compose/users.acl").splitlines()]
    ours = {words[1]: set(words[4:]) for words in lines if words[0] == "user"}
    for user, rights in manual.items():
        named = {right.replace("machinery_tasks", "QUEUE") for right in rights}
        # A client's name is a setting, and the page says what it needs.
        assert ours[user] - {"+client|setname"} == named - {"+client|setname"}, user
    assert ours["health"] == {"resetkeys", "resetchannels", "-@all", "+ping"}


# -- what they may do --------------------------------------------------------------------------


@pytest.fixture
def guarded(make_keys: Callable[..., Keys]) -> Iterator[tuple[EmbeddedServer, Keys]]:
    """Start a server as compose does: with these users, and a file that survives a restart."""
    keys = make_keys()
    aclfile = str(keys.folder / "redis" / "users.acl")
    with EmbeddedServer(args=("--aclfile", aclfile, "--appendonly", "yes")) as server:
        yield server, keys


def run(program: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "BROKER": url,
        "WORKER_PROCESSES": "1",
    }
    command = [sys.executable, str(ROOT / program)]
    return subprocess.run(
        command, env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.server
def test_caller_and_worker_do_their_work_with_the_rights_they_have(
    guarded: tuple[EmbeddedServer, Keys], tmp_path: Path
) -> None:
    server, keys = guarded
    urls = {
        user: keys.text(f"{user}/url").replace("redis:6379", f"127.0.0.1:{server.port}")
        for user in SERVICES
    }
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "BROKER": urls["worker"]}
    worker = subprocess.Popen(
        [sys.executable, str(ROOT / "worker" / "worker.py"), "-p", "1"],
        env=environ,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    called = run("caller/caller.py", urls["caller"], tmp_path)
    worker.terminate()
    log = worker.communicate(timeout=60)[1]

    assert called.returncode == 0, called.stdout + called.stderr
    assert worker.returncode == 0
    assert "Grant it" not in log


@pytest.mark.server
def test_a_restart_of_redis_keeps_what_scripts_have_written(
    guarded: tuple[EmbeddedServer, Keys],
) -> None:
    server, keys = guarded
    with redis.Redis(
        port=server.port, username="worker", password=keys.text("worker/password"), driver_info=None
    ) as client:
        # As a server writes down each of our scripts: a transaction.
        client.set("task_single", "1")
        text = "redis.call('SET', KEYS[1], '1') redis.call('SET', KEYS[2], '2')"
        client.evalsha(client.script_load(text), 2, "task_a", "task_b")
        server.restart()
        kept = client.mget("task_single", "task_a", "task_b")

    assert kept == [b"1", b"1", b"2"]


@pytest.mark.server
@pytest.mark.parametrize(("program", "status"), [("worker/worker.py", 77), ("caller/caller.py", 3)])
def test_a_wrong_password_ends_a_program(
    program: str, status: int, guarded: tuple[EmbeddedServer, Keys], tmp_path: Path
) -> None:
    server, _ = guarded
    ended = run(program, f"redis://worker:wrong@127.0.0.1:{server.port}/0", tmp_path)

    assert ended.returncode == status
    assert "refused the login" in ended.stderr
