"""When something is due: Machinery's grammar, the clocks' changes, and the search backwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from machine.errors import ConfigError
from machine.periodic import cron
from machine.periodic.cron import Cron, Every, parse_schedule, spec_text

MINUTE_MS, DAY_MS = 60_000, 86_400_000


def ms(text: str) -> int:
    """Return Unix ms of an ISO time, UTC by default."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def text(moment: int | None) -> str | None:
    """Return Unix ms as an ISO time in UTC."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment / 1000, UTC).replace(tzinfo=None).isoformat()


def first(spec: str, from_: str, count: int = 2, tz: str = "") -> list[str | None]:
    """Return the next times of a specification."""
    schedule, at, found = parse_schedule(spec, tz), ms(from_), []
    for _ in range(count):
        following = schedule.next_after(at)
        found.append(text(following))
        at = following if following is not None else at
    return found


# -- Machinery's grammar -----------------------------------------------------------------------
VECTORS = [
    ("*/5 * * * *", "2026-03-14T10:35:00", "2026-03-14T10:40:00"),
    ("5/20 * * * *", "2026-03-14T10:45:00", "2026-03-14T11:05:00"),
    ("1,2,,3 * * * *", "2026-03-14T11:01:00", "2026-03-14T11:02:00"),
    ("15 10 * * MON-FRI", "2026-03-16T10:15:00", "2026-03-17T10:15:00"),
    ("0 12 13 * 5", "2026-03-20T12:00:00", "2026-03-27T12:00:00"),
    ("0 12 */2 * 1", "2026-03-15T12:00:00", "2026-03-16T12:00:00"),
    ("0 12 ? * sun", "2026-03-15T12:00:00", "2026-03-22T12:00:00"),
    ("0 0 29 2 *", "2028-02-29T00:00:00", "2032-02-29T00:00:00"),
    ("0 0 31 2 *", None, None),
    ("0 0 1 jan,JUL *", "2026-07-01T00:00:00", "2027-01-01T00:00:00"),
    ("@weekly", "2026-03-15T00:00:00", "2026-03-22T00:00:00"),
    ("@every 90s", "2026-03-14T10:31:45", "2026-03-14T10:33:15"),
    ("@every 1500ms", "2026-03-14T10:30:16", "2026-03-14T10:30:17"),
    ("@every 10ms", "2026-03-14T10:30:16", "2026-03-14T10:30:17"),
    ("@every -5s", "2026-03-14T10:30:16", "2026-03-14T10:30:17"),
    ("CRON_TZ=America/New_York 0 6 * * *", "2026-03-15T10:00:00", "2026-03-16T10:00:00"),
]


@pytest.mark.parametrize(("spec", "following", "after"), VECTORS)
def test_times_are_those_of_go(spec: str, following: str | None, after: str | None) -> None:
    assert first(spec, "2026-03-14T10:30:15.500") == [following, after]


@pytest.mark.parametrize(
    ("spec", "following"),
    [
        ("0 0 * * 5/1", "2026-03-20T00:00:00"),  # Friday and Saturday, no more
        ("0 0 */1 * 1", "2026-03-16T00:00:00"),  # a star still: Mondays only
        ("0 0 1-31 * 1", "2026-03-15T00:00:00"),  # no star: any day
        ("0 0 7,? * 1", "2026-03-16T00:00:00"),  # a star anywhere in the list counts
        ("0 0 * * 0,*", "2026-03-15T00:00:00"),
        ("0 0 5-5/3 * *", "2026-04-05T00:00:00"),  # a range of one does not go on
        ("50/20 * * * *", "2026-03-14T10:50:00"),
        ("?/20 * * * *", "2026-03-14T10:40:00"),
        ("*/7,31 * * * *", "2026-03-14T10:31:00"),
        ("0 0 1 Mar-maY *", "2026-04-01T00:00:00"),
        ("0  9\t*  * *", "2026-03-15T09:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        ("@annually", "2027-01-01T00:00:00"),
        ("@monthly", "2026-04-01T00:00:00"),
        ("@daily", "2026-03-15T00:00:00"),
        ("@midnight", "2026-03-15T00:00:00"),
        ("@hourly", "2026-03-14T11:00:00"),
        ("TZ=Asia/Tokyo @daily", "2026-03-14T15:00:00"),
        ("CRON_TZ=Asia/Tokyo @every 90s", "2026-03-14T10:31:45"),
        ("@every 1h30m", "2026-03-14T12:00:15"),
        ("@every +1.5h", "2026-03-14T12:00:15"),
        ("@every .5m", "2026-03-14T10:30:45"),
        ("@every 2000000us", "2026-03-14T10:30:17"),
        ("@every 2000000\N{MICRO SIGN}s", "2026-03-14T10:30:17"),
        ("@every 3000000000ns", "2026-03-14T10:30:18"),
        ("@every 0", "2026-03-14T10:30:16"),
    ],
)
def test_the_corners_of_the_grammar_mean_what_they_mean_to_go(spec: str, following: str) -> None:
    assert first(spec, "2026-03-14T10:30:15.500", 1) == [following]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "* * * *",
            (
                "Schedule '* * * *': expected exactly 5 fields, found 4: ['*', '*', '*', '*']. "
                "They are minute, hour, day of month, month, day of week."
            ),
        ),
        (
            "* * * * 7",
            (
                "Schedule '* * * * 7': '7' is no day of week: give *, a number from 0 to 6 or sun "
                "to sat, a range a-b with a before b, or one of these with /step."
            ),
        ),
        (
            "60 * * * *",
            (
                "Schedule '60 * * * *': '60' is no minute: give *, a number from 0 to 59, a range "
                "a-b with a before b, or one of these with /step."
            ),
        ),
        (
            "@foo",
            (
                "Schedule '@foo': unknown descriptor; use @yearly, @annually, @monthly, @weekly, "
                "@daily, @midnight, @hourly, or '@every 90s'."
            ),
        ),
        (
            "@every x",
            "Schedule '@every x': 'x' is not a duration; write one like 90s, 1h30m or 1.5h.",
        ),
        (", * * * *", "Schedule ', * * * *': the field minute is ',', without values."),
        ("*\n* * * *", "Schedule '*\\n* * * *': it must be one line of plain text."),
        (
            "TZ=Nowhere * * * * *",
            (
                "Schedule 'TZ=Nowhere * * * * *': there is no time zone 'Nowhere' here; give one "
                "like Europe/Paris (on a small system, install tzdata)."
            ),
        ),
        (
            "@interval 99ms",
            "Schedule '@interval 99ms': the shortest interval is 100 ms; run the task in a loop.",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_cure(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_schedule(spec)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "spec",
    [
        *("", "* * * * * *", "5-1 * * * *", "*/0 * * * *", "L * * * *", "* * L * *", "-5 * * * *"),
        *("* * * * 1#2", "* * 15W * *", "sat-sun * * * *", "* * * * sat-sun", "1-2-3 * * * *"),
        *("1/2/3 * * * *", "5- * * * *", "5/ * * * *", "/5 * * * *", "*-5 * * * *", "+5 * * * *"),
        *("* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 0 *", "* * * 13 *", "1.5 * * * *"),
        *("@Daily", "@every", "@every ", "@every  5s", "@every 5", "@every 5s5", "@every 5d"),
        *("@every 99999999999999999h", "@every .s", "@every --5s", "\u0661 * * * *", "jan * * * *"),
        *("TZ=../../etc/passwd * * * * *", "TZ=America * * * * *", "TZ=UTC@daily", "@every 5s\n"),
        *("9" * 5000 + " * * * *", "@every " + "9" * 5000 + "s", "* * * *\x00 *"),
    ],
)
def test_a_specification_that_go_refuses_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"^Schedule "):
        parse_schedule(spec)


def test_a_zone_can_be_named_beside_the_specification() -> None:
    assert first("0 6 * * *", "2026-01-01", 1, "America/New_York") == ["2026-01-01T11:00:00"]
    assert parse_schedule("TZ=UTC @daily", "UTC") == parse_schedule("@daily")


def test_two_different_zones_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_schedule("TZ=Asia/Tokyo @daily", "UTC")

    assert str(caught.value) == (
        "Schedule 'TZ=Asia/Tokyo @daily': tz is 'UTC', which is another zone; give one."
    )


# -- without the extra -------------------------------------------------------------------------
def test_a_cron_expression_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)

    with pytest.raises(ConfigError) as caught:
        parse_schedule("@daily")

    assert str(caught.value) == (
        "Schedule '@daily' needs the cron extra: pip install 'werk[cron]'. '@every 5m' and "
        "intervals do without."
    )


@pytest.mark.parametrize("spec", ["@every 90s", "@interval 500ms"])
def test_an_interval_needs_no_extra(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)

    assert isinstance(parse_schedule(spec), Every)


# -- intervals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (timedelta(seconds=0.5), 500),
        (timedelta(milliseconds=1500), 1500),
        (timedelta(minutes=1), 60_000),
        (timedelta(days=400), 400 * DAY_MS),
    ],
)
def test_a_timedelta_is_kept_to_the_millisecond(interval: timedelta, expected: int) -> None:
    assert parse_schedule(spec_text(interval)) == Every(expected)


def test_text_stays_as_it_is() -> None:
    assert spec_text("@every 1500ms") == "@every 1500ms"


@pytest.mark.parametrize(
    ("period_ms", "start"), [(500, 1_700), (1_000, 1_000), (60_000, 1_000), (1_500, 1_700)]
)
def test_whole_seconds_are_counted_from_a_whole_second(period_ms: int, start: int) -> None:
    assert Every(period_ms).start(1_700) == start
    assert Every(period_ms).next_after(1_700) == start + period_ms


@given(
    st.integers(100, 100_000),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 5),
)
def test_the_last_times_of_an_interval_are_those_one_would_count(
    period_ms: int, after_ms: int, length_ms: int, most: int
) -> None:
    every, until_ms = Every(period_ms), after_ms + length_ms
    counted, at = [], every.next_after(after_ms)
    while at <= until_ms:
        counted.append(at)
        at += period_ms

    assert every.times(after_ms, until_ms, most) == counted[-most:]


# -- a walk through every minute ---------------------------------------------------------------
def numbers(least: int, most: int) -> st.SearchStrategy[str]:
    """Return items of one field."""
    one = st.integers(least, most)
    step = st.integers(1, most + 2)
    return st.one_of(
        st.sampled_from(["*", "?"]),
        st.builds("*/{}".format, step),
        one.map(str),
        st.builds("{}/{}".format, one, step),
        st.tuples(one, one).map(lambda ab: f"{min(ab)}-{max(ab)}"),
        st.builds(lambda a, b, s: f"{min(a, b)}-{max(a, b)}/{s}", one, one, step),
    )


def fields(least: int, most: int) -> st.SearchStrategy[str]:
    return st.lists(numbers(least, most), min_size=1, max_size=3).map(",".join)


SPECS = st.tuples(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 6))
#: Days around which the clocks of all zones below change.
MOMENTS = st.sampled_from(
    ["2026-03-07", "2026-03-28", "2026-10-24", "2026-10-31", "2026-02-27", "2028-02-28"]
)
ZONES = ["UTC", "America/New_York", "Europe/London", "America/Havana", "Asia/Tokyo"]


def values(field: str, least: int, most: int) -> set[int]:
    """Return a field's values, by robfig's rules."""
    found: set[int] = set()
    for item in field.split(","):
        body, _, step = item.partition("/")
        low, _, high = body.partition("-")
        start = least if low in "*?" else int(low)
        end = int(high) if high else most if low in "*?" or step else start
        found |= set(range(start, end + 1, int(step or 1)))
    return found


def has_star(field: str) -> bool:
    return any(item in {"*", "?", "*/1", "?/1"} for item in field.split(","))


class Walk:
    """The same question, answered by looking at every minute."""

    def __init__(self, spec: tuple[str, ...], zone: tzinfo) -> None:
        bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
        self.sets = [values(f, *b) for f, b in zip(spec, bounds, strict=True)]
        self.both = has_star(spec[2]) or has_star(spec[4])
        self.fixed = spec[0][0] not in "*?" and spec[1][0] not in "*?"
        self.zone = zone

    def matches(self, local: datetime) -> bool:
        minute, hour, day, month, weekday = self.sets
        in_month, in_week = local.day in day, (local.weekday() + 1) % 7 in weekday
        days = (in_month and in_week) if self.both else (in_month or in_week)
        return local.minute in minute and local.hour in hour and local.month in month and days

    def times(self, from_ms: int, until_ms: int) -> list[int]:
        """Return all times in (from_ms, until_ms]."""
        found = set()
        for at in range(from_ms // MINUTE_MS * MINUTE_MS - DAY_MS, until_ms + 1, MINUTE_MS):
            local = datetime.fromtimestamp(at // 1000, self.zone)
            if not self.fixed and self.matches(local):
                found.add(at)
        if self.fixed:
            found = set(self.wall(from_ms - DAY_MS, until_ms + DAY_MS))
        return sorted(at for at in found if from_ms < at <= until_ms)

    def wall(self, from_ms: int, until_ms: int) -> Iterator[int]:
        """Yield the moments of all local times: the first one, or that after a gap."""
        local = datetime.fromtimestamp(from_ms // 1000, self.zone).replace(tzinfo=None, second=0)
        while ms(f"{local.isoformat()}+00:00") < until_ms + DAY_MS:
            if self.matches(local):
                shown = local
                while not self.exists(shown):
                    shown += timedelta(minutes=1)
                yield int(shown.replace(tzinfo=self.zone).timestamp()) * 1000
            local += timedelta(minutes=1)

    @cache  # noqa: B019 - lives as long as one example
    def exists(self, local: datetime) -> bool:
        there = local.replace(tzinfo=self.zone)
        return there.astimezone(UTC).astimezone(self.zone).replace(tzinfo=None) == local


@settings(max_examples=60)
@given(SPECS, MOMENTS, st.integers(0, 86_399), st.sampled_from(ZONES), st.integers(1, 3))
@example(("30", "2", "*", "*", "*"), "2026-03-08", 0, "America/New_York", 1)
@example(("0,30", "2,3", "*", "*", "*"), "2026-03-08", 0, "America/New_York", 3)
@example(("30", "1", "*", "*", "*"), "2026-11-01", 0, "America/New_York", 3)
@example(("30", "*", "*", "*", "*"), "2026-11-01", 0, "America/New_York", 3)
@example(("*/20", "1", "*", "*", "*"), "2026-10-25", 0, "Europe/London", 3)
@example(("0", "0", "*", "*", "*"), "2026-03-08", 0, "America/Havana", 3)
@example(("*", "*/2", "*", "*", "0"), "2026-03-08", 0, "America/Havana", 1)
def test_times_are_those_found_by_walking_through_every_minute(
    spec: tuple[str, ...], day: str, second: int, zone: str, most: int
) -> None:
    from_ms = ms(day) + second * 1000
    until_ms = from_ms + 2 * DAY_MS
    schedule = parse_schedule(" ".join(spec), zone)
    walked = Walk(spec, ZoneInfo(zone)).times(from_ms, until_ms)

    found, at = [], schedule.next_after(from_ms)
    while at is not None and at <= until_ms:
        found.append(at)
        at = schedule.next_after(at)

    assert found == walked
    assert schedule.times(from_ms, until_ms, most) == walked[-most:]


# -- where the clocks change -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "from_", "expected"),
    [
        # 02:30 does not exist on the 8th: it is sent when the clocks have changed, at 03:00.
        ("30 2 * * *", "2026-03-08T05:00", ["2026-03-08T07:00:00", "2026-03-09T06:30:00"]),
        # 01:30 comes twice on the 1st of November: the first one counts.
        ("30 1 * * *", "2026-11-01T05:00", ["2026-11-01T05:30:00", "2026-11-02T06:30:00"]),
        ("30 1 * * *", "2026-11-01T05:31", ["2026-11-02T06:30:00", "2026-11-03T06:30:00"]),
        # Each hour is each hour.
        ("0 * * * *", "2026-11-01T05:00", ["2026-11-01T06:00:00", "2026-11-01T07:00:00"]),
        ("0 * * * *", "2026-03-08T06:30", ["2026-03-08T07:00:00", "2026-03-08T08:00:00"]),
    ],
)
def test_a_time_of_day_comes_once_where_the_clocks_change(
    spec: str, from_: str, expected: list[str]
) -> None:
    assert first(spec, from_, tz="America/New_York") == expected


# -- backwards ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("* * * * *", "2026-03-14T10:30:00"),
        ("0 0 1 1 *", "2026-01-01T00:00:00"),
        ("0 0 29 2 *", "2024-02-29T00:00:00"),
        ("* 11 * * *", "2026-03-13T11:59:00"),
    ],
)
def test_the_last_time_is_found_however_long_nobody_looked(spec: str, expected: str) -> None:
    [found] = parse_schedule(spec).times(ms("2000-01-01"), ms("2026-03-14T10:30:15"), 1)

    assert text(found) == expected


def test_a_time_that_never_comes_was_never_there() -> None:
    assert parse_schedule("0 0 31 2 *").times(ms("2000-01-01"), ms("2026-01-01"), 5) == []


def test_the_last_hundred_of_a_year_of_minutes_do_not_take_a_walk_through_it() -> None:
    steps = 0

    class Counted(cron.Cron):
        def _walk(self, at: int) -> Iterator[int]:
            nonlocal steps
            for found in super()._walk(at):
                steps += 1
                yield found

    schedule = Counted("* * * * *", UTC)

    found = schedule.times(ms("2025-01-01"), ms("2026-01-01"), 100)

    assert found == [ms("2026-01-01") - n * MINUTE_MS for n in range(99, -1, -1)]
    assert steps < 2000


def test_a_schedule_is_equal_to_another_of_the_same_times() -> None:
    assert parse_schedule("@hourly") == Cron("0 * * * *", UTC)
