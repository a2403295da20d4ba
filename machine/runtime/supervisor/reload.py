"""A running worker takes up settings that have changed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from machine.config import Config
from machine.config.reload import Reloader, compare_settings
from machine.runtime.loop import Loop

_log = logging.getLogger("machine.worker")


class Reload(Loop):
    """
    Looks whether what the settings are read from has changed.

    Args:
        config: What the worker was started with; it knows how to ``reload``.
        running: Returns what it works with now.
        take_up: Called with what it is to work with from now on.
        on_change: Called before that, for the log's own settings.
    """

    def __init__(
        self,
        config: Config,
        running: Callable[[], Config],
        take_up: Callable[[Config], None],
        on_change: Callable[[Config], None],
    ) -> None:
        super().__init__("reload", config.worker_reload_s)
        self._running, self._take_up, self._on_change = running, take_up, on_change
        self._reloader = Reloader(config.reload or (lambda: config), self._change, config=config)

    def run_once(self, _now_s: float) -> None:
        """Read all layers again."""
        self._reloader.run_once()

    def _change(self, fresh: Config) -> None:
        found = compare_settings(self._running(), fresh)
        if found.live:
            self._on_change(found.config)
        if found.stuck:
            _log.warning(
                "settings that changed but need a restart of the worker keep their values: %s",
                ", ".join(found.stuck),
            )
        if found.live:
            _log.info("settings changed: %s; new processes take over", ", ".join(found.live))
            self._take_up(found.config)
