"""
Run everything while you write, in one terminal: ``make dev``.

It runs a worker and the HTTP caller, and a Redis of its own if none answers at `broker`. If code
or settings change, it stops the programs they concern by SIGTERM and starts them again. One Ctrl-C
stops all of them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from machine import BrokerUnavailable, MachineError, build
from machine.config import Config
from machine.config.redis_url import RedisAddress
from machine.embedded import HOST, EmbeddedServer, NoServer

ROOT = Path(__file__).resolve().parents[1]
#: Seconds between two looks at the files. A change counts if the next look finds no other one:
#: an editor may still be writing.
LOOK_S = 0.3
#: Variables of the programs, unless the environment has others. A changed task should run soon,
#: so a running one gets 5 s; if that is too short, it runs again on the new code.
QUICK = {"WORKER_SHUTDOWN_TIMEOUT_S": "5", "LOG_FORMAT": "text", "PYTHONUNBUFFERED": "1"}
#: Seconds that a program may take to end beyond what it allows its tasks.
SLACK_S = 5.0
#: Endings and names of files that the programs read, and folders that hold none of them.
SUFFIXES = (".py", ".lua", ".html")
SETTINGS = frozenset({"config.yml", ".env"})
FOREIGN = frozenset(
    {"tests", "tools", "docs", "examples", "benchmarks", "deploy", "build", "dist", "node_modules"}
)
# Reads until our end of the pipe closes; the kernel closes it in whatever way we end.
GUARD = 'read -r _; kill -s KILL -- "-$1"'

_printing = threading.Lock()


def say(who: str, text: str) -> None:
    """Print a line; threads do not mix theirs."""
    with _printing:
        print(f"{who:<6} | {text}", flush=True)


class Service:
    """
    One of our programs: started, stopped and started again.

    It runs in a session of its own, so that the terminal's Ctrl-C does not reach it and we can
    stop it in order. A guard, a shell beside it, kills it if we die by SIGKILL.

    Args:
        name: What its lines begin with.
        script: What to run, relative to the root.
        environ: Its variables.
        patience_s: Seconds to wait for its end before it is killed.
    """

    def __init__(
        self, name: str, script: str, environ: Mapping[str, str], patience_s: float
    ) -> None:
        self.name = name
        self.patience_s = patience_s
        self._command = [sys.executable, script]
        self._environ = environ
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._printer: threading.Thread | None = None

    def start(self) -> None:
        """Start it; whether it can work shows in its own lines."""
        self._process = process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._printer = threading.Thread(target=self._print, args=(process,), daemon=True)
        self._printer.start()
        say("dev", f"{self.name} started: python {self._command[1]}, process {process.pid}")

    def look(self) -> None:
        """Print a line if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            status = self._forget()
            say("dev", f"{self.name} ended with status {status}; the next change starts it again")

    def ask(self) -> None:
        """Ask it to end."""
        if self._process is not None:
            self._process.terminate()

    def end(self, in_a_hurry: Callable[[], bool]) -> bool:
        """Wait until it has ended; say whether that needed no SIGKILL."""
        process = self._process
        if process is None:
            return True
        deadline = time.monotonic() + self.patience_s
        while process.poll() is None:
            if in_a_hurry() or time.monotonic() > deadline:
                say("dev", f"{self.name} is killed")
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._forget()
                return False
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        self._forget()
        return True

    def _forget(self) -> int:
        """Clear up after its end; return its exit status."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if process is None or guard is None or self._printer is None:
            return 0
        # Killed before its pipe closes: else it would signal a group that may be another's by now.
        guard.kill()
        guard.wait()
        if guard.stdin is not None:
            guard.stdin.close()
        status = process.wait()
        self._printer.join(SLACK_S)
        return status

    def _print(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is not None:
            with process.stdout as lines:
                for line in lines:
                    say(self.name, line.rstrip())


class Files:
    """The files that the programs read, with the times of their last changes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known = self._seen = self._times()

    def changed(self) -> set[str]:
        """Return the files changed since the last non-empty answer; none while they change."""
        before, self._seen = self._seen, self._times()
        if self._seen != before or self._seen == self._known:
            return set()
        known, self._known = self._known, self._seen
        return {name for name, _ in known.items() ^ self._known.items()}

    def _times(self) -> dict[str, int]:
        return dict(self._walk(self._root))

    def _walk(self, folder: Path) -> Iterator[tuple[str, int]]:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if self._is_ours(entry):
                        yield from self._walk(Path(entry.path))
                elif entry.name.endswith(SUFFIXES) or entry.name in SETTINGS:
                    with suppress(FileNotFoundError):
                        name = Path(entry.path).relative_to(self._root).as_posix()
                        yield name, entry.stat().st_mtime_ns

    def _is_ours(self, folder: os.DirEntry[str]) -> bool:
        if folder.name.startswith((".", "__")) or (Path(folder.path) / "pyvenv.cfg").exists():
            return False
        return Path(folder.path).parent != self._root or folder.name not in FOREIGN


def concerned(changed: set[str], services: Sequence[Service]) -> list[Service]:
    """Return what starts again: worker/ is the worker's, caller/ the api's, the rest both's."""
    folders = {name.partition("/")[0] for name in changed}
    other = {"worker": "caller", "api": "worker"}
    return [service for service in services if folders - {other[service.name]}]


class Desk:
    """
    The services and the signals that end them.

    Args:
        services: Running or not.
        files: Looked at for changes.
    """

    def __init__(self, services: Sequence[Service], files: Files) -> None:
        self._services = services
        self._files = files
        self._signals = 0

    def catch(self, *_: object) -> None:
        """Take a signal: the first stops everything gently, a second one at once."""
        self._signals += 1

    def run(self) -> int:
        """Start everything and keep it up to date until a signal; return the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.catch)
        for service in self._services:
            service.start()
        while not self._signals:
            time.sleep(LOOK_S)
            for service in self._services:
                service.look()
            changed = self._files.changed()
            if changed and not self._signals:
                self._restart(changed)
        say("dev", "stopping; once more Ctrl-C does not wait")
        status = 0 if self._stop(self._services) else 1
        say("dev", "all stopped")
        return status

    def _restart(self, changed: set[str]) -> None:
        services = concerned(changed, self._services)
        first, *others = sorted(changed)
        names = first if not others else f"{first} and {len(others)} more"
        say("dev", f"{names} changed: {' and '.join(s.name for s in services)} start again")
        self._stop(services)
        if not self._signals:
            for service in services:
                service.start()

    def _stop(self, services: Sequence[Service]) -> bool:
        """Stop them side by side; say whether none had to be killed."""
        for service in services:
            service.ask()
        killed = [service for service in services if not service.end(lambda: self._signals > 1)]
        return not killed


def own_server(config: Config) -> EmbeddedServer | None:
    """
    Return a server for the address of `broker`, not started, or ``None`` where one answers.

    Raises:
        MachineError: None answers, and none could be started there.
    """
    address = config.address(config.broker)
    if address is None:
        raise MachineError(
            f"broker is '{config.broker}', which runs in the caller; make dev needs a Redis: "
            "leave broker out, or name one."
        )
    try:
        build.ping(config)
    except BrokerUnavailable as error:
        plain = RedisAddress(kind="single", hosts=address.hosts, db=address.db)
        if address != plain or address.hosts[0][0] not in {HOST, "localhost"}:
            raise MachineError(
                f"{error} make dev starts a server of its own only for "
                "redis://127.0.0.1:<port>/<db>, without a password."
            ) from error
        return EmbeddedServer(address.hosts[0][1])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C; return 0, 1 if something had to be killed, 2 if nothing could start."""
    argparse.ArgumentParser(prog="make dev", description=main.__doc__).parse_args(arguments)
    environ = QUICK | os.environ
    try:
        config = Config.load(environ=environ)
        server = own_server(config)
        with ExitStack() as stack:
            if server is not None:
                stack.enter_context(server)
                say("dev", f"{server.kind} at {config.broker}; what is in it ends with this")
            patience_s = config.worker_shutdown_timeout_s + SLACK_S
            services = [
                Service("worker", "worker/worker.py", environ, patience_s),
                Service("api", "caller/api.py", environ, patience_s),
            ]
            return Desk(services, Files(ROOT)).run()
    except (MachineError, NoServer) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
