"""
Where an entry of the timetable stands, and what is due at a moment. Pure.

An entry's mark is the text kept in the store: the times last served and last
sent for. Nothing here asks what time it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from machine.periodic.cron import Schedule
from machine.periodic.entries import Entry

#: A time that is more than this in the past was missed, ms; ``skip`` does not send it any more.
MISSED_MS: Final = 10_000
#: Times that ``all`` makes up for at most, the last ones.
MOST_CAUGHT_UP: Final = 100


# -- what is due -------------------------------------------------------------------------------
class Mark(NamedTuple):
    """
    How far an entry has come, as it stands in Redis.

    Attributes:
        last_ms: The last time that was served, Unix ms.
        ran_ms: The last time that something was sent for; 0 = none yet.
    """

    last_ms: int
    ran_ms: int

    @classmethod
    def of(cls, text: str) -> Mark | None:
        """Read a mark's text; ``None`` when it is none."""
        last, _, ran = text.partition(" ")
        if not last.isdecimal() or (ran and not ran.isdecimal()):
            return None
        return cls(int(last), int(ran or last))

    @property
    def text(self) -> str:
        """Return ``<last>``, or ``<last> <ran>`` where they differ."""
        return f"{self.last_ms}" if self.last_ms == self.ran_ms else f"{self.last_ms} {self.ran_ms}"


class Step(NamedTuple):
    """A time to move on to, in Unix ms, and whether something is sent for it."""

    due_ms: int
    sends: bool


def steps(entry: Entry, last_ms: int, now_ms: int, *, most: int = MOST_CAUGHT_UP) -> list[Step]:
    """
    Return what is to be done at ``now_ms``, in order, where ``last_ms`` was served last.

    Args:
        entry: Whose ``catch_up`` decides about times that were missed.
        last_ms: Unix ms; times up to here are done with.
        now_ms: Unix ms.
        most: Times that ``all`` makes up for at most, the last ones.
    """
    wanted = most if entry.catch_up == "all" else 1
    times = entry.schedule.times(last_ms, now_ms, wanted)
    skips = entry.catch_up == "skip"
    return [Step(due_ms, not skips or now_ms - due_ms <= MISSED_MS) for due_ms in times]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicState:
    """
    Where an entry stands, by the store's clock; every time is in UTC.

    Attributes:
        name: The entry.
        spec: When it is due; "" for one that this program does not know, but the store does.
        next_at: Its next time; ``None`` while it is canceled, if it is never due again, or
            without a ``spec``.
        canceled: Whether nothing is sent for it.
        served_at: The last time that was served, with a run or without; ``None`` before a
            scheduler saw it.
        sent_at: The last time that a run was sent for; ``None`` = not yet.
    """

    name: str
    spec: str
    next_at: datetime | None
    canceled: bool
    served_at: datetime | None
    sent_at: datetime | None


def states(
    entries: Iterable[Entry], now_ms: int, texts: Mapping[str, str], canceled: Collection[str]
) -> list[PeriodicState]:
    """
    Return where each entry stands: these, then by name those that only the store knows.

    Args:
        entries: The timetable.
        now_ms: The store's time, Unix ms.
        texts: Entry -> the text of its mark.
        canceled: Names of the entries that are.
    """
    known: dict[str, Entry | None] = {entry.name: entry for entry in entries}
    for name in sorted({*texts, *canceled} - known.keys()):
        known[name] = None
    found = []
    for name, entry in known.items():
        mark, is_off = Mark.of(texts.get(name, "")), name in canceled
        next_ms = None if entry is None or is_off else _next_ms(entry.schedule, mark, now_ms)
        state = PeriodicState(
            name=name,
            spec=entry.spec if entry else "",
            next_at=None if next_ms is None else _moment(next_ms),
            canceled=is_off,
            served_at=_moment(mark.last_ms) if mark else None,
            sent_at=_moment(mark.ran_ms) if mark and mark.ran_ms else None,
        )
        found.append(state)
    return found


def _next_ms(schedule: Schedule, mark: Mark | None, now_ms: int) -> int | None:
    """Return the first time later than now that follows from the mark."""
    if mark is None:
        return schedule.next_after(schedule.start(now_ms))
    passed = schedule.times(mark.last_ms, now_ms, 1)
    return schedule.next_after(passed[-1] if passed else mark.last_ms)


def _moment(ms: int) -> datetime | None:
    """Return a time; ``None`` for a number that is none, as somebody may have written there."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
