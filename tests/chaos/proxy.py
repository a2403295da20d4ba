"""
A TCP proxy between a client and a real server, that loses what it is told to lose.

It knows requests only as the bytes a client writes at once (the machine writes
each batch in one go), and answers as whatever comes back.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

_HOST = "127.0.0.1"


@dataclass
class _Loss:
    """Lose one request, or its answer: the ``skip``-th next one that contains these bytes."""

    containing: bytes
    skip: int
    answer: bool
    happened: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """
    Listens on a free port and passes everything on, except what `lose` names.

    A lost *request* never reaches the server. A lost *answer* was carried out:
    the server's reply is read to its end and thrown away. Both end the
    client's connection, as a broken network does.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((_HOST, 0))
        self._lock = threading.Lock()
        self._loss: _Loss | None = None
        self._sockets: set[socket.socket] = set()
        self._clients: set[socket.socket] = set()
        self._is_closed = False
        self.requests = 0

    @property
    def url(self) -> str:
        """Return the URL of database 0 through this proxy."""
        return f"redis://{_HOST}:{self._listener.getsockname()[1]}/0"

    def lose(
        self, containing: bytes | str = b"", *, skip: int = 0, answer: bool = True
    ) -> threading.Event:
        """Arm one loss; the event is set when it has happened."""
        text = containing.encode() if isinstance(containing, str) else containing
        with self._lock:
            self._loss = _Loss(text, skip, answer)
            return self._loss.happened

    def cut(self) -> None:
        """End every client's connection, now."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            _end(client)

    def __enter__(self) -> Self:
        """Start to listen."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            # A blocked accept() is woken by a connection, not by a close().
            socket.create_connection((_HOST, self._listener.getsockname()[1])).close()
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            _end(one)

    # -- one connection ------------------------------------------------------------------------
    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((_HOST, self._port))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
                self._clients.add(client)
            deaf = threading.Event()
            for target in (self._carry_up, self._carry_down):
                threading.Thread(target=target, args=(client, server, deaf), daemon=True).start()

    def _carry_up(
        self, client: socket.socket, server: socket.socket, deaf: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                loss = self._matching(data)
                if loss is not None and not loss.answer:
                    loss.happened.set()
                    break
                if loss is not None:
                    deaf.set()
                server.sendall(data)
        if not deaf.is_set():
            _end(server)
        self._forget(client)

    def _carry_down(
        self, client: socket.socket, server: socket.socket, deaf: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if deaf.is_set():
                    # Carried out. The server stays connected, and its answers go nowhere.
                    _end(client)
                    self._happened()
                else:
                    client.sendall(data)
        self._forget(server)
        _end(client)

    def _matching(self, data: bytes) -> _Loss | None:
        with self._lock:
            self.requests += 1
            loss = self._loss
            if loss is None or loss.happened.is_set() or loss.containing not in data:
                return None
            loss.skip -= 1
            return loss if loss.skip == -1 else None

    def _happened(self) -> None:
        with self._lock:
            if self._loss is not None:
                self._loss.happened.set()

    def _forget(self, one: socket.socket) -> None:
        _end(one)
        with self._lock:
            self._sockets.discard(one)
            self._clients.discard(one)
        one.close()


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
