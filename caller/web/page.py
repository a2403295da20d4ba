"""
``/docs``: one page that lists the tasks and can try them.

It holds no data: its script fetches ``/openapi.json`` with the token that is
typed into it, and writes everything as text. Only this script and this style
may run, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from caller.web.problems import KINDS


def page(_request: Request) -> Response:
    """Return the page."""
    content, policy = _made()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(content, 200, headers, media_type="text/html; charset=utf-8")


@cache
def _made() -> tuple[str, str]:
    """Return the page, and the policy that lets its own parts run and nothing else."""
    text = resources.files("caller.web").joinpath("page.html").read_text(encoding="utf-8")
    rows = "".join(
        f'<tr id="{code}"><td>{kind.status}</td><td>{code}</td><td>{html.escape(kind.title)}</td>'
        "</tr>"
        for code, kind in KINDS.items()
    )
    content = text.replace("<!-- problems -->", rows)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(content, 'script')}'",
            f"style-src '{_digest(content, 'style')}'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return content, policy


def _digest(content: str, tag: str) -> str:
    inner = content.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}"
