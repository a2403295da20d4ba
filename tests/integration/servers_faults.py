"""
A proxy before a real server that answers some commands itself, with errors.

It reads requests word by word, so that a test names the command to refuse, be
it one of many in a batch. Everything else, pushes too, passes untouched.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import hiredis

from machine import redis as room
from machine.redis.link import script

_HOST = "127.0.0.1"


def name_of(words: Sequence[bytes]) -> str:
    """Return a command's name; of a script call, the script's."""
    name = words[0].decode().upper()
    return _SCRIPTS.get(words[1].decode(), "?") if name == "EVALSHA" else name


_LUA = Path(room.__file__).parent / "lua"
_SCRIPTS = {script(path.stem).digest: path.stem for path in _LUA.glob("*.lua")}


class FaultyServer:
    """
    Listens on a free port.

    Attributes:
        seen: How often each command came, refused or not.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((_HOST, 0))
        self._lock = threading.Lock()
        self._errors: dict[str, deque[str]] = {}
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.seen: Counter[str] = Counter()

    @property
    def where(self) -> str:
        """Return host and port."""
        return f"{_HOST}:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        """Return the URL of database 0 through this proxy."""
        return f"redis://{self.where}/0"

    def refuse(self, command: str, *errors: str) -> None:
        """Answer the next calls of a command or script with these errors, one each."""
        with self._lock:
            self._errors[command] = deque(errors)

    def __enter__(self) -> Self:
        """Start to listen."""
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        """End all connections."""
        self._end(self._listener)
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            self._end(one)
        for thread in self._threads:
            thread.join(5)
        for one in (self._listener, *self._sockets):
            one.close()

    def _begin(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((_HOST, self._port))
                with self._lock:
                    self._sockets += [client, server]
                self._begin(_Relay(self, client, server).carry_up)

    def error_for(self, words: Sequence[bytes]) -> str:
        """Count a command, and return the error it gets, or ""."""
        name = name_of(words)
        with self._lock:
            self.seen[name] += 1
            errors = self._errors.get(name)
            return errors.popleft() if errors else ""

    @staticmethod
    def _end(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class _Relay:
    """One client's connection."""

    def __init__(self, owner: FaultyServer, client: socket.socket, server: socket.socket) -> None:
        self._owner, self._client, self._server = owner, client, server
        self._answered = threading.Condition()
        self._due = 0
        owner._begin(self._carry_down)

    def carry_up(self) -> None:
        """Pass each command on, or answer it in its turn."""
        reader = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := self._client.recv(1 << 16):
                reader.feed(data)
                while (words := reader.gets()) is not False:
                    error = self._owner.error_for(words)
                    with self._answered:
                        if error:
                            self._answered.wait_for(lambda: self._due <= 0, 5)
                            self._client.sendall(f"-{error}\r\n".encode())
                            continue
                        self._due += 1
                    self._server.sendall(_packed(words))
        self._owner._end(self._server)

    def _carry_down(self) -> None:
        reader = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := self._server.recv(1 << 16):
                reader.feed(data)
                with self._answered:
                    self._client.sendall(data)
                    while (answer := reader.gets()) is not False:
                        self._due -= not isinstance(answer, hiredis.PushNotification)
                    self._answered.notify_all()
        self._owner._end(self._client)


def _packed(words: Sequence[bytes]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        parts += [f"${len(word)}\r\n".encode(), word, b"\r\n"]
    return b"".join(parts)
