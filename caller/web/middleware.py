"""
What surrounds every request: its id, the token, problems for errors, headers, one log line.

Plain ASGI, so that streams pass through chunk by chunk.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caller.web.problems import Problem, problem_of, problem_of_http
from machine.errors import MachineError
from machine.wire.text import shorten

_log = logging.getLogger("caller.api")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
#: Methods that change nothing.
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
#: Of every response. There is no HTML but the page of docs, which has a policy of its own.
_SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def is_loopback(host: str) -> bool:
    """Say whether this host is this machine, reachable by nobody else."""
    return _LOOPBACK.fullmatch(host) is not None


def host_of(header: str) -> str:
    """Return the host in a ``Host`` header, without its port; "" where there is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Tokens:
    """
    The tokens that let clients in; without any, everybody may come in.

    Args:
        text: One token, or several separated by commas, so that they can be changed in turn.
    """

    def __init__(self, text: str) -> None:
        self._tokens = [token.strip().encode() for token in text.split(",") if token.strip()]

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def subject(self, authorization: str) -> str:
        """
        Return a digest of the token in this header; "" where none is needed.

        Raises:
            Problem: The token is missing or wrong.
        """
        if not self._tokens:
            return ""
        scheme, _, shown = authorization.partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape")
        # All are compared, so that the time tells nothing about which one was close.
        good = [hmac.compare_digest(token, given) for token in self._tokens]
        if scheme.lower() == "bearer" and any(good):
            return hashlib.sha256(given).hexdigest()[:16]
        how = "wrong" if authorization else "missing"
        raise Problem(
            "unauthorized",
            f"The token is {how}; send the header 'Authorization: Bearer <token>'.",
            headers={"WWW-Authenticate": 'Bearer realm="tasks"'},
        )


def refuse_other_sites(method: str, headers: Headers, *, is_local: bool) -> None:
    """
    Refuse a request that a page of another site makes a browser send; for use without tokens.

    Browsers name the site that a request comes from. Other programs do not, and are let in.

    Args:
        method: Of the request.
        headers: Of the request.
        is_local: Whether the service is for this machine only. Then its name must be
            this machine's, or another site's name could be pointed at it.

    Raises:
        Problem: It comes from another site.
    """
    host = headers.get("host", "")
    if is_local and not is_loopback(host_of(host)):
        raise Problem(
            "cross-site",
            f"Host is {shorten(host)}, which is not this machine; call it localhost, set "
            "api_token, or say api_open: true where a proxy asks who comes.",
        )
    if method in _SAFE:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_own = site in ("same-origin", "none") if site else origin == f"{_scheme(origin)}://{host}"
    if (site or origin) and not is_own:
        raise Problem(
            "cross-site",
            f"The request comes from a page of {shorten(origin or 'another site')}; without a "
            "token only pages of this service may send. Set api_token, and let the page show it.",
        )


def _scheme(origin: str | None) -> str:
    return (origin or "").partition("://")[0]


class Middleware:
    """
    The outermost layer of the service.

    It writes ``request_id`` and ``subject`` into the request's state.

    Args:
        app: What is inside.
        tokens: Who may come in.
        open_paths: Paths that need no token.
        is_local: Whether the service is for this machine only.
    """

    def __init__(
        self, app: ASGIApp, tokens: Tokens, open_paths: Collection[str], *, is_local: bool
    ) -> None:
        self._app = app
        self._is_local = is_local
        self._tokens = tokens
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP goes straight inside."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        answer = _Answer(send, request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["app"] = self  # so that the router raises what it refuses
        try:
            scope["state"]["subject"] = self._subject(scope, headers)
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            return  # nobody is left to be told
        except Exception as error:
            problem = _problem_of(error)
            if answer.status:
                raise  # the answer has begun: all that can be done is to break it off
            await problem.response()(scope, receive, answer)
        finally:
            _log.log(
                logging.DEBUG if scope["path"] in ("/livez", "/readyz") else logging.INFO,
                "%s %s %d in %.1f ms (request %s)",
                *(scope["method"], scope["path"], answer.status),
                (time.monotonic() - started_at) * 1000,
                request_id,
            )

    def _subject(self, scope: Scope, headers: Headers) -> str:
        if scope["path"] in self._open_paths:
            return ""
        if not self._tokens:
            refuse_other_sites(scope["method"], headers, is_local=self._is_local)
        return self._tokens.subject(headers.get("authorization", ""))


class _Answer:
    """Sends the answer with the headers that every answer has, and keeps its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status = 0
        self._send = send
        self._request_id = request_id

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
        await self._send(message)


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return problem_of_http(error)
    if isinstance(error, MachineError):
        return problem_of(error)
    _log.error("A request failed: %r", error, exc_info=error)
    return problem_of(MachineError())
