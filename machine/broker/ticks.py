"""
The port of the timetable: marks that only move on, and what is queued as they do.

A part of the store that only schedulers use, beside the broker's own port. A mark is moved from
exactly the one that was read, so of any number of schedulers one does it and the others learn so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from machine.broker.base import Enqueued, Message


class Marks(NamedTuple):
    """The store's own time in Unix ms, and the text of each entry's mark."""

    now_ms: int
    texts: Mapping[str, str]


class Tick(NamedTuple):
    """
    One entry moved on to one time.

    Attributes:
        home: Queue whose keys hold the timetable.
        name: The entry.
        before: The mark it must have, "" for none.
        after: The mark it gets, in the form of `timetable.Mark`; it must be later.
        messages: Queued with it, each at once and at most once for its id; may be none.
    """

    home: str
    name: str
    before: str
    after: str
    messages: Sequence[Message]


class Ticker(Protocol):
    """Keeps the marks. Errors as for the broker."""

    def marks(self, home: str) -> Marks:
        """Return the time, and all marks of a timetable, in one round trip."""
        ...

    def tick(self, ticks: Sequence[Tick]) -> list[Enqueued]:
        """
        Move entries on, in order and in one round trip, each by itself in one step.

        QUEUED = done; DUPLICATE = the mark was another one, nothing happened; FULL or
        BAD_KEY = a message could not be queued, so nothing happened either.
        """
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
