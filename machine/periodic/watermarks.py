"""
How far each entry of the timetable was served, and which of its times are due. Pure.

The store keeps a watermark for each entry: the last time that was served, and
the last one that a run was sent for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from machine.periodic.cron import Schedule
from machine.periodic.entries import Entry

#: A time that passed longer ago was missed, ms; ``skip`` sends nothing for it.
MISSED_MS: Final = 10_000
#: ``all`` sends runs for so many missed times at most, the last ones.
MOST_CAUGHT_UP: Final = 100


class Watermark(NamedTuple):
    """
    How far an entry was served.

    Attributes:
        last_ms: The last time that was served, Unix ms.
        ran_ms: The last time that something was sent for; 0 = none yet.
    """

    last_ms: int
    ran_ms: int

    @classmethod
    def of(cls, text: str) -> Watermark | None:
        """Read a watermark's text; ``None`` = it is not one."""
        last, _, ran = text.partition(" ")
        if not last.isdecimal() or (ran and not ran.isdecimal()):
            return None
        return cls(int(last), int(ran or last))

    @property
    def text(self) -> str:
        """Return ``<last>``, or ``<last> <ran>`` where they differ."""
        return f"{self.last_ms}" if self.last_ms == self.ran_ms else f"{self.last_ms} {self.ran_ms}"


class Step(NamedTuple):
    """One time to serve, Unix ms, and whether a run is sent for it."""

    due_ms: int
    sends: bool


def steps(entry: Entry, last_ms: int, now_ms: int, *, most: int = MOST_CAUGHT_UP) -> list[Step]:
    """
    Return the times that are due at ``now_ms``, earliest first.

    Args:
        entry: Its ``catch_up`` decides about times that were missed.
        last_ms: The last time that was served, Unix ms.
        now_ms: Unix ms.
        most: Times that ``all`` returns at most, the last ones.
    """
    wanted = most if entry.catch_up == "all" else 1
    times = entry.schedule.times(last_ms, now_ms, wanted)
    skips = entry.catch_up == "skip"
    return [Step(due_ms, not skips or now_ms - due_ms <= MISSED_MS) for due_ms in times]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicState:
    """
    How far an entry was served, by the store's clock; every time is in UTC.

    Attributes:
        name: The entry.
        spec: When it is due; "" if only the store knows it, and not this program.
        next_at: Its next time; ``None`` while it is canceled, if it is never due again, or
            without a ``spec``.
        canceled: Whether it is canceled, so that nothing is sent for it.
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
    Return the state of each entry: these, then by name those that only the store knows.

    Args:
        entries: The timetable.
        now_ms: The store's time, Unix ms.
        texts: Entry -> the text of its watermark.
        canceled: Names of canceled entries.
    """
    known: dict[str, Entry | None] = {entry.name: entry for entry in entries}
    for name in sorted({*texts, *canceled} - known.keys()):
        known[name] = None
    found = []
    for name, entry in known.items():
        watermark, is_off = Watermark.of(texts.get(name, "")), name in canceled
        next_ms = None if entry is None or is_off else _next_ms(entry.schedule, watermark, now_ms)
        state = PeriodicState(
            name=name,
            spec=entry.spec if entry else "",
            next_at=None if next_ms is None else _moment(next_ms),
            canceled=is_off,
            served_at=_moment(watermark.last_ms) if watermark else None,
            sent_at=_moment(watermark.ran_ms) if watermark and watermark.ran_ms else None,
        )
        found.append(state)
    return found


def _next_ms(schedule: Schedule, watermark: Watermark | None, now_ms: int) -> int | None:
    """Return the first time later than now that follows from the watermark."""
    if watermark is None:
        return schedule.next_after(schedule.start(now_ms))
    passed = schedule.times(watermark.last_ms, now_ms, 1)
    return schedule.next_after(passed[-1] if passed else watermark.last_ms)


def _moment(ms: int) -> datetime | None:
    """Return a time; ``None`` = the number is out of range, written into the store by hand."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
