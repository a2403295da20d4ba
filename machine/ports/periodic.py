"""The port of what periodic tasks keep: when each entry was last served, and Machinery's lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import IntEnum
from typing import NamedTuple, Protocol

from machine.ports.moves import Message


class Watermarks(NamedTuple):
    """
    What the store knows of a timetable.

    Attributes:
        now_ms: Its own time, Unix ms.
        texts: Entry -> the text of its watermark.
        canceled: Names of entries for which nothing is sent.
    """

    now_ms: int
    texts: Mapping[str, str]
    canceled: AbstractSet[str] = frozenset()


class Ticked(IntEnum):
    """What became of a tick; the numbers are those of ``tick.lua``."""

    QUEUED = 1
    CANCELED = 2
    DUPLICATE = 0
    BAD_KEY = -1
    FULL = -2


class Tick(NamedTuple):
    """
    One entry moved on to one time.

    Attributes:
        home: Queue whose keys hold the timetable.
        name: The entry.
        before: The watermark it must have, "" for none.
        after: The watermark it gets, in the form of `watermarks.Watermark`; it must be later.
        messages: Queued with it, each at once and at most once for its id; may be none.
    """

    home: str
    name: str
    before: str
    after: str
    messages: Sequence[Message]


class PeriodicStore(Protocol):
    """Keeps the watermarks. Errors as for the broker."""

    def read_watermarks(self, home: str) -> Watermarks:
        """Return the time, and all watermarks of a timetable, in one round trip."""
        ...

    def tick(self, ticks: Sequence[Tick]) -> list[Ticked]:
        """
        Move entries on, in order and in one round trip, each by itself in one step.

        QUEUED = done; CANCELED = the entry is, so its watermark moved on to that time and nothing
        was queued, the last time sent for being the one before; DUPLICATE = the watermark was
        another one, nothing happened; FULL or BAD_KEY = a message could not be queued, so
        nothing happened either.
        """
        ...

    def switch(self, home: str, name: str, *, canceled: bool) -> bool:
        """
        Cancel an entry, or let it go on; say whether it was otherwise before.

        One that goes on has its watermark, if any, moved on to now: the times that passed
        meanwhile are over. It may be any name.
        """
        ...

    def key_of(self, home: str) -> str:
        """Return what the store calls the watermarks of a timetable, for people who repair it."""
        ...

    async def aread_watermarks(self, home: str) -> Watermarks:
        """Do what `read_watermarks` does, without blocking the event loop."""
        ...

    async def aswitch(self, home: str, name: str, *, canceled: bool) -> bool:
        """Do what `switch` does, without blocking the event loop."""
        ...

    async def aclose(self) -> None:
        """Close every connection, those of the running event loop included."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class Lock(Protocol):
    """Something that one of many gets until a moment. Times are Unix nanoseconds."""

    def lock(self, key: str, until_ns: int, now_ns: int) -> bool:
        """Take the lock until then; say whether it is ours."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
