"""
OpenTelemetry: one trace from the caller through the queue to the worker, and on.

The trace context travels in a message's headers in the W3C form (``traceparent``);
Go Machinery put opentracing's form there. Names follow the semantic conventions for
messaging, v1.44.0. These are still in development, so all of them stand in this file.

Exporters are yours: set up a ``TracerProvider`` of the SDK in a module of
``tasks_modules``, and in your caller. Needs the extra ``otel``; imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from machine.errors import ConfigError
from machine.execution import Again, Failed, Outcome, TaskContext
from machine.telemetry import VERSION
from machine.wire.headers import CORRELATION_HEADER, TRACE_HEADERS
from machine.wire.signature import Signature

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

#: The conventions have no name for queues on Redis; this one is the protocol's.
_SYSTEM = "machinery"
#: Longer values cannot travel as headers.
_MOST_CHARACTERS = 1024
#: Milliseconds that a process waits at its end for spans to be exported.
_FLUSH_MS = 5000
_OTHER = "_OTHER"


@dataclass(slots=True)
class TracedRun:
    """The span of a task that runs, and the token that detaches it."""

    span: Span
    token: Any


class Tracing:
    """
    Makes spans around sending and running.

    Args:
        hosts: The server's addresses; spans show the first one.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]] = ()) -> None:
        try:
            from opentelemetry import context, trace  # noqa: PLC0415 - an extra
            from opentelemetry.baggage.propagation import (  # noqa: PLC0415 - an extra
                W3CBaggagePropagator,
            )
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - an extra
                TraceContextTextMapPropagator,
            )
        except ImportError:
            raise ConfigError(
                "tracing is on, and OpenTelemetry is not installed: pip install "
                "'opentelemetry-api' (the extra [otel]), or set tracing to false."
            ) from None
        self._context, self._trace = context, trace
        self._propagators = (TraceContextTextMapPropagator(), W3CBaggagePropagator())
        self._tracer = trace.get_tracer("machine", VERSION)
        self._server: dict[str, Any] = (
            {"server.address": hosts[0][0], "server.port": hosts[0][1]} if hosts else {}
        )

    # -- sending ---------------------------------------------------------------------------
    @contextmanager
    def sending(self, signatures: Sequence[Signature]) -> Iterator[None]:
        """
        Trace one sending: one span, and one more for each of several messages.

        Args:
            signatures: Complete; the trace context is written into their headers.
        """
        kinds, first = self._trace.SpanKind, signatures[0]
        is_batch = len(signatures) > 1
        attributes = self._attributes("send", first.routing_key) | self._server
        if is_batch:
            attributes["messaging.batch.message_count"] = len(signatures)
        else:
            attributes |= _of_message(first)
        with self._tracer.start_as_current_span(
            f"send {first.routing_key}",
            context=None if is_batch else self._parent(first),
            kind=kinds.CLIENT if is_batch else kinds.PRODUCER,
            attributes=attributes,
        ) as span:
            for signature in signatures:
                if is_batch:
                    self._create(signature)
                else:
                    self._inject(signature, None)
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                raise

    def _parent(self, signature: Signature) -> Context | None:
        """Return the context of the message's own ``traceparent``; ``None`` inside a span."""
        if self._trace.get_current_span().get_span_context().is_valid:
            return None
        return self._extract(signature.headers)

    def _create(self, signature: Signature) -> None:
        span = self._tracer.start_span(
            f"create {signature.routing_key}",
            kind=self._trace.SpanKind.PRODUCER,
            attributes=self._attributes("create", signature.routing_key) | _of_message(signature),
        )
        self._inject(signature, self._trace.set_span_in_context(span))
        span.end()

    # -- running ---------------------------------------------------------------------------
    def begin(self, run: TaskContext, queue: str) -> TracedRun:
        """
        Begin the span of a run; call it on the thread and in the asyncio task that runs it.

        The span is a child of the sender's span and linked to it.

        Args:
            run: Gets the ids of trace and span, for log lines.
            queue: Where the message was claimed.
        """
        signature = run.signature
        context = self._extract(signature.headers)
        sender = self._trace.get_current_span(context).get_span_context()
        attributes = self._attributes("process", queue) | self._server | _of_message(signature)
        attributes["machinery.task.attempt"] = run.attempt
        span = self._tracer.start_span(
            f"process {queue}",
            context=context,
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=[self._trace.Link(sender)] if sender.is_valid else None,
        )
        ids = span.get_span_context()
        if ids.is_valid:
            run.trace = (format(ids.trace_id, "032x"), format(ids.span_id, "016x"))
        return TracedRun(span, self._context.attach(self._trace.set_span_in_context(span, context)))

    def end(self, traced: TracedRun, run: TaskContext, outcome: Outcome) -> Signature:
        """
        End the span of a run; call it where `begin` was called.

        Returns:
            The signature to settle. Its headers carry this span, so that the spans of
            its callbacks become children of this one.
        """
        self._context.detach(traced.token)
        signature = run.signature
        if isinstance(outcome, Failed | Again):
            traced.span.set_attribute("error.type", run.error_type or _OTHER)
            traced.span.set_status(self._trace.StatusCode.ERROR, outcome.error[:_MOST_CHARACTERS])
        if not isinstance(outcome, Again) and (
            signature.on_success or signature.on_error or signature.chord_callback is not None
        ):
            signature = signature.replace(headers=dict(signature.headers or {}))
            self._inject(signature, self._trace.set_span_in_context(traced.span))
        traced.span.end()
        return signature

    def flush(self) -> None:
        """Export what the SDK still holds: our processes end without its exit hooks."""
        flush = getattr(self._trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush(_FLUSH_MS)

    # -- the wire --------------------------------------------------------------------------
    def _extract(self, headers: Mapping[str, Any] | None) -> Context:
        """Return the trace context of a message; an empty one if its headers hold no valid one."""
        carrier = {n: headers[n] for n in TRACE_HEADERS if n in headers} if headers else {}
        texts = {name: value for name, value in carrier.items() if isinstance(value, str)}
        context = self._context.Context()
        for propagator in self._propagators:
            context = propagator.extract(texts, context)
        return context

    def _inject(self, signature: Signature, context: Context | None) -> None:
        carrier: dict[str, str] = {}
        for propagator in self._propagators:
            propagator.inject(carrier, context)
        headers = signature.headers if signature.headers is not None else {}
        for name in TRACE_HEADERS[:2]:  # both are of the new trace, or removed
            headers.pop(name, None)
        headers |= {n: value for n, value in carrier.items() if len(value) <= _MOST_CHARACTERS}
        signature.headers = headers

    @staticmethod
    def _attributes(operation: str, queue: str) -> dict[str, Any]:
        return {
            "messaging.system": _SYSTEM,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": queue,
        }


def _of_message(signature: Signature) -> dict[str, Any]:
    found = {
        "messaging.message.id": signature.uuid,
        "machinery.task.name": signature.name,
    }
    conversation = signature.header(CORRELATION_HEADER) or signature.group_uuid
    if conversation:
        found["messaging.message.conversation_id"] = conversation
    return found
