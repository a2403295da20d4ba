"""
A package index on 127.0.0.1: the wheels it is given, and a newer version of each project.

The newer versions are made up; they stand for whatever is published after a lock was written.
The index remembers which files it was asked for.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

#: Above every version of everybody.
NEWER = "99999"


def normalised(name: str) -> str:
    """Return a project's name as indexes and locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def newer(name: str) -> tuple[str, bytes]:
    """Return (file name, wheel) of a made-up version of a project, which can be installed."""
    stem = f"{name.replace('-', '_')}-{NEWER}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {NEWER}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{stem}.dist-info/RECORD"])
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in (files | {f"{stem}.dist-info/RECORD": record}).items():
            archive.writestr(file, text)
    return f"{stem}-py3-none-any.whl", wheel.getvalue()


class Index:
    """
    The index, served until the end of its ``with``.

    Args:
        wheels: Files to serve as they are.
        names: Further projects, of which there is the newer version only.
    """

    def __init__(self, wheels: Iterable[Path], names: Iterable[str]) -> None:
        self.asked: list[str] = []
        self._files: dict[str, Path | bytes] = {}
        self._pages: defaultdict[str, list[str]] = defaultdict(list)
        for wheel in wheels:
            self._add(wheel.name, wheel)
        for name in self._pages.keys() | set(names):
            self._add(*newer(name))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Return what to call the index in an installer's settings."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/simple"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return (type, body) for a path, ``None`` where there is nothing."""
        place, _, name = path.strip("/").partition("/")
        if place == "simple" and name in self._pages:
            return "text/html", "\n".join(self._pages[name]).encode()
        if place == "files" and name in self._files:
            self.asked.append(name)
            file = self._files[name]
            return "application/zip", file if isinstance(file, bytes) else file.read_bytes()
        return None

    def _add(self, name: str, file: Path | bytes) -> None:
        body = file if isinstance(file, bytes) else file.read_bytes()
        digest = hashlib.sha256(body).hexdigest()
        self._files[name] = file
        page = self._pages[normalised(name.partition("-")[0])]
        page.append(f'<a href="/files/{name}#sha256={digest}">{name}</a><br>')

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kind, body = index.answer(self.path) or ("", b"")
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Say nothing: an installer's own output tells what it did."""

        return Handler
