"""Reading requests: the body's bytes within bounds, headers, and the query."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from starlette.requests import Request

from caller.web.bodies import parse_json
from caller.web.idempotency import check_key
from caller.web.problems import Problem
from machine.wire.text import shorten

_PREFERRED: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([^\s,;\"]*)\"?", re.IGNORECASE)
_PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_STATE: Final = re.compile(r"[ -~]{1,512}")
_JSON: Final = re.compile(r"application/json\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)


async def read_json(request: Request, most_bytes: int) -> Any:
    """
    Return the body as JSON; ``{}`` for an empty one.

    The bytes are counted as they come in, so that no more than ``most_bytes`` are ever held.

    Raises:
        Problem: The body is too large, is not JSON, or does not say that it is.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most_bytes:
            raise Problem(
                "too-large",
                f"The body has more than {most_bytes} bytes. Send where the data is, not the data.",
                headers={"Connection": "close"},
            )
        chunks.append(chunk)
    if not size:
        return {}
    kind = request.headers.get("content-type", "")
    if _JSON.fullmatch(kind.strip()) is None:
        raise Problem(
            "not-json", f"Content-Type is {shorten(kind)}; give application/json, in UTF-8."
        )
    try:
        return parse_json(b"".join(chunks), "the body")
    except ValueError as error:
        raise Problem("bad-json", f"The body cannot be read: {error}.") from None


def read_wait_s(request: Request, most_s: float) -> float:
    """Return the seconds that ``?wait=`` asks for, at most ``most_s``; 0 without it."""
    text = request.query_params.get("wait")
    return 0.0 if text is None else min(_seconds(text, "bad-query", "wait"), most_s)


def read_preferred_wait_s(request: Request, most_s: float) -> float:
    """Return the seconds that ``Prefer: wait=`` asks for, at most ``most_s``; 0 without it."""
    found = _PREFERRED.search(request.headers.get("prefer", ""))
    # A preference that cannot be understood is to be ignored (RFC 7240).
    try:
        return min(_seconds(found[1], "bad-header", "Prefer"), most_s) if found else 0.0
    except Problem:
        return 0.0


def read_idempotency_key(request: Request) -> str:
    """Return the ``Idempotency-Key``, "" without one."""
    text = request.headers.get("idempotency-key")
    return "" if text is None else check_key(text)


def read_trace(request: Request) -> dict[str, str]:
    """Return the W3C trace that the request is part of; nothing where it names none."""
    parent, state = (request.headers.get(name, "") for name in ("traceparent", "tracestate"))
    if _PARENT.fullmatch(parent) is None:
        return {}
    known = {"traceparent": parent}
    return {**known, "tracestate": state} if _STATE.fullmatch(state) else known


def read_count(request: Request, name: str, default: int, most: int) -> int:
    """Return a whole number from the query, from 0 to ``most``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or int(text) > most:
        raise Problem("bad-query", f"{name} is {shorten(text)}; give a whole number up to {most}.")
    return int(text)


def has_seen(request: Request, tag: str) -> bool:
    """Say whether ``If-None-Match`` names this version."""
    given = request.headers.get("if-none-match", "")
    return tag in (one.strip().removeprefix("W/") for one in given.split(","))


def _seconds(text: str, code: str, name: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Problem(code, f"{name} is {shorten(text)}; give a number of seconds, 0 or more.")
    return seconds
