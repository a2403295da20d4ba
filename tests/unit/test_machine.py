from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import machine
from machine import Config, Server, TaskFailed, chain, group, task
from machine.registry import task as registry
from machine.tasks import add, fail, flaky, multiply, nap, say, sleep

ROOT = Path(__file__).resolve().parents[2]


@task
def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def eager() -> Iterator[Server]:
    """Run every task where it is sent."""
    before = registry.default_sender
    with machine.connect(Config(broker="eager")) as server:
        yield server
    registry.default_sender = before


def test_importing_the_machine_loads_neither_redis_nor_settings() -> None:
    code = (
        "import sys; from machine import task; task(name='f')(lambda: None);"
        "print(sorted({'redis', 'yaml', 'dotenv', 'machine.config', 'machine.server'}"
        " & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)

    assert done.stdout == b"[]\n"


def test_every_public_name_is_there() -> None:
    assert [name for name in machine.__all__ if not hasattr(machine, name)] == []
    assert len(set(machine.__all__)) == len(machine.__all__)


def test_a_name_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"^module 'machine' has no attribute 'nothing'$"):
        machine.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: add.s(1, 1), 2),
        (lambda: say.s("Ann"), "Hello Ann!"),
        (lambda: sleep.s(0), 0.0),
        (lambda: nap.s(0), 0.0),
        (flaky.s, "succeeded at attempt 3"),
        (lambda: add.s(1, 1) | add.partial(5, 5) | multiply.partial(4), 48),
        (lambda: chain(add.s(2, 2), add.s(5, 6), multiply.s(4)), 60),
        (lambda: group(add.s(1, 1), add.s(2, 2), add.s(5, 6)), [2, 4, 11]),
        (lambda: group(add.s(1, 1), add.s(2, 2), add.s(5, 6)) | multiply.partial(), 88),
        (lambda: group(add.s(1, 1), add.s(5, 5)) | multiply.partial(3), 60),
        (lambda: group(add.s(1), add.s(5)) | multiply.partial(3).options(immutable=True), 3),
        (lambda: add.s(1, 1).options(immutable=True) | add.s(7), 7),
    ],
)
@pytest.mark.usefixtures("eager")
def test_tasks_and_workflows_come_to_what_they_should(
    build: Callable[[], Any], expected: object
) -> None:
    async def send_and_wait() -> object:
        return await (await build().asend()).aget(timeout=10)

    assert build().send().get(timeout=10) == expected
    assert asyncio.run(send_and_wait()) == expected


@pytest.mark.parametrize(
    "build",
    [
        lambda: fail.s("Test error"),
        lambda: say.s("Test error").options(immutable=True) | fail.s("Test error") | add.s(2),
        lambda: group(add.s(1), fail.s("Test error")),
        lambda: group(add.s(1), fail.s("Test error")) | add.partial(),
    ],
)
@pytest.mark.usefixtures("eager")
def test_a_failure_anywhere_is_raised_with_its_own_text(build: Callable[[], Any]) -> None:
    with pytest.raises(TaskFailed, match=r"^Test error$"):
        build().send().get(timeout=10)


def test_a_task_that_returns_nothing_gives_an_empty_list_of_results(eager: Server) -> None:
    nothing = eager.register_task("nothing", lambda: None)

    result = nothing.send()

    assert (result.results(timeout=10), result.get()) == ([], None)


def test_a_task_connects_by_itself_when_it_is_first_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKER", "eager")
    monkeypatch.setattr(registry, "default_sender", machine._connect_once)

    result = double.send(2)
    sender = registry.default_sender
    double.send(3)

    assert registry.default_sender is sender
    server = sender()  # type: ignore[misc]
    assert isinstance(server, Server)
    # Two threads may both see that nothing is connected; the second finds what the first made.
    assert machine._connect_once() is server
    # Nobody registered it, so eager mode leaves it pending, as Machinery's does.
    assert server.get_state(result.uuid).state == "PENDING"  # type: ignore[union-attr]
    server.close()
