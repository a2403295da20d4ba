"""
Times from a specification like ``*/5 * * * *`` or ``@every 90s``. Pure; Unix milliseconds.

The grammar is that of Go Machinery's timetables (robfig's cron: five fields, descriptors,
``@every``) and is checked here. cronsim searches the next day that matches; it is the extra
``[cron]``, imported when a specification first needs it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

from machine.errors import ConfigError

if TYPE_CHECKING:
    from cronsim import CronSim

#: Descriptors and the five fields they stand for.
MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: The shortest interval, ms: a scheduler looks at its clock about that often.
SHORTEST_MS: Final = 100
_EVERY: Final = "@every "
#: The text of a timedelta; ``@every`` would cut it to whole seconds.
_INTERVAL: Final = re.compile(r"@interval ([0-9]{1,15})ms")
_ZONE: Final = re.compile(r"(?:CRON_)?TZ=(\S*)\s+(.*)", re.DOTALL)
_NS: Final = {
    "ns": 1,
    "us": 1000,
    "\N{MICRO SIGN}s": 1000,
    "\N{GREEK SMALL LETTER MU}s": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = re.compile(rf"(?=\.?[0-9])([0-9]{{0,19}})(?:\.([0-9]{{0,19}}))?({'|'.join(_NS)})")
#: The window before now that is searched first for the last time that was due, ms; and the
#: factor by which it grows while too few are found.
_FIRST_WINDOW_MS, _GROWTH = 120_000, 8


class _Field(NamedTuple):
    """One of the five fields: name, bounds, and words for its values, from ``least`` on."""

    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, _DAYS),
)


class Schedule(ABC):
    """
    Times that follow from a specification alone.

    Every process computes the same ones, so that schedulers need not talk to each other.
    """

    @abstractmethod
    def next_after(self, ms: int) -> int | None:
        """Return the first time later than ``ms``; ``None`` = never."""

    @abstractmethod
    def times(self, after_ms: int, until_ms: int, most: int) -> list[int]:
        """Return the last ``most`` times in (after_ms, until_ms], earliest first."""

    def start(self, now_ms: int) -> int:
        """Return the time that an entry counts from when it is first seen at ``now_ms``."""
        return now_ms - now_ms % 1000


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """
    Every ``period_ms``, counted from the time before.

    If the period is whole seconds, a time is cut to its second first, as Machinery does.
    """

    period_ms: int

    def start(self, now_ms: int) -> int:
        """Return the time to count from; cut to its second if the period is whole seconds."""
        return now_ms if self.period_ms % 1000 else now_ms - now_ms % 1000

    def next_after(self, ms: int) -> int:
        """Return one period after ``ms``."""
        return self.start(ms) + self.period_ms

    def times(self, after_ms: int, until_ms: int, most: int) -> list[int]:
        """Return the last ``most`` times in (after_ms, until_ms], earliest first."""
        first = self.start(after_ms)
        count = (until_ms - first) // self.period_ms
        return [first + n * self.period_ms for n in range(max(1, count - most + 1), count + 1)]


@dataclass(frozen=True, slots=True)
class Cron(Schedule):
    """
    Five fields in one time zone.

    Where the clocks change: a fixed time of day that they skip comes right after the change, and
    one that they repeat comes once. If minute or hour is ``*``, times just go on.

    Args:
        fields: In cronsim's form: explicit numbers, and ``*`` where a star means more than all
            values.
        zone: The time zone.
    """

    fields: str
    zone: tzinfo

    def next_after(self, ms: int) -> int | None:
        """Return the first time later than ``ms``; ``None`` = not in 50 years."""
        return next(self._walk(ms), None)

    def times(self, after_ms: int, until_ms: int, most: int) -> list[int]:
        """Return the last ``most`` times in (after_ms, until_ms], earliest first."""
        window_ms = _FIRST_WINDOW_MS
        while True:  # search backwards in growing windows: not each minute of a year
            from_ms = max(after_ms, until_ms - window_ms)
            found = deque(takewhile(lambda ms: ms <= until_ms, self._walk(from_ms)), maxlen=most)
            if len(found) == most or from_ms == after_ms:
                return list(found)
            window_ms *= _GROWTH

    def _walk(self, ms: int) -> Iterator[int]:
        from cronsim import CronSimError  # noqa: PLC0415 - an extra, loaded where it is used

        try:
            walk = _load_cronsim()(self.fields, datetime.fromtimestamp(ms // 1000, self.zone))
        except CronSimError:
            return  # like the 31st of February, which Machinery accepts and never fires
        last_ms = ms
        for found in walk:
            found_ms = int(found.timestamp()) * 1000
            shown = datetime.fromtimestamp(found_ms // 1000, self.zone)
            # Where the clocks change at midnight, cronsim finds an hour that they skip.
            is_there = walk.fixup_tz is not None or shown.hour in walk.hours
            # Two local times may be the same moment when the clocks change.
            if found_ms > last_ms and is_there:
                last_ms = found_ms
                yield found_ms


def spec_text(spec: str | timedelta) -> str:
    """Return a specification in the text form that `parse_schedule` takes."""
    if isinstance(spec, str):
        return spec
    return f"@interval {spec // timedelta(milliseconds=1)}ms"


def parse_schedule(spec: str, tz: str = "") -> Schedule:
    """
    Return the times that a specification means.

    Args:
        spec: Five fields (minute, hour, day of month, month, day of week), ``@daily`` and
            its like, or ``@every`` with a Go duration, cut to whole seconds, at least one.
            ``TZ=Zone`` or ``CRON_TZ=Zone`` may stand in front.
        tz: The time zone, where none stands in front; "" = UTC.

    Raises:
        ConfigError: It is none of these, or it needs the extra ``[cron]``, which is not installed.
    """
    if not spec.replace("\t", " ").isprintable():
        raise ConfigError(f"Schedule {spec!r}: it must be one line of plain text.")
    named = _ZONE.fullmatch(spec)
    rest = named[2].strip() if named else spec
    if named and tz and named[1] != tz:
        raise ConfigError(f"Schedule {spec!r}: tz is {tz!r}, which is another zone; give one.")
    zone = _parse_zone(spec, named[1] if named else tz)
    if interval := _INTERVAL.fullmatch(rest):
        return _parse_interval(spec, int(interval[1]))
    if rest.startswith(_EVERY):
        return Every(max(1, _parse_go_duration_ns(spec, rest.removeprefix(_EVERY)) // 10**9) * 1000)
    if rest.startswith("@") and rest not in MACROS:
        raise ConfigError(
            f"Schedule {spec!r}: unknown descriptor; use {', '.join(MACROS)}, or '@every 90s'."
        )
    fields = _parse_fields(spec, MACROS.get(rest, rest))
    _load_cronsim(spec)
    return Cron(fields, zone)


def _parse_interval(spec: str, period_ms: int) -> Every:
    if period_ms < SHORTEST_MS:
        raise ConfigError(
            f"Schedule {spec!r}: the shortest interval is {SHORTEST_MS} ms; run the task in a loop."
        )
    return Every(period_ms)


def _parse_zone(spec: str, name: str) -> tzinfo:
    if name in ("", "UTC"):
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - 5 ms, only where a zone is named

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"Schedule {spec!r}: there is no time zone {name!r} here; give one like "
            "Europe/Paris (on a small system, install tzdata)."
        ) from error


def _parse_go_duration_ns(spec: str, text: str) -> int:
    """Parse what Go's time.ParseDuration does: "90s", "1h30m", "1.5h", "-5s", "0"."""
    sign, digits = (text[0], text[1:]) if text[:1] in ("-", "+") else ("", text)
    parts = list(_PART.finditer(digits))
    whole = "".join(part[0] for part in parts)
    total: int = sum(
        int(part[1] or 0) * _NS[part[3]]
        + int(part[2] or 0) * _NS[part[3]] // 10 ** len(part[2] or "")
        for part in parts
    )
    if (digits != "0" and (not parts or whole != digits)) or total >= 2**63:
        raise ConfigError(
            f"Schedule {spec!r}: {text!r} is not a duration; write one like 90s, 1h30m or 1.5h."
        )
    return -total if sign == "-" else total


def _parse_fields(spec: str, text: str) -> str:
    words = text.split()
    if len(words) != len(_FIELDS):
        raise ConfigError(
            f"Schedule {spec!r}: expected exactly 5 fields, found {len(words)}: {words}. They are "
            "minute, hour, day of month, month, day of week."
        )
    translated = [_translate_field(spec, f, word) for f, word in zip(_FIELDS, words, strict=True)]
    return " ".join(translated)


def _translate_field(spec: str, field: _Field, word: str) -> str:
    """Return a field in cronsim's form, so that it matches the times that Machinery matches."""
    items = [item for item in word.split(",") if item]
    if not items:
        raise ConfigError(f"Schedule {spec!r}: the field {field.name} is {word!r}, without values.")
    # If one of the two day fields is a star, a day must match both, else either. For a day field
    # */2 is not a star.
    is_day = field.name.startswith("day")
    found = []
    for item in items:
        is_star, values = _parse_item(spec, field, item)
        if is_day and is_star and values.step == 1:
            return "*"
        if is_star and not is_day:
            found.append("*" if values.step == 1 else f"*/{values.step}")
        else:
            found.append(",".join(map(str, values)))
    return ",".join(found)


def _parse_item(spec: str, field: _Field, item: str) -> tuple[bool, range]:
    """Return whether an item of a field's list is a star, and its values."""
    body, slash, step_text = item.partition("/")
    first, dash, last = body.partition("-")
    is_star = body in ("*", "?")
    least = field.least if is_star else _parse_number(spec, field, item, first)
    # As in robfig's cron, n/step goes from n to the highest value.
    to_end = is_star or (slash and not dash)
    most = field.most if to_end else _parse_number(spec, field, item, last) if dash else least
    step = _parse_digits(step_text) if slash else 1
    if not field.least <= least <= most <= field.most or not step:
        raise _item_error(spec, field, item)
    return is_star, range(least, most + 1, step)


def _parse_number(spec: str, field: _Field, item: str, text: str) -> int:
    if text.lower() in field.words:
        return field.words.index(text.lower()) + field.least
    number = _parse_digits(text)
    if number is None:
        raise _item_error(spec, field, item)
    return number


def _parse_digits(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _item_error(spec: str, field: _Field, item: str) -> ConfigError:
    words = f" or {field.words[0]} to {field.words[-1]}" if field.words else ""
    return ConfigError(
        f"Schedule {spec!r}: {item!r} is no {field.name}: give *, a number from {field.least} to "
        f"{field.most}{words}, a range a-b with a before b, or one of these with /step."
    )


def _load_cronsim(spec: str = "") -> type[CronSim]:
    try:
        from cronsim import CronSim  # noqa: PLC0415 - an extra, loaded where it is used
    except ImportError as error:
        raise ConfigError(
            f"Schedule {spec!r} needs the cron extra: pip install 'werk[cron]'. "
            "'@every 5m' and intervals do without."
        ) from error
    return CronSim
