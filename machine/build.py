"""
The one place that turns a Config into objects.

Everything else is given what it needs; only here are URL schemes, adapters and
rooms on both sides of the queue seen together.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from machine.config import Config
from machine.config.queues import read_queue_names, read_queue_weights
from machine.config.redis_url import parse_address
from machine.embedded import NoServer, shared_url
from machine.errors import ConfigError
from machine.periodic.entries import Entry
from machine.ports.backend import Backend, NullBackend
from machine.ports.broker import Broker
from machine.ports.clock import SystemClock
from machine.ports.periodic import Lock, Ticker
from machine.redis.backend import RedisBackend
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections, Limits
from machine.redis.inline import InlineBroker, InlineTicker
from machine.redis.lock import RedisLock
from machine.redis.periodic import RedisTicker
from machine.redis.roles import QueueSettings
from machine.registry import Registry
from machine.runtime.child.child import Ways
from machine.runtime.child.instruments import Watch
from machine.runtime.inline import InlineRunner
from machine.runtime.settle import Terms
from machine.runtime.supervisor.scheduler import Scheduler, Write
from machine.runtime.supervisor.timetable import TimetableInbox
from machine.runtime.supervisor.worker import Live, Parts, Plan, Worker
from machine.sending.messages import MessageMaker
from machine.sending.periodic import complete_entries
from machine.sending.sending import SendInstrument
from machine.server import Server
from machine.telemetry.metrics import TaskMetrics
from machine.telemetry.tracing import Tracing
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.signature import Signature

#: Machinery's timeouts are 15 s; a server that answers at all answers sooner than this.
_MOST_ANSWER_S = 5.0
_MOST_CONNECT_S = 2.0


def connect(config: Config | None = None) -> Server:
    """
    Return a server with the tasks of ``tasks_modules`` bound to it.

    Args:
        config: The settings; by default those of the environment and the files.
    """
    config = config or Config.load()
    registry = Registry()
    registry.collect(*config.tasks_modules)
    return server(config, registry)


def server(
    config: Config,
    registry: Registry | None = None,
    *,
    retry_s: float = 30.0,
    instruments: Sequence[SendInstrument] = (),
) -> Server:
    """
    Return a server for callers; nothing connects before the first use.

    Args:
        config: The settings.
        registry: The tasks known; a new one by default.
        retry_s: Seconds that sending and reading keep trying while Redis is away.
        instruments: Count what it sends, like `telemetry.metrics.SentMetrics`. Messages then say
            when they were sent, so that workers can tell how long they waited.
    """
    registry = Registry() if registry is None else registry
    if config.broker == "eager":
        return _eager_server(config, registry, instruments)
    queues, results = broker(config, retry_s=retry_s), backend(config, retry_s=retry_s)
    made = Server(
        config,
        queues,
        results,
        registry,
        instruments=_instruments(config, instruments),
        stamps=bool(instruments),
    )
    made.worker_factory = lambda owner, name, concurrency: worker(
        _fixed(config, worker_processes=1, worker_concurrency=concurrency),
        name=name,
        registry=owner.registry,
    )
    made.scheduler_factory = lambda owner: _scheduler_of(owner, ticker(config))
    made.ticker = ticker(config)
    return made


def _instruments(config: Config, given: Sequence[SendInstrument]) -> list[SendInstrument]:
    return [*given, tracing(config)] if config.tracing else [*given]


def _eager_server(
    config: Config, registry: Registry, instruments: Sequence[SendInstrument]
) -> Server:
    url = _own_url()
    settings = QueueSettings.of(config)
    queues = InlineBroker(Connections(parse_address(url)), settings)
    results = RedisBackend(
        Connections(parse_address(url)), results_expire_s=config.results_expire_in
    )
    clock = SystemClock()

    def periodic() -> InlineTicker:
        return InlineTicker(Connections(parse_address(url)), settings, queues, clock)

    made = Server(
        config,
        queues,
        results,
        registry,
        instruments=_instruments(config, instruments),
        stamps=bool(instruments),
    )
    watch = _watch(config, "", "")
    made.after_enqueue = InlineRunner(
        queues, results, registry, terms(config), clock, lambda: queues.queues, watch
    ).run
    made.ticker = periodic()
    made.scheduler_factory = lambda owner: _scheduler_of(owner, periodic())
    return made


def _own_url(database: int | None = None) -> str:
    """Return the URL of a database on this process's own server, which starts now if need be."""
    try:
        return shared_url(database)
    except NoServer as error:
        raise ConfigError(
            f"broker, result_backend or lock is 'eager', which runs on a private server: {error}"
        ) from error


def connections(config: Config, url: str, *, retry_s: float = 30.0) -> Connections:
    """
    Return links to the server of a URL, none open yet.

    Args:
        config: For timeouts, sentinels and TLS.
        url: ``redis://…`` and its relatives.
        retry_s: Seconds that a caller keeps trying.
    """
    address = config.address(url)
    if address is None:
        raise ConfigError(f"'{url}' is no Redis URL; it cannot be connected to.")
    redis = config.redis
    return Connections(
        address,
        limits=Limits(
            connect_s=min(redis.connect_timeout or _MOST_CONNECT_S, _MOST_CONNECT_S),
            answer_s=min(redis.read_timeout or _MOST_ANSWER_S, _MOST_ANSWER_S),
            retry_s=retry_s,
        ),
        client_name=redis.client_name,
        master_name=redis.master_name,
        sentinel_password=redis.sentinel_password,
        tls=_tls(config),
    )


def _tls(config: Config) -> dict[str, Any]:
    """Return redis-py's TLS arguments: the server's name and certificate are checked."""
    import ssl  # noqa: PLC0415 - 10 ms, only where it is used

    redis = config.redis
    settings: dict[str, Any] = {
        "ssl_cert_reqs": "none" if redis.tls_insecure else "required",
        "ssl_check_hostname": not redis.tls_insecure,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }
    given = {
        "ssl_ca_certs": redis.tls_ca_file,
        "ssl_certfile": redis.tls_cert_file,
        "ssl_keyfile": redis.tls_key_file,
    }
    return settings | {name: path for name, path in given.items() if path}


def keeps_states(config: Config) -> bool:
    """Say whether results are on the broker's own server, so that one script writes both."""
    return config.backend_url == config.broker


def broker(config: Config, *, for_worker: bool = False, retry_s: float = 30.0) -> RedisBroker:
    """Return the broker; a worker's waits for an absent server in its own loops."""
    links = connections(config, config.broker, retry_s=retry_s)
    return RedisBroker(links, QueueSettings.of(config, is_worker=for_worker))


def backend(config: Config, *, for_worker: bool = False, retry_s: float = 30.0) -> Backend:
    """Return the result backend."""
    url = config.backend_url
    if url == "null":
        return NullBackend()
    if url == "eager":
        raise ConfigError(
            "result_backend is 'eager', which lives in one process, and the broker does not; "
            "use a Redis URL, or 'null' for no results."
        )
    links = connections(config, url, retry_s=0.0 if for_worker else retry_s)
    return RedisBackend(links, results_expire_s=config.results_expire_in)


def ticker(config: Config, *, for_worker: bool = False) -> RedisTicker:
    """Return the timetable's marks, on connections of their own."""
    links = connections(config, config.broker, retry_s=0.0 if for_worker else 30.0)
    return RedisTicker(links, QueueSettings.of(config))


def lock(config: Config) -> Lock | None:
    """Return Machinery's lock for periodic tasks, where they are shared with Go."""
    if not config.periodic_program:
        return None
    if config.lock_url == "eager":
        # As in Machinery, one lock for the whole process.
        return RedisLock(Connections(parse_address(_own_url(0))))
    return RedisLock(connections(config, config.lock_url, retry_s=0.0))


def _scheduler_of(owner: Server, marks: Ticker) -> Scheduler:
    """Return a scheduler of what is registered at a server, in the server's own process."""
    maker = MessageMaker.of(owner.config, owner.registry, keeps_states=owner.broker.keeps_states)

    def write(signatures: Sequence[Signature]) -> Any:
        if owner.before_publish is not None:
            for signature in signatures:
                owner.before_publish(signature)
        return maker.make(signatures, time.time_ns())

    def sent() -> None:
        if owner.after_enqueue is not None:
            owner.after_enqueue()

    store = owner.backend or NullBackend()
    return _scheduler(owner.config, marks, store, owner.timetable, write, sent)


def _scheduler(
    config: Config,
    marks: Ticker,
    store: Backend,
    entries: Callable[[], Sequence[Entry]],
    write: Write,
    on_sent: Callable[[], None] = lambda: None,
) -> Scheduler:
    return Scheduler(
        *(marks, store, config.default_queue, entries, write),
        lock=lock(config),
        program=config.periodic_program,
        on_sent=on_sent,
        writes_ahead=config.interop_groups,
    )


def terms(config: Config) -> Terms:
    """Return what settling needs to know."""
    return Terms(
        default_queue=config.default_queue,
        keeps_states=config.broker == "eager" or keeps_states(config),
        max_result_bytes=config.max_result_bytes,
        max_message_bytes=config.max_message_bytes,
        allowed_queues=frozenset(config.allowed_queues),
        delayed_key=config.redis.delayed_tasks_key or DELAYED_DEFAULT,
        shared_groups=config.interop_groups,
    )


def _ways(config: Config) -> Ways:
    return Ways(
        queues=read_queue_names(config.worker_queues),
        weights=read_queue_weights(config.worker_queues),
        slots=config.slot_count,
        flush_s=config.worker_flush_ms / 1000,
        block_s=config.worker_block_s,
        max_message_bytes=config.max_message_bytes,
        terms=terms(config),
        max_tasks=config.worker_max_tasks,
        max_memory_bytes=config.worker_max_memory_mb << 20,
    )


def _fixed(config: Config, **values: Any) -> Config:
    """Return settings of which some are given by the program, however they are read again."""
    again = config.reload
    reload = None if again is None else lambda: _fixed(again(), **values)
    return replace(config, **values, reload=reload)


def worker(
    config: Config,
    *,
    name: str = "",
    queues: Sequence[str] = (),
    registry: Registry | None = None,
    on_change: Callable[[Config], None] = lambda _config: None,
) -> Worker:
    """
    Return a worker, not started.

    Args:
        config: The settings. Where they can be read again, the worker looks for changes.
        name: For people; by default ``worker_name``, or the host's name.
        queues: What to consume, most urgent first, or ``name=weight``; by default the
            configured ones.
        registry: The tasks to run; by default each child imports ``tasks_modules``
            itself, so that the supervisor runs no code of yours.
        on_change: Called with settings that changed, before they count; for the log.
    """
    if config.broker == "eager":
        raise ConfigError("broker is 'eager': tasks run where they are sent; no worker is needed.")
    if queues:
        config = _fixed(config, queues=tuple(queues))
    made = partial(_worker_parts, name=name, registry=registry)
    is_live = config.reload is not None and config.worker_reload_s > 0
    live = Live(config=config, made=made, on_change=on_change) if is_live else None
    return Worker(*made(config), SystemClock(), live)


def _worker_parts(config: Config, *, name: str, registry: Registry | None) -> tuple[Parts, Plan]:
    def collect() -> Registry:
        found = Registry() if registry is None else registry
        if registry is None:
            found.collect(*config.tasks_modules)
        # Tasks that send tasks do it over links of their own, which wait for an absent server.
        server(config, found)
        return found

    def schedule(store: Backend, inbox: TimetableInbox) -> Scheduler:
        def write(signatures: Sequence[Signature]) -> Any:
            return maker.make(signatures, time.time_ns())

        return _scheduler(config, ticker(config, for_worker=True), store, inbox.entries, write)

    if config.tracing:
        tracing(config)  # what it needs is missing now, or never
    maker = MessageMaker.of(config, Registry(), keeps_states=keeps_states(config))
    plan = Plan(
        name=name or config.worker_name or socket.gethostname(),
        processes=config.process_count,
        ways=_ways(config),
        lease_s=config.worker_lease_s,
        heartbeat_s=config.heartbeat_s,
        promote_s=config.redis.delayed_tasks_poll_period / 1000,
        shutdown_s=config.worker_shutdown_timeout_s,
        handle_signals=not config.no_unix_signals,
        health_file=config.worker_health_file,
        metrics_host=config.worker_metrics_host,
        metrics_port=config.worker_metrics_port,
    )
    parts = Parts(
        broker=lambda: broker(config, for_worker=True),
        backend=lambda: backend(config, for_worker=True),
        registry=collect,
        timetable=lambda found: complete_entries(
            found, MessageMaker.of(config, found, keeps_states=keeps_states(config))
        ),
        scheduler=schedule,
        watch=partial(_watch, config, plan.name),
    )
    return parts, plan


def _watch(config: Config, name: str, directory: str) -> Watch | None:
    """Return what a child counts with, in this directory ("": not at all), and traces with."""
    if not directory and not config.tracing:
        return None
    return Watch(
        TaskMetrics(directory, config.slot_count, name) if directory else None,
        tracing(config) if config.tracing else None,
    )


def tracing(config: Config) -> Tracing:
    """Return what makes spans, which name the broker's server."""
    address = config.address(config.broker)
    return Tracing(address.hosts if address is not None else ())


def ping(config: Config) -> None:
    """Raise `BrokerUnavailable` at once, not after a patience, unless the server answers."""
    made: Broker = broker(config)
    with contextlib.closing(made):
        made.ping()
