"""
Makes the objects that a `Config` describes.

All other modules are given what they need. Only this one knows which store a
URL means, and both ends of the queue.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.embedded import NoServer, shared_url
from machine.errors import ConfigError
from machine.periodic.entries import Entry
from machine.ports.backend import Backend, NullBackend
from machine.ports.broker import Broker
from machine.ports.clock import SystemClock
from machine.ports.periodic import Lock, PeriodicStore
from machine.redis.backend import RedisBackend
from machine.redis.broker import RedisBroker
from machine.redis.connections import Connections, Limits
from machine.redis.inline import InlineBroker, InlinePeriodicStore
from machine.redis.lock import RedisLock
from machine.redis.periodic import RedisPeriodicStore
from machine.redis.roles import QueueSettings
from machine.registry import Registry
from machine.runtime.child.instruments import Instruments
from machine.runtime.chords import Chords
from machine.runtime.inline import InlineRunner
from machine.runtime.settle import SettleRules
from machine.runtime.supervisor.forking import WorkerFactories
from machine.runtime.supervisor.scheduler import Scheduler, Write
from machine.runtime.supervisor.timetable import TimetableInbox
from machine.runtime.supervisor.worker import LiveReload, Worker, WorkerSettings
from machine.sending.messages import MessageMaker
from machine.sending.periodic import complete_entries
from machine.sending.sending import SendInstrument
from machine.server import Server
from machine.telemetry.metrics import TaskMetrics
from machine.telemetry.tracing import Tracing
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
        instruments=_send_instruments(config, instruments),
        stamps=bool(instruments),
    )
    made.worker_factory = lambda owner, name, concurrency: worker(
        _fixed(config, worker_processes=1, worker_concurrency=concurrency),
        name=name,
        registry=owner.registry,
    )
    made.scheduler_factory = lambda owner: _scheduler_of(owner, periodic_store(config))
    made.periodic_store = periodic_store(config)
    return made


def _send_instruments(config: Config, given: Sequence[SendInstrument]) -> list[SendInstrument]:
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
    rules, clock = SettleRules.of(config), SystemClock()

    def periodic() -> InlinePeriodicStore:
        return InlinePeriodicStore(Connections(parse_address(url)), settings, queues, clock)

    made = Server(
        config,
        queues,
        results,
        registry,
        instruments=_send_instruments(config, instruments),
        stamps=bool(instruments),
    )
    made.after_enqueue = InlineRunner(
        queues,
        Chords(queues, results, rules, clock),
        registry,
        rules,
        clock,
        lambda: queues.queues,
        _make_instruments(config, "", ""),
    ).run
    made.periodic_store = periodic()
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


def periodic_store(config: Config, *, for_worker: bool = False) -> RedisPeriodicStore:
    """Return the store of the timetable's watermarks, on connections of its own."""
    links = connections(config, config.broker, retry_s=0.0 if for_worker else 30.0)
    return RedisPeriodicStore(links, QueueSettings.of(config))


def lock(config: Config) -> Lock | None:
    """Return Machinery's lock for periodic tasks, where they are shared with Go."""
    if not config.periodic_program:
        return None
    if config.lock_url == "eager":
        # As in Machinery, one lock for the whole process.
        return RedisLock(Connections(parse_address(_own_url(0))))
    return RedisLock(connections(config, config.lock_url, retry_s=0.0))


def _scheduler_of(owner: Server, watermarks: PeriodicStore) -> Scheduler:
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
    return _scheduler(owner.config, watermarks, store, owner.timetable, write, sent)


def _scheduler(
    config: Config,
    watermarks: PeriodicStore,
    store: Backend,
    entries: Callable[[], Sequence[Entry]],
    write: Write,
    on_sent: Callable[[], None] = lambda: None,
) -> Scheduler:
    return Scheduler(
        watermarks,
        store,
        config.default_queue,
        entries,
        write,
        lock=lock(config),
        program=config.periodic_program,
        on_sent=on_sent,
        writes_ahead=config.interop_groups,
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
    make = partial(_worker_parts, name=name, registry=registry)
    is_live = config.reload is not None and config.worker_reload_s > 0
    live = LiveReload(config=config, make=make, on_change=on_change) if is_live else None
    factories, settings = make(config)
    return Worker(factories, settings, SystemClock(), live)


def _worker_parts(
    config: Config, *, name: str, registry: Registry | None
) -> tuple[WorkerFactories, WorkerSettings]:
    def collect() -> Registry:
        found = Registry() if registry is None else registry
        if registry is None:
            found.collect(*config.tasks_modules)
        # Tasks that send tasks do so over connections of their own, which wait for the server.
        server(config, found)
        return found

    def schedule(store: Backend, inbox: TimetableInbox) -> Scheduler:
        def write(signatures: Sequence[Signature]) -> Any:
            return maker.make(signatures, time.time_ns())

        return _scheduler(
            config, periodic_store(config, for_worker=True), store, inbox.entries, write
        )

    if config.tracing:
        tracing(config)  # raises here, before any process is forked, if the library is missing
    maker = MessageMaker.of(config, Registry(), keeps_states=config.keeps_states)
    settings = WorkerSettings.of(config, name)
    factories = WorkerFactories(
        broker=lambda: broker(config, for_worker=True),
        backend=lambda: backend(config, for_worker=True),
        registry=collect,
        timetable=lambda found: complete_entries(
            found, MessageMaker.of(config, found, keeps_states=config.keeps_states)
        ),
        scheduler=schedule,
        instruments=partial(_make_instruments, config, settings.name),
    )
    return factories, settings


def _make_instruments(config: Config, name: str, directory: str) -> Instruments | None:
    """Return what counts tasks in a directory ("" = none) and traces them; ``None`` = neither."""
    if not directory and not config.tracing:
        return None
    return Instruments(
        TaskMetrics(directory, config.slot_count, name) if directory else None,
        tracing(config) if config.tracing else None,
    )


def tracing(config: Config) -> Tracing:
    """Return what makes spans, which name the broker's server."""
    address = config.address(config.broker)
    return Tracing(address.hosts if address is not None else ())


def ping(config: Config) -> None:
    """Raise `BrokerUnavailable` at once, without retries, unless the server answers."""
    made: Broker = broker(config)
    with contextlib.closing(made):
        made.ping()
