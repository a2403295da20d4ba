"""
``/metrics``: what this replica sent, and what Redis says of the queues.

Only where the extra ``metrics`` is installed; elsewhere there is no such path.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from caller.web.service import Service
from machine.registry import Registry
from machine.telemetry.metrics import SentMetrics
from machine.telemetry.queues import exposition


def counter(registry: Registry) -> SentMetrics | None:
    """Return what counts the tasks sent; ``None`` where the library is not installed."""
    if find_spec("prometheus_client") is None:
        return None
    return SentMetrics(registry.__contains__)


def route(service: Service, sent: SentMetrics) -> Route:
    """Return the endpoint; it answers without the queues while Redis is away."""

    async def metrics(_request: Request) -> Response:
        body, kind = await asyncio.to_thread(
            exposition,
            *(sent, service.server.broker, service.backend, service.queues),
        )
        return Response(body, 200, {"Cache-Control": "no-store", "Content-Type": kind})

    return Route("/metrics", metrics, methods=["GET"])
