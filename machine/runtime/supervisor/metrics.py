"""
Serves the metrics of a worker's children, from a process of its own.

The supervisor must stay single-threaded, so that it can fork, and must never wait
for an HTTP client. The exporter's process dies with the supervisor, and the supervisor
starts it again if it dies alone. The counts of dead children are kept: their files are
added up into one of each kind.
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
#: Seconds that a client may take to send its request.
_PATIENCE_S = 5.0
_PATH = "/metrics"
_TEXT = "text/plain; charset=utf-8"
#: Stands for the process id in the names of the files with the counts of dead children.
_PAST = "0"


class Exporter(Loop):
    """
    Keeps the exporter's process running; its address is taken when this is made.

    Args:
        host: Address to listen on.
        port: Its port.
        prepare: Called first in the new process: has it die with the supervisor, and
            closes connections that it inherited.

    Raises:
        ConfigError: The library is missing, the address is in use, or no directory for
            the children's files can be made.
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
            #: Where the children write their counts.
            self.directory = tempfile.mkdtemp(prefix="machine-metrics-")
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"worker_metrics_port={port}: there is no directory to count in: "
                f"{error.strerror or error}. Make /tmp writable, or set TMPDIR to one that is."
            ) from None

    def run_once(self, _now_s: float) -> None:
        """Start the process if it is not running."""
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
                # A stop signal for the whole process group must not end it before the supervisor.
                for number in ours:
                    signal.signal(number, signal.SIG_IGN)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
                self._prepare()
                serve(self._socket, self.directory)
            except BaseException:  # noqa: BLE001 - the child must never return into the supervisor's code
                _log.exception("metrics cannot be served")
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        return pid

    def close(self) -> None:
        """End the process and delete the counts. In a forked child: close the socket only."""
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
    """Answer on a listening socket for ever, one thread for each connection."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S
        server_version = "machine"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != _PATH:
                self._answer(404, f"There is nothing here but {_PATH}.\n".encode(), _TEXT)
                return
            try:
                body, kind = render_metrics(directory)
            except Exception:  # noqa: BLE001 - the next scrape may succeed
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
            """Log nothing: the log is not for scrapes."""

    class MetricsServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
            """Log what the library would print: the client closed before the answer."""
            _log.debug("a scrape was not answered", exc_info=True)

    server = MetricsServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever()


def render_metrics(directory: str) -> tuple[bytes, str]:
    """Return the sums over all children, living and dead: Prometheus' text and its type."""
    from prometheus_client import (  # noqa: PLC0415 - an extra
        CollectorRegistry,
        exposition,
        generate_latest,
        multiprocess,
    )

    merge_dead_files(Path(directory))
    registry = CollectorRegistry()
    made: Any = multiprocess.MultiProcessCollector
    made(registry, path=directory)
    return generate_latest(registry), exposition.CONTENT_TYPE_LATEST


def merge_dead_files(directory: Path) -> None:
    """
    Add up the files of dead children into one of each kind.

    Counters and histograms stay; gauges describe a living child and are deleted.
    Without this, a worker whose children are replaced often would read more and
    more files at each scrape.
    """
    for file in sorted(directory.glob("*.db")):
        kind, _, owner = file.stem.rpartition("_")
        if owner == _PAST or _is_alive(int(owner)):
            continue
        if not kind.startswith("gauge"):
            _add_counts(file, directory / f"{kind}_{_PAST}.db")
        file.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _add_counts(file: Path, past: Path) -> None:
    from prometheus_client import mmap_dict  # noqa: PLC0415 - an extra

    made: Any = mmap_dict.MmapedDict
    sums = made(str(past))
    for key, value, _, _ in made.read_all_values_from_file(str(file)):
        before, _ = sums.read_value(key)
        sums.write_value(key, before + value, 0.0)
    sums.close()
