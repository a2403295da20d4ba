"""
Serves what a worker's children count, from a process of its own.

The supervisor must stay single-threaded, so that it can fork, and must never wait
for whoever asks. The exporter dies with it, and is started again when it dies alone.
What dead children counted is kept: their files are added up into one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from machine.errors import ConfigError
from machine.runtime.loop import Loop
from machine.telemetry.metrics import require

_log = logging.getLogger("machine.worker")
_LOOK_S = 0.5
#: Seconds that a client may take to ask.
_PATIENCE_S = 5.0
_PATH = "/metrics"
_TEXT = "text/plain; charset=utf-8"
#: Stands for a process id in the names of files with what dead children counted.
_PAST = "0"


class Exporter(Loop):
    """
    The duty to keep the exporter's process running; it listens from the start.

    Args:
        host: Address to listen on.
        port: Its port.
        prepare: Called in the new process: dies with the supervisor, closes what is not its own.

    Raises:
        ConfigError: The library is missing, or the address cannot be had.
    """

    def __init__(self, host: str, port: int, prepare: Callable[[], None]) -> None:
        super().__init__("metrics", _LOOK_S)
        require()
        self._prepare = prepare
        self._owner = os.getpid()
        self._pid = 0
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=16)
        except OSError as error:
            raise ConfigError(
                f"worker_metrics_port={port}: cannot listen on {host}: {error.strerror or error}. "
                "Choose another port, or 0 for no metrics; each worker on a host needs its own."
            ) from None
        try:
            #: Where children write.
            self.directory = tempfile.mkdtemp(prefix="machine-metrics-")
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"worker_metrics_port={port}: there is no directory to count in: "
                f"{error.strerror or error}. Make /tmp writable, or set TMPDIR to one that is."
            ) from None

    def run_once(self, _now_s: float) -> None:
        """Start the process, if it does not run."""
        if self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if not pid:
                return
            _log.warning("the metrics process ended with status %d; another one starts", status)
        self._pid = self._fork()

    def _fork(self) -> int:
        ours = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        pid = os.fork()
        if pid == 0:
            try:
                # It serves until the supervisor has ended, however it was told to.
                for number in ours:
                    signal.signal(number, signal.SIG_IGN)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
                self._prepare()
                serve(self._socket, self.directory)
            except BaseException:  # noqa: BLE001 - nothing may come back into the supervisor's code
                _log.exception("metrics cannot be served")
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        return pid

    def close(self) -> None:
        """End the process and forget what was counted; in a child, let go of the address only."""
        self._socket.close()
        if os.getpid() != self._owner:
            return
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        shutil.rmtree(self.directory, ignore_errors=True)


def serve(listening: socket.socket, directory: str) -> None:
    """Answer on a listening socket for ever, one thread for each who asks."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S
        server_version = "machine"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != _PATH:
                self._answer(404, f"There is nothing here but {_PATH}.\n".encode(), _TEXT)
                return
            try:
                body, kind = exposition(directory)
            except Exception:  # noqa: BLE001 - it has to go on serving
                _log.exception("metrics cannot be read")
                self._answer(500, b"The metrics cannot be read; see the worker's log.\n", _TEXT)
            else:
                self._answer(200, body, kind)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep scrapes out of the log."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
            """Log what would be printed: somebody went away before the answer."""
            _log.debug("a scrape was not answered", exc_info=True)

    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever()


def exposition(directory: str) -> tuple[bytes, str]:
    """Return what all children, living and dead, have counted: Prometheus' text and its type."""
    from prometheus_client import (  # noqa: PLC0415 - an extra
        CollectorRegistry,
        exposition,
        generate_latest,
        multiprocess,
    )

    bury(Path(directory))
    registry = CollectorRegistry()
    made: Any = multiprocess.MultiProcessCollector
    made(registry, path=directory)
    return generate_latest(registry), exposition.CONTENT_TYPE_LATEST


def bury(directory: Path) -> None:
    """
    Add the files of dead children up into one of each kind.

    What a child showed of itself while it lived (gauges) goes; what it counted
    stays. Without this, a worker whose children are replaced often would read
    more and more files.
    """
    for file in sorted(directory.glob("*.db")):
        kind, _, owner = file.stem.rpartition("_")
        if owner == _PAST or _lives(int(owner)):
            continue
        if not kind.startswith("gauge"):
            _add(file, directory / f"{kind}_{_PAST}.db")
        file.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _add(file: Path, past: Path) -> None:
    from prometheus_client import mmap_dict  # noqa: PLC0415 - an extra

    made: Any = mmap_dict.MmapedDict
    sums = made(str(past))
    for key, value, _, _ in made.read_all_values_from_file(str(file)):
        before, _ = sums.read_value(key)
        sums.write_value(key, before + value, 0.0)
    sums.close()
