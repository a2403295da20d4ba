"""Workers that start, poll and stop: in threads, and as the processes they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machine import Arg, Signature, group
from machine.redis import keys

if TYPE_CHECKING:
    from tests.acceptance.conftest import Bench

ROOT = Path(__file__).resolve().parents[2]
WORKER = str(ROOT / "worker" / "worker.py")
Start = Callable[..., "subprocess.Popen[str]"]

TASKS = """
import os
import redis
from machine import task

@task
def until_released(key: str) -> str:
    redis.Redis.from_url(os.environ["BROKER"]).blpop([key], 60)
    return "released"
"""

OWN_SIGNALS = """
import signal
import sys
from machine import build
from machine.config import Config

worker = build.worker(Config.load())

def mine(*_):
    print("mine", flush=True)
    worker.quit()

signal.signal(signal.SIGTERM, mine)
sys.exit(worker.launch())
"""

QUIT_FIRST = """
import os
import threading
from machine import build
from machine.config import Config

ended = []
for _ in range(3):
    worker = build.worker(Config.load())
    worker.quit()
    thread = threading.Thread(target=lambda: ended.append(worker.launch()), daemon=True)
    thread.start()
    thread.join(3)
    if thread.is_alive():
        break
print(ended, flush=True)
os._exit(0)
"""


@pytest.fixture
def start(bench: Bench, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a program beside the bench; it ends with the test."""
    (tmp_path / "acceptance_tasks.py").write_text(TASKS)
    environ = os.environ | {
        "BROKER": bench.config.broker,
        "DEFAULT_QUEUE": bench.queue,
        "REDIS_DELAYED_TASKS_KEY": bench.config.redis.delayed_tasks_key,
        "TASKS_MODULES": "acceptance_tasks",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "WORKER_PROCESSES": "1",
        "LOG_FORMAT": "text",
    }
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environ | variables,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield begin
    for program in running:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


@pytest.fixture
def held(bench: Bench, wait_until: Callable[..., Any]) -> Callable[[], Any]:
    """Return a function that sends a task and waits until it runs; it runs until released."""

    def hold() -> Any:
        args = [Arg("string", f"{bench.queue}.go")]
        result = bench.server.send_task(Signature(name="until_released", args=args))

        def runs() -> bool:
            state = result.state
            return state is not None and state.state == "STARTED"

        wait_until(runs, 30, "the task is shown as started")
        return result

    return hold


# -- in threads --------------------------------------------------------------------------------


@pytest.mark.acceptance(58)
def test_looking_every_ten_milliseconds_breaks_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(redis_section={"normal_tasks_poll_period": 10})
    echo = bench.task(lambda number: number, "echo")

    with bench.worker(block_s=0.01):
        values = [echo.send(number).get(timeout=10) for number in range(20)]

    assert values == list(range(20))


@pytest.mark.acceptance(60)
def test_a_worker_that_waits_a_minute_for_work_stops_at_once(
    bench: Bench, wait_until: Callable[..., Any]
) -> None:
    # The bench gives up on a worker after ten seconds.
    with bench.worker(block_s=60.0):
        wait_until(lambda: bench.raw.exists(keys.workers(bench.queue)), 10, "it is registered")

    assert bench.raw.exists(keys.workers(bench.queue)) == 0


@pytest.mark.acceptance(81)
@pytest.mark.leaves("queue")
def test_what_was_taken_and_not_begun_is_back_in_its_order(
    bench: Bench, wait_until: Callable[..., Any]
) -> None:
    ran: list[int] = []
    counts: list[int] = []
    note = bench.task(ran.append, "note")

    with bench.worker() as child:

        def stop() -> None:
            child.stop()
            counts.append(bench.raw.hlen(keys.held(bench.queue, child.worker_id)))
            wait_until(lambda: bench.raw.llen(bench.queue) == 5, 10, "five are given back")

        bench.task(stop, "stop")
        note.send(0).get(timeout=10)
        child._task_s = 0.0001  # tasks have been short, so it takes more at a time than it runs
        behind = (note.s(number) for number in range(1, 6))
        stopping = bench.server.send_group(group(Signature(name="stop"), *behind))
        next(iter(stopping)).get(timeout=10)

    assert counts == [6]
    assert ran == [0]
    pending = bench.server.pending_tasks()
    assert [signature.args[0].value for signature in pending] == [1, 2, 3, 4, 5]


# -- as processes ------------------------------------------------------------------------------


@pytest.mark.acceptance(59)
def test_a_quit_that_comes_before_the_worker_has_begun_counts(start: Start) -> None:
    program = start("-c", QUIT_FIRST)

    said, log = program.communicate(timeout=60)

    assert said == "[0, 0, 0]\n", log


@pytest.mark.acceptance(80)
def test_the_first_signal_lets_what_runs_end_and_says_so(
    bench: Bench, start: Start, held: Callable[[], Any]
) -> None:
    worker = start(WORKER)
    result = held()

    worker.send_signal(signal.SIGTERM)
    bench.raw.rpush(f"{bench.queue}.go", "go")
    _, log = worker.communicate(timeout=30)

    assert worker.returncode == 0
    assert "worker quit gracefully" in log
    assert result.get(timeout=5) == "released"


@pytest.mark.acceptance(82)
@pytest.mark.leaves("queue")
def test_the_second_signal_ends_it_at_once_and_says_so(
    bench: Bench, start: Start, held: Callable[[], Any]
) -> None:
    worker = start(WORKER)
    result = held()

    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)  # two of one kind may arrive as one
    _, log = worker.communicate(timeout=30)

    assert worker.returncode == 1
    assert "worker quit abruptly" in log
    assert [signature.uuid for signature in bench.server.pending_tasks()] == [result.uuid]


@pytest.mark.acceptance(83)
def test_a_program_may_keep_its_signals_to_itself(
    bench: Bench, start: Start, wait_until: Callable[..., Any]
) -> None:
    program = start("-c", OWN_SIGNALS, NO_UNIX_SIGNALS="true")
    roster = keys.workers(bench.queue)
    wait_until(lambda: bench.raw.zcard(roster) == 2, 30, "supervisor and child are there")

    program.send_signal(signal.SIGTERM)
    said, log = program.communicate(timeout=30)

    assert (program.returncode, said) == (0, "mine\n"), log
