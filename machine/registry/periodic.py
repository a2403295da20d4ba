"""The decorator that sends a task at certain times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from machine.errors import SignatureError
from machine.periodic.entries import CatchUp, Entry, PeriodicOptions
from machine.registry.task import Task

T = TypeVar("T", bound=Task[Any, Any])


def periodic(
    spec: str | timedelta,
    *,
    name: str = "",
    catch_up: CatchUp = "latest",
    overlap: bool = True,
    tz: str | None = None,
) -> Callable[[T], T]:
    """
    Send a task at certain times; stands above ``@task``, more than once if you like.

    Workers see to it, any number of them, and each time is sent once. The task
    must be callable without arguments.

    Args:
        spec: When: ``"*/5 * * * *"``, ``"@daily"``, ``"@every 90s"``, or a ``timedelta`` of at
            least 0.1 s. See `cron.parse_schedule`.
        name: What the timetable knows it by; the task's own name by default.
        catch_up: What becomes of times that no worker was there for: "latest" sends once for
            all of them, "skip" not at all, "all" once for each of the last 100.
        overlap: Whether it is sent while its last run has not ended.
        tz: Time zone of a cron expression, like "Europe/Paris"; UTC by default.

    Raises:
        ConfigError: The specification means no times.
        SignatureError: It does not stand above ``@task``, or the task needs arguments.
    """

    def enter(task: T) -> T:
        if not isinstance(task, Task):
            raise SignatureError(
                f"@periodic({spec!r}) stands above {task!r}, which is no task; put it above @task."
            )
        try:
            signature = task.s()
        except TypeError as error:
            raise SignatureError(
                f"Task {task.name!r} is periodic and so called without arguments, but: {error}. "
                "Give them defaults, or use server.register_periodic_task()."
            ) from error
        options: PeriodicOptions = {"catch_up": catch_up, "overlap": overlap, "tz": tz}
        entry = Entry.of("task", spec, name or task.name, [signature], **options)
        task.schedules = (*task.schedules, entry)
        return task

    return enter
