"""
The settings of a program: one frozen `Config`, read once and passed down.

A flag goes before the environment, then come ``.env``, ``config.yml`` and the
default. Nothing is read on import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from machine.config import layers, settings
from machine.config.cpus import available_cpus
from machine.config.redis_url import SCHEMES, RedisAddress, parse_address
from machine.config.settings import Setting, check_fields, setting, show_values, table_of, values_of
from machine.errors import ConfigError

_FILE = "config.yml"
# What many settings below have in common.
_THEIRS: Any = {"ours": False}
_SECONDS: Any = {"unit": "seconds", "least": 0}
_MILLIS: Any = {"unit": "milliseconds"}
_BYTES: Any = {"unit": "bytes", "least": 1, "most": 2**29}
_URL: Any = {"hides": "url", "ours": False}
_IDLE = "Read for Machinery's sake, without effect: "
_CLUSTER_VARIABLES = ("REDIS_CLUSTER_MODE", "REDIS_CLUSTER_ENABLED")
_IDLE_VARIABLES = ("REDIS_IDLE_TIMEOUT", "REDIS_MAX_IDLE_TIMEOUT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """
    The ``redis:`` section: how to talk to Redis.

    Each field's meaning, unit and bounds are in its metadata and in
    docs/config.md.

    Raises:
        ConfigError: One line for each field that is wrong.
    """

    max_idle: int = setting(3, _IDLE + "idle connections in a pool.", least=0, **_THEIRS)
    max_active: int = setting(0, _IDLE + "connections in a pool.", least=0, **_THEIRS)
    max_idle_timeout: int = setting(
        240, _IDLE + "life of an idle connection.", variables=_IDLE_VARIABLES, **_SECONDS, **_THEIRS
    )
    wait: bool = setting(False, _IDLE + "whether a full pool waits.", **_THEIRS)
    read_timeout: int = setting(15, "Time for an answer, 0 = no limit.", **_SECONDS, **_THEIRS)
    write_timeout: int = setting(15, "Time to send, 0 = no limit.", **_SECONDS, **_THEIRS)
    connect_timeout: int = setting(15, "Time to connect, 0 = no limit.", **_SECONDS, **_THEIRS)
    normal_tasks_poll_period: int = setting(
        1000, _IDLE + "wait at an empty queue; see worker_block_s.", least=0, **_MILLIS, **_THEIRS
    )
    delayed_tasks_poll_period: int = setting(
        200,
        "How often delayed tasks are looked at (Machinery: 500).",
        least=1,
        **_MILLIS,
        **_THEIRS,
    )
    delayed_tasks_key: str = setting(
        "", "Key of the delayed tasks, empty = delayed_tasks.", form=settings.KEY, **_THEIRS
    )
    client_name: str = setting("", "Our name in CLIENT LIST.", form=settings.PRINTABLE, **_THEIRS)
    master_name: str = setting(
        "", "The hosts are sentinels, ask them for this master.", form=settings.PRINTABLE, **_THEIRS
    )
    sentinel_password: str = setting("", "Password of the sentinels.", hides="all", **_THEIRS)
    cluster_mode: bool = setting(
        False,
        "The hosts are nodes of a Redis Cluster.",
        variables=_CLUSTER_VARIABLES,
        alias="redis.cluster_enabled",
        **_THEIRS,
    )
    tls_ca_file: str = setting("", "Certificates rediss:// trusts, empty = the system's.")
    tls_cert_file: str = setting("", "Our certificate for rediss://.")
    tls_key_file: str = setting("", "The private key of tls_cert_file.")
    tls_insecure: bool = setting(False, "Encrypt, but do not check who answers.")

    def __post_init__(self) -> None:
        check_fields(self, _REDIS_SETTINGS)

    def __repr__(self) -> str:
        return show_values(self, _REDIS_SETTINGS)


class SettingLine(NamedTuple):
    """One line of `Config.describe`: a setting, its value without passwords, its source."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    Every setting of callers and workers.

    Each field's meaning, unit and bounds are in its metadata and in
    docs/config.md. A `Config` built by hand is checked like a loaded one.

    Attributes:
        sources: Where each value came from, by name ("config.yml:4", "environment", ".env",
            "flag"); a name that is missing has its default.
        reload: Reads the same layers again; set by `load`, and by the two constructors with
            ``keep_reloading``.

    Raises:
        ConfigError: One line for each setting that is wrong.
    """

    broker: str = setting(
        "redis://127.0.0.1:6379/0", "Where the queues are: a Redis URL, or eager.", **_URL
    )
    result_backend: str = setting(
        "", "Where results are: a Redis URL, eager or null, empty = as broker.", **_URL
    )
    lock: str = setting(
        "", "Where periodic tasks are locked: a Redis URL or eager, empty = as broker.", **_URL
    )
    periodic_program: str = setting("", "Go program with the same timetable.", form=settings.NAME)
    default_queue: str = setting(
        "machinery_tasks",
        "Queue of tasks that name none; what all queues share is kept beside it, so callers and "
        "workers of one program have the same.",
        form=settings.QUEUE,
        **_THEIRS,
    )
    results_expire_in: int = setting(
        3600, "How long results are kept.", unit="seconds", least=1, **_THEIRS
    )
    no_unix_signals: bool = setting(False, "Leave SIGTERM and SIGINT to the program.", **_THEIRS)
    queues: tuple[str, ...] = setting(
        (),
        "What workers consume, in order, or by name=weight; empty = default_queue.",
        form=settings.WEIGHTED_QUEUES,
    )
    interop_groups: bool = setting(
        False,
        "Whether members of one group may run on Go Machinery's workers too; for callers and "
        "workers. Each end then looks at all states of the group, as Go does.",
    )
    allowed_queues: tuple[str, ...] = setting(
        (), "Queues that a message's callbacks may name, empty = any.", form=settings.QUEUES
    )
    tasks_modules: tuple[str, ...] = setting(
        ("machine.tasks",), "Modules whose tasks are registered.", form=settings.MODULES
    )
    max_queue_length: int = setting(
        1_000_000, "A queue so long takes no more.", unit="messages", least=1
    )
    max_message_bytes: int = setting(1_048_576, "Longest message sent or run.", **_BYTES)
    max_result_bytes: int = setting(1_048_576, "Longest result kept; a longer one fails.", **_BYTES)
    worker_name: str = setting(
        "", "Name in lists of workers, empty = the host's.", form=settings.NAME
    )
    worker_processes: int = setting(
        0, "Processes that run tasks, 0 = the CPUs available.", least=0, most=1024
    )
    worker_concurrency: int = setting(
        1, "Tasks at once in each process, 0 = 2 x CPUs.", least=0, most=100_000
    )
    worker_lease_s: float = setting(
        15.0, "A worker silent so long loses its tasks to others.", unit="seconds", least=0.1
    )
    worker_heartbeat_s: float = setting(
        0.0, "How often the lease is renewed: under half of it, 0 = a third.", **_SECONDS
    )
    worker_max_deliveries: int = setting(
        3, "A message that killed so many workers is buried.", unit="workers", least=1
    )
    worker_shutdown_timeout_s: float = setting(
        25.0, "How long running tasks may go on after SIGTERM.", **_SECONDS
    )
    worker_flush_ms: float = setting(
        5.0,
        "Longest wait of a result for others to be written with.",
        unit="milliseconds",
        least=0,
        most=10_000,
    )
    worker_block_s: float = setting(
        2.0, "Longest wait at an empty queue.", unit="seconds", least=0.01
    )
    worker_max_tasks: int = setting(
        0, "A process is replaced after so many tasks, 0 = never.", unit="tasks", least=0
    )
    worker_max_memory_mb: int = setting(
        0, "A process that holds more is replaced, 0 = never.", unit="MiB", least=0
    )
    worker_reload_s: float = setting(
        10.0, "How often a worker looks for changed settings, 0 = never.", **_SECONDS
    )
    worker_health_file: str = setting("", "File touched while the worker lives, empty = none.")
    worker_metrics_host: str = setting(
        "127.0.0.1", "Address the worker shows its metrics on.", form=settings.HOST
    )
    worker_metrics_port: int = setting(
        0, "Its port, 0 = no metrics; each worker on a host needs its own.", least=0, most=65_535
    )
    api_host: str = setting("127.0.0.1", "Address the HTTP caller listens on.", form=settings.HOST)
    api_port: int = setting(8000, "Its port, 0 = any free one.", least=0, most=65_535)
    api_token: str = setting(
        "", "What its clients must show, one or several by commas; empty = nothing.", hides="all"
    )
    api_open: bool = setting(False, "Whether it may listen beyond this machine without api_token.")
    api_wait_s: float = setting(
        30.0, "Longest that a request waits for a result.", unit="seconds", least=0, most=3600
    )
    log_level: str = setting(
        "info", "The least that is logged.", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting(
        "auto", "auto = text on a terminal, else json.", choices=("auto", "text", "json")
    )
    tracing: bool = setting(False, "Whether OpenTelemetry traces tasks (the extra otel).")
    redis: RedisConfig = field(default_factory=RedisConfig)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    reload: Callable[[], Config] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_fields(self, _SETTINGS)
        found = settings.find_errors(values_of(self, SETTINGS))
        if found:
            raise ConfigError("\n".join(error.text for error in found))

    def __repr__(self) -> str:
        return show_values(self, SETTINGS, whole=self.redis.cluster_mode)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, object] | None = None,
        *,
        path: str | None = None,
        environ: Mapping[str, str] | None = None,
        dotenv: str | None = ".env",
    ) -> Self:
        """
        Read all layers: flag > environment > .env > YAML file > default.

        Args:
            flags: By setting name (``redis.…`` for nested ones); None and empty values are unset.
            path: The YAML file; ``None`` = variable CONFIG_FILE, else ./config.yml if it is there.
            environ: Variables; ``None`` = those of the process.
            dotenv: A file of variables; need not exist, ``None`` = none. Never changes the process.

        Raises:
            ConfigError: One line for each error in any layer, with its place.
        """
        local, errors = layers.read_dotenv(dotenv) if dotenv else ({}, [])
        process = os.environ if environ is None else environ
        named = path or process.get("CONFIG_FILE") or local.get("CONFIG_FILE")
        file = named or (_FILE if Path(_FILE).exists() else None)
        entries: list[layers.Given | str] = [*layers.read_yaml(file, SETTINGS)] if file else []
        sets = [(process, "environment"), (local, str(dotenv))]
        variables = [
            e for s, label in reversed(sets) for e in layers.read_variables(s, label, SETTINGS)
        ]
        entries += [*errors, *layers.read_redis_url(sets, variables, SETTINGS), *variables]
        again = partial(cls.load, flags, path=path, environ=environ, dotenv=dotenv)
        return cls._of([*entries, *layers.read_flags(flags or {}, SETTINGS)], again)

    @classmethod
    def from_environment(
        cls,
        keep_reloading: bool = False,  # noqa: FBT001, FBT002 - Machinery's signature
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """
        Read defaults and variables only (Machinery's constructor).

        Args:
            keep_reloading: Set ``reload``, for a `Reloader`.
            environ: Variables; ``None`` = those of the process.
        """
        process = os.environ if environ is None else environ
        variables = list(layers.read_variables(process, "environment", SETTINGS))
        sets = [(process, "environment")]
        entries = [*layers.read_redis_url(sets, variables, SETTINGS), *variables]
        again = partial(cls.from_environment, True, environ=environ)
        return cls._of(entries, again if keep_reloading else None)

    @classmethod
    def from_yaml(
        cls,
        path: str,
        keep_reloading: bool = False,  # noqa: FBT001, FBT002 - Machinery's signature
    ) -> Self:
        """
        Read defaults and one YAML file only (Machinery's constructor).

        Args:
            path: The file; it must exist, and may have any size.
            keep_reloading: Set ``reload``, for a `Reloader`.
        """
        again = partial(cls.from_yaml, path, True)
        return cls._of(list(layers.read_yaml(path, SETTINGS)), again if keep_reloading else None)

    @classmethod
    def _of(
        cls, entries: list[layers.Given | str], again: Callable[[], Config] | None = None
    ) -> Self:
        values, sources, errors = layers.resolve(entries, SETTINGS)
        if errors:
            raise ConfigError("\n".join(errors))
        nested = {name.partition(".")[2]: v for name, v in values.items() if "." in name}
        plain = {name: v for name, v in values.items() if "." not in name}
        return cls(**plain, redis=RedisConfig(**nested), sources=sources, reload=again)

    def describe(self) -> list[SettingLine]:
        """Return every setting in the order of docs/config.md, without passwords."""
        whole = self.redis.cluster_mode
        lines = []
        for name, value in values_of(self, SETTINGS).items():
            row = SETTINGS[name]
            source = self.sources.get(name, "default" if value == row.default else "argument")
            lines.append(SettingLine(name, row.show(value, whole=whole), source))
        return lines

    def warnings(self) -> list[str]:
        """Return one sentence for each setting that is allowed but unsafe, for the log at start."""
        return settings.find_warnings(values_of(self, SETTINGS))

    def address(self, url: str) -> RedisAddress | None:
        """Return the address in one of our URLs; ``None`` for ``eager`` and ``null``."""
        if not url.startswith(SCHEMES):
            return None
        redis = self.redis
        return parse_address(url, master_name=redis.master_name, cluster=redis.cluster_mode)

    @property
    def backend_url(self) -> str:
        """Return ``result_backend``, or the broker where it is empty."""
        return self.result_backend or self.broker

    @property
    def keeps_states(self) -> bool:
        """Whether results are on the broker's own server, so that one script writes both."""
        return self.broker in ("eager", self.backend_url)

    @property
    def lock_url(self) -> str:
        """Return ``lock``, or the broker where it is empty."""
        return self.lock or self.broker

    @property
    def worker_queues(self) -> tuple[str, ...]:
        """Return the queues a worker consumes, in order; each may end in ``=weight``."""
        return self.queues or (self.default_queue,)

    @property
    def heartbeat_s(self) -> float:
        """Return the seconds between two renewals of a lease."""
        return self.worker_heartbeat_s or self.worker_lease_s / 3

    @property
    def process_count(self) -> int:
        """Return how many processes run tasks, at least 1."""
        return self.worker_processes or available_cpus()

    @property
    def slot_count(self) -> int:
        """Return how many tasks each process runs at once, at least 1."""
        return self.worker_concurrency or 2 * available_cpus()


_REDIS_SETTINGS = table_of(RedisConfig, "redis.")
_SETTINGS = table_of(Config)
#: All settings by name, in the order of docs/config.md.
SETTINGS: Mapping[str, Setting] = _SETTINGS | _REDIS_SETTINGS
