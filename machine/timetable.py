"""
What is to be sent at which times: entries, and what is due at a moment. Pure.

Nothing here asks what time it is. A workflow is planned as it is entered, with ids that stand for
those of each run; `timetable_runs` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, Literal, NamedTuple, Self, TypedDict, get_args
from uuid import UUID, uuid5

from machine.cron import Schedule, parse, spec_text
from machine.errors import SignatureError
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Signature, copied
from machine.workflow.pieces import Chord, Group, series, steps_of
from machine.workflow.plan import Plan, plan

Kind = Literal["task", "chain", "group", "chord", "workflow"]
CatchUp = Literal["latest", "skip", "all"]

#: A time that is more than this in the past was missed, ms; ``skip`` does not send it any more.
MISSED_MS: Final = 10_000
#: Times that ``all`` makes up for at most, the last ones.
MOST_CAUGHT_UP: Final = 100
#: Root of the ids that stand in the plan of a workflow.
_NAMESPACE: Final = UUID("c5e0a1d2-7b34-5f68-8a9c-1f2d3e4b5a60")
_LONGEST_NAME: Final = 200
_SEP, _MOST_BYTES = "\x1f", 2**29


class Ways(TypedDict, total=False):
    """
    How an entry is served; each may be left out.

    Attributes:
        catch_up: What becomes of times nobody was there for: "latest" sends once for all of
            them, "skip" not at all, "all" once for each of the last 100.
        overlap: Whether a run may start while the one before has not ended.
        tz: Time zone of the five fields, like "Europe/Paris"; UTC by default.
    """

    catch_up: CatchUp
    overlap: bool
    tz: str | None


class PlannedGroup(NamedTuple):
    """
    A group of a planned workflow.

    Attributes:
        group_uuid: Its id in the plan.
        uuids: Those of its members, in order.
        at_once: Whether all of them are sent first.
    """

    group_uuid: str
    uuids: tuple[str, ...]
    at_once: bool


class Outline(NamedTuple):
    """
    What there is in a planned workflow.

    Attributes:
        uuids: Ids of all tasks in the plan, causes first.
        groups: Its groups.
    """

    uuids: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    One line of the timetable.

    Attributes:
        name: What it is known by in Redis, and in ids: one entry for each name and queue.
        spec: When; see `cron.parse`.
        kind: What its signatures are together; "workflow" where workflows are in it.
        signatures: Templates; their own ids are never used, for each run needs new ones. Of a
            workflow those that are sent first, which carry all others.
        callback: The chord's, ``None`` for the others.
        outline: The workflow's, ``None`` for the others.
        catch_up: See `Ways`, also for the other two.
        schedule: What ``spec`` means.

    Raises:
        ConfigError: The specification means no times.
        SignatureError: Name, kind or signatures are not usable.
    """

    name: str
    spec: str
    signatures: tuple[Signature, ...]
    kind: Kind = "task"
    callback: Signature | None = None
    catch_up: CatchUp = "latest"
    overlap: bool = True
    tz: str = ""
    outline: Outline | None = None
    schedule: Schedule = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.catch_up not in get_args(CatchUp):
            raise SignatureError(
                f"Schedule {self.name!r}: catch_up is {self.catch_up!r}; give 'latest', 'skip' or "
                "'all'."
            )
        if not self.signatures or (self.kind == "task" and len(self.signatures) > 1):
            raise SignatureError(
                f"Schedule {self.name!r}: a {self.kind} cannot have {len(self.signatures)} "
                "signatures."
            )
        object.__setattr__(self, "schedule", parse(self.spec, self.tz))

    @classmethod
    def of(
        cls,
        kind: Kind,
        spec: str | timedelta,
        name: str,
        signatures: Sequence[Any],
        callback: Any = None,
        *,
        catch_up: CatchUp = "latest",
        overlap: bool = True,
        tz: str | None = None,
    ) -> Self:
        """Return an entry with copies of these signatures or workflows; see the class."""
        check_name(name)
        outline = None
        if all(isinstance(one, Signature) for one in signatures) and (
            callback is None or isinstance(callback, Signature)
        ):
            signatures = [copied(signature) for signature in signatures]
            callback = None if callback is None else copied(callback)
        else:
            planned = _planned(kind, name, signatures, callback)
            kind, signatures, callback = "workflow", planned.heads, None
            outline = _outline(planned)
        return cls(
            name=name,
            spec=spec_text(spec),
            signatures=tuple(signatures),
            kind=kind,
            callback=callback,
            catch_up=catch_up,
            overlap=overlap,
            tz=tz or "",
            outline=outline,
        )

    def completed(self, complete: Callable[[Signature], Signature]) -> Self:
        """Return the entry with each of its signatures filled in and checked."""
        return replace(
            self,
            signatures=tuple(complete(copied(signature)) for signature in self.signatures),
            callback=None if self.callback is None else complete(copied(self.callback)),
        )


def check_name(name: str) -> None:
    """Raise `SignatureError` unless an entry may have this name."""
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise SignatureError(
            f"Schedule name {name!r} is not usable: give 1 to {_LONGEST_NAME} printable characters."
        )


def _planned(kind: Kind, name: str, pieces: Sequence[Any], callback: Any) -> Plan:
    """Return what these come to; the same ids whoever asks, and for whichever time."""
    numbers = count()

    def new_id(of: str) -> str:
        return f"{of}_{uuid5(_NAMESPACE, f'{name} {next(numbers)}')}"

    def named(own: Signature, of: str) -> Signature:
        own.uuid = new_id(of)
        return own

    def group_uuid() -> str:
        return new_id("group")

    try:
        if kind == "group":
            return plan(steps_of(Group(pieces)), named, group_uuid)
        if kind == "chord":
            return plan(steps_of(Chord(Group(pieces), callback)), named, group_uuid)
        return plan(series(pieces).steps, named, group_uuid)
    except SignatureError as error:
        raise SignatureError(f"Schedule {name!r}: {error}") from error


def _outline(planned: Plan) -> Outline:
    groups = [PlannedGroup(g.group_uuid, tuple(g.uuids), g.at_once) for g in planned.groups]
    return Outline(tuple(planned.course.uuids), tuple(groups))


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


# -- between processes -------------------------------------------------------------------------
def written(entries: Iterable[Entry]) -> bytes:
    """Return entries as lines of text that `read` understands; the last line is ``end``."""
    lines: list[bytes] = []
    for entry in entries:
        words = (entry.kind, entry.name, entry.spec, entry.tz, entry.catch_up)
        head = _SEP.join(("entry", *words, "1" if entry.overlap else ""))
        lines.append(head.encode())
        lines += [b"signature" + _SEP.encode() + encode_signature(s) for s in entry.signatures]
        if entry.callback is not None:
            lines.append(b"callback" + _SEP.encode() + encode_signature(entry.callback))
        if entry.outline is not None:
            lines.append(_SEP.join(("tasks", *entry.outline.uuids)).encode())
            lines += [
                _SEP.join(("group", "1" if at_once else "", uuid, *members)).encode()
                for uuid, members, at_once in entry.outline.groups
            ]
    return b"\n".join([*lines, b"end\n"])


def read(text: bytes) -> list[Entry]:
    """Return the entries of which `written` made this text."""
    drafts: list[_Draft] = []
    for line in text.splitlines():
        word, _, rest = line.partition(_SEP.encode())
        if word == b"entry":
            drafts.append(_Draft(rest.decode().split(_SEP), [], [], [], []))
        elif word == b"signature":
            drafts[-1].signatures.append(decode_signature(rest, most_bytes=_MOST_BYTES))
        elif word == b"callback":
            drafts[-1].callbacks.append(decode_signature(rest, most_bytes=_MOST_BYTES))
        elif word == b"tasks":
            drafts[-1].uuids.extend(rest.decode().split(_SEP))
        elif word == b"group":
            at_once, uuid, *members = rest.decode().split(_SEP)
            drafts[-1].groups.append(PlannedGroup(uuid, tuple(members), bool(at_once)))
    return [draft.entry() for draft in drafts]


class _Draft(NamedTuple):
    """An entry whose lines are still being read."""

    words: list[str]
    signatures: list[Signature]
    callbacks: list[Signature]
    uuids: list[str]
    groups: list[PlannedGroup]

    def entry(self) -> Entry:
        kind, name, spec, tz, catch_up, overlap = self.words
        return Entry(
            name=name,
            spec=spec,
            signatures=tuple(self.signatures),
            kind=next(k for k in get_args(Kind) if k == kind),
            callback=self.callbacks[0] if self.callbacks else None,
            catch_up=next(c for c in get_args(CatchUp) if c == catch_up),
            overlap=bool(overlap),
            tz=tz,
            outline=Outline(tuple(self.uuids), tuple(self.groups)) if self.uuids else None,
        )
