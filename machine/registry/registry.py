"""
The tasks of a process, by name.

There is no global registry: each one collects the tasks of the modules it is
given, so that two programs in one process do not share tasks.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from machine.errors import ConfigError, SignatureError, TaskNotRegistered
from machine.execution import Hooks
from machine.periodic.entries import Entry
from machine.registry.options import TaskOptions
from machine.registry.task import Task, check_task, make_task, place_of
from machine.workflow.plan import GATHER, gather


class Registry:
    """
    The tasks that can be sent and run by name.

    Attributes:
        at_most_once: Names of the tasks that do not run again after their worker died.
        hooks: The hooks found among the tasks.
        schedules: The entries of the timetable, by their names.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        self.at_most_once: set[str] = set()
        self.hooks = Hooks()
        self.schedules: dict[str, Entry] = {}

    def collect(self, *modules: str | ModuleType) -> list[Task[Any, Any]]:
        """
        Import modules, and register the tasks (and the `Hooks`) in their namespaces.

        Returns:
            The tasks found, also those that were known already.

        Raises:
            ConfigError: There is no such module.
            SignatureError: Two functions have the same name, or there are two `Hooks`.
        """
        found: dict[str, Task[Any, Any]] = {}
        for module in modules:
            namespace = import_tasks(module) if isinstance(module, str) else module
            for value in vars(namespace).values():
                if isinstance(value, Task):
                    self._refuse_twin(value.name, value, found)
                    found[value.name] = value
                elif isinstance(value, Hooks):
                    self._take_hooks(value)
        self._store(found)
        return list(found.values())

    def register(self, name: str, fn: Callable[..., Any]) -> Task[Any, Any]:
        """Register a function or a task under this name; see `register_tasks`."""
        self.register_tasks({name: fn})
        return self._tasks[name]

    def register_tasks(self, tasks: Mapping[str, Callable[..., Any]]) -> None:
        """
        Register all of these, or none.

        Raises:
            SignatureError: A name is not usable or taken, or a value cannot be called.
        """
        made: dict[str, Task[Any, Any]] = {}
        for name, fn in tasks.items():
            check_task(name, fn)
            new = fn if isinstance(fn, Task) and fn.name == name else _rename(name, fn)
            self._refuse_twin(name, new, made)
            made[name] = new
        self._store(made)

    def get(self, name: str) -> Task[Any, Any]:
        """
        Return the task of this name.

        Raises:
            TaskNotRegistered: There is none; the text lists those there are.
        """
        found = self._tasks.get(name) or _BUILT_IN.get(name)
        if found is not None:
            return found
        known = ", ".join(self.names()) or "none"
        close = difflib.get_close_matches(name, self._tasks, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise TaskNotRegistered(
            f"Task {name!r} is not registered. Known: {known}.{hint} "
            "Is its module in tasks_modules?"
        )

    def names(self) -> list[str]:
        """Return the names of the user's tasks, sorted."""
        return sorted(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks or name in _BUILT_IN

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def add_schedule(self, entry: Entry) -> None:
        """
        Add an entry to the timetable.

        Raises:
            SignatureError: Another entry has its name.
        """
        if self.schedules.setdefault(entry.name, entry) != entry:
            raise SignatureError(
                f"Two schedules are called {entry.name!r}; give one another name, as in "
                "@periodic(…, name='other')."
            )

    def _store(self, tasks: Mapping[str, Task[Any, Any]]) -> None:
        for entry in (entry for new in tasks.values() for entry in new.schedules):
            self.add_schedule(entry)
        self._tasks.update(tasks)
        self.at_most_once |= {name for name, new in tasks.items() if new.on_crash == "fail"}

    def _take_hooks(self, hooks: Hooks) -> None:
        if self.hooks not in (Hooks(), hooks):
            raise SignatureError(
                f"There are two Hooks among the tasks: {self.hooks} and {hooks}. Make one of them."
            )
        self.hooks = hooks

    def _refuse_twin(
        self, name: str, new: Task[Any, Any], made: Mapping[str, Task[Any, Any]]
    ) -> None:
        for known in (self._tasks.get(name), made.get(name), _BUILT_IN.get(name)):
            if known is not None and known.fn is not new.fn:
                raise SignatureError(
                    f"Two tasks are called {name!r}: {place_of(known.fn)} and {place_of(new.fn)}. "
                    "Give one another name, as in @task(name='other')."
                )


def _rename(name: str, fn: Callable[..., Any]) -> Task[Any, Any]:
    if isinstance(fn, Task):
        return type(fn)(fn.fn, fn.options, name=name)
    return make_task(fn, TaskOptions(name=name))


#: Tasks that workflows put between their steps: every registry has them and lists none.
_BUILT_IN: dict[object, Task[Any, Any]] = {GATHER: Task(gather, TaskOptions(name=GATHER))}


def import_tasks(name: str) -> ModuleType:
    """
    Import a module of tasks and return it.

    Raises:
        ConfigError: There is no such module.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The setting is wrong if this module is missing, but not if one that it imports is.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"tasks_modules: there is no module {name!r}; is it spelled right, and importable "
            "from the folder the program was started in?"
        ) from error
