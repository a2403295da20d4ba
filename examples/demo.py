"""
The whole system in one run: a server, two workers, two callers, and a worker that dies.

``make demo`` starts a Redis or Valkey of its own and two workers, runs the
caller and the tour, kills one worker in the middle of a task, and shows that
the other worker finishes it. In the end it stops all that it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import MachineError, build
from machine.config import Config
from machine.embedded import EmbeddedServer, NoServer
from machine.server import Server
from machine.tasks import sleep

ROOT = Path(__file__).resolve().parent.parent
#: Short leases, so that the other worker notices the death after 1.5 s.
SETTINGS = {"WORKER_LEASE_S": "1.5", "WORKER_HEARTBEAT_S": "0.5", "WORKER_BLOCK_S": "0.5"}
PATIENCE_S = 20.0


def main() -> int:
    """Run the demo; return 0 if all of it went well."""
    started_at = time.monotonic()
    try:
        with EmbeddedServer() as redis, tempfile.TemporaryDirectory() as logs:
            print(f"server    {redis.kind} at {redis.url}, process {redis.pid}")
            environ = os.environ | SETTINGS | {"BROKER": redis.url, "LOG_FORMAT": "text"}
            environ.pop("RESULT_BACKEND", None)
            workers = [_start(number, environ, Path(logs)) for number in (1, 2)]
            try:
                status = _show(workers, environ)
            finally:
                statuses = [_stop(worker) for worker in workers]
            if status or any(statuses):
                for log in sorted(Path(logs).iterdir()):
                    print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
            status = int(bool(status) or any(statuses))
    except (NoServer, MachineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"demo {'FAILED' if status else 'ok'}, {time.monotonic() - started_at:.1f} s")
    return status


def _start(number: int, environ: dict[str, str], logs: Path) -> subprocess.Popen[bytes]:
    log = (logs / f"worker-{number}.log").open("wb")
    command = [sys.executable, "worker/worker.py", "-p", "1", "-c", "1", "-n", f"worker-{number}"]
    with log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stderr=log, start_new_session=True
        )
    print(f"worker-{number}  process {process.pid}: python {' '.join(command[1:])}")
    return process


def _show(workers: list[subprocess.Popen[bytes]], environ: dict[str, str]) -> int:
    """Run the caller and the tour, then kill a worker; return 0 if all went well."""
    if _call(environ):
        return 1
    config = Config.load(environ=environ)
    with build.connect(config) as server:
        survived = _kill_worker(workers, server, config)
    return int(not survived)


def _call(environ: dict[str, str]) -> int:
    """Run both callers at once, because the retries of each take 3 s; return 0 if all went well."""
    tour = subprocess.Popen(
        [sys.executable, "examples/tour.py"],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print("caller    python caller/caller.py")
    caller = subprocess.run(
        [sys.executable, "caller/caller.py"], cwd=ROOT, env=environ, check=False
    )
    said, _ = tour.communicate()
    print(f"tour      python examples/tour.py\n{said}", end="")
    return caller.returncode or tour.returncode


def _kill_worker(workers: list[subprocess.Popen[bytes]], server: Server, config: Config) -> bool:
    """Send SIGKILL to the worker that runs a task; say whether the task's result still came."""
    broker = build.broker(config)
    seconds = 1.0
    result = sleep.send(seconds)

    def started() -> bool:
        state = server.get_state(result.uuid)
        return state is not None and state.state == "STARTED"

    _wait_until(started, "the task to start")
    roster = broker.roster(config.default_queue).stamps
    holder = next(w for w in roster if broker.held(config.default_queue, w))
    broker.close()
    # A worker id is host:process:random; the process is a child of one of our two.
    parent = _parent_of(int(holder.split(":")[-2]))
    victim = next(worker for worker in workers if worker.pid == parent)
    print(f"kill -9   process {victim.pid}, in the middle of sleep({seconds})")
    killed_at = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    try:
        value = result.get(timeout=PATIENCE_S)
    except MachineError as error:
        print(f"WRONG     the task was lost: {type(error).__name__}: {error}")
        return False
    took_s = time.monotonic() - killed_at
    print(f"ok        sleep({seconds}) = {value}: the other worker ran it, {took_s:.1f} s later")
    return True


def _parent_of(pid: int) -> int:
    output = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(pid)],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return int(output)


def _wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            message = f"waited {PATIENCE_S:.0f} s for {what}"
            raise MachineError(message)
        time.sleep(0.02)  # it happens in another process, which sends no signal


def _stop(worker: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM to a worker; return 0 if it ended well, or if it is the one that was killed."""
    if worker.poll() is None:
        worker.terminate()
        status = worker.wait(PATIENCE_S)
        print(f"SIGTERM   process {worker.pid} ended with status {status}")
        return status
    return 0 if worker.returncode == -signal.SIGKILL else 1


if __name__ == "__main__":
    sys.exit(main())
