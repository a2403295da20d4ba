"""Applies changed settings to a running worker."""

from __future__ import annotations

import logging
from collections.abc import Callable

from machine.config import Config
from machine.config.reload import Reloader, compare_settings
from machine.runtime.loop import Loop

_log = logging.getLogger("machine.worker")


class Reload(Loop):
    """
    Reads the settings again, and applies those that a running worker can change.

    Args:
        config: The settings that the worker was started with; it can ``reload``.
        running: Returns the settings in use.
        apply: Called with the settings to use from now on.
        on_change: Called with them before, to set up the log.
    """

    def __init__(
        self,
        config: Config,
        running: Callable[[], Config],
        apply: Callable[[Config], None],
        on_change: Callable[[Config], None],
    ) -> None:
        super().__init__("reload", config.worker_reload_s)
        self._running, self._apply, self._on_change = running, apply, on_change
        self._reloader = Reloader(config.reload or (lambda: config), self._handle, config=config)

    def run_once(self, _now_s: float) -> None:
        """Read all layers of settings again."""
        self._reloader.run_once()

    def _handle(self, fresh: Config) -> None:
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
            self._apply(found.config)
