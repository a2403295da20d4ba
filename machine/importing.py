"""Modules of tasks by name, as ``tasks_modules`` lists them."""

from __future__ import annotations

import importlib
from types import ModuleType

from machine.errors import ConfigError


def imported(name: str) -> ModuleType:
    """
    Import a module of tasks and return it.

    Raises:
        ConfigError: There is no such module.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only a missing tasks module is a setting's fault; one that it imports is its own.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"tasks_modules: there is no module {name!r}; is it spelled right, and importable "
            "from the folder the program was started in?"
        ) from error
