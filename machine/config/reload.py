"""What changes when settings are read again, and what of it a running worker can take up."""

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
#: What only the processes that run tasks, and the log, go by. Everything else is shared with
#: the supervisor's own duties, or with other workers, and needs a restart.
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
    What a running worker makes of other settings.

    Attributes:
        config: What it runs with from now on.
        live: Names of the settings that change.
        stuck: Names of those that would, and keep their values until a restart.
    """

    config: Config
    live: list[str]
    stuck: list[str]


def compare_settings(running: Config, fresh: Config) -> Changes:
    """Return what can change in a running worker, and what cannot."""
    old, new = values_of(running, SETTINGS), values_of(fresh, SETTINGS)
    differing = [name for name in SETTINGS if old[name] != new[name]]
    live = [name for name in differing if _is_live(name, running, fresh)]
    stuck = [name for name in differing if name not in live]
    return Changes(replace(running, **{name: new[name] for name in live}), live, stuck)


def _is_live(name: str, running: Config, fresh: Config) -> bool:
    if name == "queues":  # in another order or with other weights, but the same ones
        old, new = (read_queue_names(c.worker_queues) for c in (running, fresh))
        return sorted(old) == sorted(new)
    return name in LIVE


class Reloader:
    """
    Swaps one `Config` for another when what it was read from has changed.

    Args:
        load: Reads the layers; raises `ConfigError` when they are broken.
        on_change: Called with each new `Config` that differs from the last.
        period_s: Seconds between two looks, for the loop that calls `run_once`.
        config: What was read last; ``None`` = read now.

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
        """Read again; keep the old one when that fails. Say whether there is a new one."""
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
