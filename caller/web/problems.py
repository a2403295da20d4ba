"""
What can go wrong with a request, as RFC 9457 problem documents.

Every answer that is no success is one of `KINDS`: its code, which the docs
explain, its status and its title. The text says what, which value, and what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from caller.web.responses import ProblemDocument, json_bytes
from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    DuplicateTask,
    MachineError,
    QueueFull,
    ResultNotFound,
    SignatureError,
    WireError,
)
from machine.wire.text import cut_error

_log = logging.getLogger("caller.api")
#: Media type of a problem.
MEDIA_TYPE: Final = "application/problem+json"
#: Seconds after which sending again is worth a try.
RETRY_AFTER_S: Final = 2


class Kind(NamedTuple):
    """One kind of problem: its status, and a title that is always the same."""

    status: int
    title: str


KINDS: Final[Mapping[str, Kind]] = {
    "bad-json": Kind(400, "The body is not JSON as it is read here"),
    "bad-header": Kind(400, "A header cannot be read"),
    "bad-query": Kind(400, "A query parameter cannot be read"),
    "unauthorized": Kind(401, "A token is needed"),
    "cross-site": Kind(403, "Pages of other sites may not do this"),
    "not-found": Kind(404, "There is nothing here"),
    "unknown-task": Kind(404, "No such task"),
    "unknown-result": Kind(404, "No such result"),
    "unknown-group": Kind(404, "No such group"),
    "unreadable": Kind(404, "What is kept under this id is no state of a task"),
    "wrong-method": Kind(405, "This cannot be done here"),
    "ended": Kind(409, "It has ended already"),
    "duplicate": Kind(409, "A task with this unique key has not ended"),
    "key-reused": Kind(409, "The idempotency key belongs to another request"),
    "key-expired": Kind(409, "The result of this idempotency key is not kept any more"),
    "too-large": Kind(413, "The body is too large"),
    "not-json": Kind(415, "The body must be JSON"),
    "invalid": Kind(422, "The request cannot be sent as it is"),
    "queue-full": Kind(429, "The queue takes no more"),
    "internal": Kind(500, "Something went wrong here"),
    "unavailable": Kind(503, "Redis does not answer"),
    "refused": Kind(503, "Redis refused"),
}


class Problem(Exception):
    """
    A request that is answered with a problem document.

    Args:
        code: One of `KINDS`.
        detail: What, which value, and what to do.
        headers: Further ones of the response.
    """

    def __init__(self, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        super().__init__(detail)

    def response(self) -> Response:
        """Return the document, with its status and headers."""
        status, title = KINDS[self.code]
        document: ProblemDocument = {
            "type": f"/docs#{self.code}",
            "title": title,
            "status": status,
            "detail": cut_error(self.detail),
        }
        headers = {"Cache-Control": "no-store"} | self.headers
        return Response(json_bytes(document), status, headers, media_type=MEDIA_TYPE)


#: What an error of the machine is to a client; the first that fits counts.
_ERRORS: Final[tuple[tuple[type[MachineError], str], ...]] = (
    (QueueFull, "queue-full"),
    (BrokerUnavailable, "unavailable"),
    (DuplicateTask, "duplicate"),
    (ResultNotFound, "unknown-result"),
    (WireError, "unreadable"),
    (SignatureError, "invalid"),
    (BrokerRefused, "refused"),
)
_AGAIN: Final = ("queue-full", "unavailable")
#: What a client is told instead of an error's text, which names the server.
_HIDDEN: Final[Mapping[str, str]] = {
    "unavailable": "Redis did not answer, and what was asked may have been done or not. Send it "
    "again later; with an Idempotency-Key it cannot be done twice.",
    "refused": "Redis refused a command; the service's log says why.",
    "internal": "The request failed; the service's log says why.",
}


def problem_of(error: MachineError) -> Problem:
    """Return what an error of the machine means to a client."""
    code = next((code for kind, code in _ERRORS if isinstance(error, kind)), "internal")
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code in _AGAIN else {}
    if isinstance(error, DuplicateTask):
        headers["Location"] = f"/results/{error.uuid}"
    if code in _HIDDEN:
        _log.warning("%s", error)
    return Problem(code, _HIDDEN.get(code, str(error)), headers=headers)


def problem_of_http(error: HTTPException) -> Problem:
    """Return what the router refused: no such path, or not this method."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = headers.get("Allow", "other methods")
        return Problem("wrong-method", f"Here only {allowed} can be used.", headers=headers)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Problem("not-found", "No such path; GET /openapi.json lists them.", headers=headers)
    return Problem("bad-header", error.detail, headers=headers)
