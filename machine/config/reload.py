"""Reading settings again, and which changes a running worker can take up without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from machine.config import SETTINGS, Config
from machine.config.queues import read_queue_names
from machine.config.settings import values_of
from machine.errors import ConfigError

_log = logging.getLogger(__name__)
#: Settings that only the log and the processes that run tasks use. The supervisor, or other
#: workers, depend on each of the others, so those need a restart.
LIVE = frozenset(
    {
        "tasks_modules",
        "worker_processes",
        "worker_concurrency",
        "worker_shutdown_timeout_s",
        "worker_flush_ms",
        "worker_block_s",
        "worker_max_tasks",
        "worker_max_memory_mb",
        "log_level",
        "log_format",
    }
)


class Changes(NamedTuple):
    """
    What changes for a running worker whose settings were read again.

    Attributes:
        config: The settings to run with from now on.
        live: Names of the settings that change.
        stuck: Names of the settings that differ but keep their values until a restart.
    """

    config: Config
    live: list[str]
    stuck: list[str]


def compare_settings(running: Config, fresh: Config) -> Changes:
    """Divide the settings that differ into those that a running worker can take up, and others."""
    old, new = values_of(running, SETTINGS), values_of(fresh, SETTINGS)
    differing = [name for name in SETTINGS if old[name] != new[name]]
    live = [name for name in differing if _is_live(name, running, fresh)]
    stuck = [name for name in differing if name not in live]
    return Changes(replace(running, **{name: new[name] for name in live}), live, stuck)


def _is_live(name: str, running: Config, fresh: Config) -> bool:
    if name == "queues":  # the same queues may get another order or other weights
        old, new = (read_queue_names(c.worker_queues) for c in (running, fresh))
        return sorted(old) == sorted(new)
    return name in LIVE


class Reloader:
    """
    Reads settings again and passes them on if they changed.

    Args:
        load: Reads the layers; raises `ConfigError` if a value is wrong.
        on_change: Called with each new `Config` that differs from the last.
        period_s: Seconds between two readings, for the loop that calls `run_once`.
        config: The settings read last; ``None`` = read now.

    Raises:
        ConfigError: The first reading failed.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        on_change: Callable[[Config], None],
        period_s: float = 10.0,
        *,
        config: Config | None = None,
    ) -> None:
        self.period_s = period_s
        self.config = load() if config is None else config
        self._load = load
        self._on_change = on_change
        self._complaint = ""

    def run_once(self) -> bool:
        """Read again and say whether settings changed; the old ones stay if reading fails."""
        try:
            fresh = self._load()
        except ConfigError as error:
            if str(error) != self._complaint:
                _log.warning("Failed to reload config, the old one stays: %s", error)
            self._complaint = str(error)
            return False
        self._complaint = ""
        if fresh == self.config:
            return False
        self.config = fresh
        self._on_change(fresh)
        return True
