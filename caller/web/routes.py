"""
The endpoints: each reads its request, asks the `Service`, and answers.

`make_app` puts them behind the `Middleware`, with any further routes of the
service itself, such as metrics.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from caller.web import requests
from caller.web.middleware import Middleware, Tokens, is_loopback
from caller.web.openapi import openapi
from caller.web.page import page
from caller.web.problems import RETRY_AFTER_S, Problem
from caller.web.responses import (
    SentTask,
    SentWorkflow,
    content_of,
    digest,
    reply,
    state_document,
)
from caller.web.service import SendRequest, SentPieces, Service
from caller.web.task_schema import Schema
from caller.web.workflows import Composer
from machine.config import Config
from machine.wire.headers import CORRELATION_HEADER
from machine.wire.signature import State, TaskState

#: Bytes of a body beyond the message that it becomes: names and spaces.
SLACK_BYTES: Final = 16_384
#: Paths that need no token: they tell nothing about tasks.
OPEN_PATHS: Final = ("/livez", "/readyz", "/docs")
_MOST_SHOWN: Final = 1000


class Endpoints:
    """
    The handlers of one service.

    Args:
        service: Sends, reads and cancels.
        config: The settings.
    """

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        self._wait_s = config.api_wait_s
        self._most_bytes = config.max_message_bytes + SLACK_BYTES
        self._tasks = {"tasks": [_task_document(service, name) for name in service.tasks]}
        self._openapi = openapi(
            service.tasks, service.queues, title="Tasks", needs_token=bool(config.api_token)
        )

    def routes(self) -> list[Route]:
        """Return a route for each endpoint."""
        return [
            Route("/tasks", self.tasks, methods=["GET"]),
            Route("/tasks/{name:path}", self.send_task, methods=["POST"]),
            Route("/chains", partial(self.send_workflow, compose=Composer.chain), methods=["POST"]),
            Route("/groups", partial(self.send_workflow, compose=Composer.group), methods=["POST"]),
            Route("/chords", partial(self.send_workflow, compose=Composer.chord), methods=["POST"]),
            Route("/results/{id}", self.result, methods=["GET"]),
            Route("/results/{id}", self.cancel, methods=["DELETE"]),
            Route("/results/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/results/{id}/events", self.events, methods=["GET"]),
            Route("/groups/{id}", self.group, methods=["GET"]),
            Route("/groups/{id}", self.cancel_group, methods=["DELETE"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", page, methods=["GET"]),
            Route("/livez", self.livez, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    # -- sending ---------------------------------------------------------------------------
    async def send_task(self, request: Request) -> Response:
        """Send a task: 202, or 200 with its result where the client prefers to wait."""
        name = request.path_params["name"]
        sending = await self._read(request)
        uuid = await self._service.send_task(name, sending)
        wait_s = requests.read_preferred_wait_s(request, self._wait_s)
        state = None
        if wait_s or sending.key:
            state = await self._service.result(uuid, wait_s)
        if state is not None and wait_s and state.is_completed:
            return _ended(state, wait_s)
        location = _result_path(uuid)
        document: SentTask = {
            "id": uuid,
            "task": name,
            "state": str(State.PENDING if state is None else state.state),
            "location": location,
            "events": f"{location}/events",
        }
        return reply(document, 202, {"Location": location, **_preferred(wait_s)})

    async def send_workflow(
        self, request: Request, compose: Callable[[Composer, Any], Any]
    ) -> Response:
        """Send what a method of the composer reads: 202, or 200 as `send_task`."""
        sending = await self._read(request)
        sent = await self._service.send_workflow(sending, compose)
        wait_s = requests.read_preferred_wait_s(request, self._wait_s) if sent.uuid else 0.0
        if wait_s:
            state = await self._service.result(sent.uuid, wait_s)
            if state.is_completed:
                return _ended(state, wait_s)
        document = _sent_document(sent)
        headers = {"Location": document["location"], **_preferred(wait_s)}
        return reply(document, 202, headers)

    async def _read(self, request: Request) -> SendRequest:
        key = requests.read_idempotency_key(request)
        body = await requests.read_json(request, self._most_bytes)
        state = request.state
        carried = {CORRELATION_HEADER: state.request_id, **requests.read_trace(request)}
        return SendRequest(request.url.path, body, carried, state.subject, key)

    # -- reading ---------------------------------------------------------------------------
    async def result(self, request: Request) -> Response:
        """Return a task's state, perhaps after waiting for its end."""
        wait_s = requests.read_wait_s(request, self._wait_s)
        state = await self._service.result(request.path_params["id"], wait_s)
        document = state_document(state)
        tag = f'"{digest(content_of(document))}"'
        if requests.has_seen(request, tag):
            return Response(None, 304, {"ETag": tag, "Cache-Control": "no-store"})
        return reply(document, headers={"ETag": tag})

    async def events(self, request: Request) -> Response:
        """Return a task's changes as a stream that ends with the task."""
        uuid = request.path_params["id"]
        seen = request.headers.get("last-event-id", "")
        state = await self._service.result(uuid)
        if state.is_completed and digest(content_of(state_document(state))) == seen:
            return Response(None, 204)  # this tells a browser not to come back
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        kind = "text/event-stream"
        if request.method == "HEAD":
            return Response(None, 200, headers, media_type=kind)
        stream = self._service.following.events(uuid, state, seen)
        return StreamingResponse(stream, 200, headers, media_type=kind)

    async def group(self, request: Request) -> Response:
        """Return a group's progress, and the states of some members."""
        offset = requests.read_count(request, "offset", 0, 999_999_999)
        limit = requests.read_count(request, "limit", 100, _MOST_SHOWN)
        part = slice(offset, offset + limit)
        return reply(await self._service.group(request.path_params["id"], part))

    # -- canceling -------------------------------------------------------------------------
    async def cancel(self, request: Request) -> Response:
        """Cancel a task and return its state."""
        return reply(state_document(await self._service.cancel(request.path_params["id"])))

    async def cancel_group(self, request: Request) -> Response:
        """Cancel a group's members and return their states."""
        uuid = request.path_params["id"]
        await self._service.cancel_group(uuid)
        return reply(await self._service.group(uuid, slice(0, 100)))

    # -- the service itself ----------------------------------------------------------------
    async def tasks(self, _request: Request) -> Response:
        """Return the tasks that can be sent."""
        return reply(self._tasks)

    async def openapi(self, _request: Request) -> Response:
        """Return the description of all this."""
        return reply(self._openapi)

    async def livez(self, _request: Request) -> Response:
        """Say that the process is alive."""
        return reply({"status": "alive"})

    async def readyz(self, _request: Request) -> Response:
        """Say whether Redis answers."""
        if await self._service.ready():
            return reply({"status": "ready"})
        raise Problem(
            "unavailable",
            "Redis did not answer within a second.",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


def make_app(service: Service, config: Config, more: Sequence[BaseRoute] = ()) -> ASGIApp:
    """
    Return the application of one replica; it closes the service when it ends.

    Args:
        service: Sends, reads and cancels.
        config: The settings.
        more: Further routes of the service itself.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    routes = [*Endpoints(service, config).routes(), *more]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    is_local = is_loopback(config.api_host) and not config.api_open
    return Middleware(router, Tokens(config.api_token), OPEN_PATHS, is_local=is_local)


def _task_document(service: Service, name: str) -> Schema:
    schema = service.tasks[name]
    return {
        "name": name,
        "doc": schema.doc,
        "queue": schema.task.queue or service.server.config.default_queue,
        "parameters": [
            {
                "name": parameter.name,
                "required": parameter.required,
                "kind": parameter.kind.name.lower(),
                "schema": parameter.schema(),
            }
            for parameter in schema.parameters
        ],
        "result": schema.result,
        "location": f"/tasks/{quote(name)}",
    }


def _result_path(uuid: str) -> str:
    return f"/results/{quote(uuid, safe='')}"


def _sent_document(sent: SentPieces) -> SentWorkflow:
    group_path = f"/groups/{quote(sent.group_uuid, safe='')}"
    return {
        "id": sent.uuid or sent.group_uuid,
        "location": _result_path(sent.uuid) if sent.uuid else group_path,
        "group": group_path,
        "tasks": [
            {"id": uuid, "task": name, "location": _result_path(uuid)} for uuid, name in sent.tasks
        ],
    }


def _ended(state: TaskState, wait_s: float) -> Response:
    headers = {"Content-Location": _result_path(state.task_uuid), **_preferred(wait_s)}
    return reply(state_document(state), 200, headers)


def _preferred(wait_s: float) -> dict[str, str]:
    return {"Preference-Applied": f"wait={wait_s:g}"} if wait_s else {}
