"""What the children of a worker are, for as long as its settings stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from machine.config import Config


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crew:
    """
    Children of one kind. Other settings make another crew, which takes this one's place.

    Attributes:
        processes: Children to keep running, ≥ 1.
        shutdown_s: Seconds that running tasks get after the first signal.
        spawn: Forks a child that writes its worker ids, a line each, to the given
            descriptor, and returns the child's pid.
        config: The settings it was made of; ``None`` where they never change.
    """

    processes: int
    shutdown_s: float
    spawn: Callable[[int], int]
    config: Config | None = None
