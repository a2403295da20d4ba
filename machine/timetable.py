"""
What is sent at which times: entries, and what follows from one of them and a moment. Pure.

Every id in what an entry sends is made from the entry's name and the time, so that any number of
schedulers, asked for the same time, send the same messages. Nothing here asks what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, Self, TypedDict, get_args
from uuid import UUID, uuid5

from machine import wire
from machine.cron import Schedule, parse, spec_text
from machine.errors import SignatureError
from machine.follow_up import copied
from machine.signature import GroupMeta, Signature
from machine.workflow import Chain, Group

Kind = Literal["task", "chain", "group", "chord"]
CatchUp = Literal["latest", "skip", "all"]

#: A time that is more than this in the past was missed, ms; ``skip`` does not send it any more.
MISSED_MS: Final = 10_000
#: Times that ``all`` makes up for at most, the last ones.
MOST_CAUGHT_UP: Final = 100
#: Root of the ids of what entries send.
_NAMESPACE: Final = UUID("3d8c1f7e-52ab-5b0d-9a44-6e0f2c9b7d15")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    One line of the timetable.

    Attributes:
        name: What it is known by in Redis, and in ids: one entry for each name and queue.
        spec: When; see `cron.parse`.
        kind: What its signatures are together.
        signatures: Templates; their own ids are never used, for each run needs new ones.
        callback: The chord's, ``None`` for the others.
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
        signatures: Sequence[Signature],
        callback: Signature | None = None,
        *,
        catch_up: CatchUp = "latest",
        overlap: bool = True,
        tz: str | None = None,
    ) -> Self:
        """Return an entry with copies of these signatures; see the class."""
        return cls(
            name=name,
            spec=spec_text(spec),
            signatures=tuple(copied(signature) for signature in signatures),
            kind=kind,
            callback=None if callback is None else copied(callback),
            catch_up=catch_up,
            overlap=overlap,
            tz=tz or "",
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


# -- what is sent ------------------------------------------------------------------------------
class Run(NamedTuple):
    """
    What an entry sends for one time.

    Attributes:
        signatures: To send now.
        uuids: Of every task of the run, also those that are sent later.
        meta: The group's record, or ``None``.
    """

    signatures: list[Signature]
    uuids: list[str]
    meta: GroupMeta | None


def run_of(entry: Entry, home: str, due_ms: int) -> Run:
    """
    Return what the entry sends for a time: the same whoever asks, however often.

    Args:
        entry: The entry.
        home: Queue whose keys hold the timetable; entries of two homes share no ids.
        due_ms: The time, Unix ms.
    """
    seed = f"{home} {entry.name} {due_ms}"
    if entry.kind == "chain":
        [first] = _named(seed, Chain(entry.signatures).linked()[:1])
        uuids = [first.uuid]
        link = first
        for _ in entry.signatures[1:]:
            [link] = link.on_success
            uuids.append(link.uuid)
        return Run([first], uuids, None)
    if entry.kind == "task":
        signatures = _named(seed, entry.signatures)
        return Run(signatures, [signatures[0].uuid], None)
    callback = None if entry.callback is None else _identified(entry.callback, seed, "c", "chord")
    group_uuid = _id("group", seed, "g")
    members = _named(seed, Group(entry.signatures).members(group_uuid))
    for member in members:
        member.chord_callback = callback or member.chord_callback
    uuids = [member.uuid for member in members]
    meta = GroupMeta(
        group_uuid=group_uuid,
        task_uuids=uuids,
        created_at=wire.now_text(due_ms * 1_000_000),
    )
    return Run(members, [*uuids, callback.uuid] if callback else uuids, meta)


def _named(seed: str, signatures: Iterable[Signature]) -> list[Signature]:
    return [_identified(s, seed, str(i), "task") for i, s in enumerate(signatures)]


def _identified(signature: Signature, seed: str, path: str, kind: str) -> Signature:
    """Return a copy, and copies of all below it, with ids that follow from seed and path."""
    own = copied(signature)
    own.uuid, own.eta_ns = _id(kind, seed, path), None
    own.on_success = [
        _identified(callback, seed, f"{path}.s{i}", "task")
        for i, callback in enumerate(own.on_success)
    ]
    own.on_error = [
        _identified(callback, seed, f"{path}.e{i}", "task")
        for i, callback in enumerate(own.on_error)
    ]
    if own.chord_callback is not None:
        own.chord_callback = _identified(own.chord_callback, seed, f"{path}.c", "chord")
    return own


def _id(kind: str, seed: str, path: str) -> str:
    return f"{kind}_{uuid5(_NAMESPACE, f'{seed} {path}')}"


# -- between processes -------------------------------------------------------------------------
def written(entries: Iterable[Entry]) -> bytes:
    """Return entries as lines of text that `read` understands; the last line is ``end``."""
    lines: list[bytes] = []
    for entry in entries:
        words = (entry.kind, entry.name, entry.spec, entry.tz, entry.catch_up)
        head = _SEP.join(("entry", *words, "1" if entry.overlap else ""))
        lines.append(head.encode())
        lines += [b"signature" + _SEP.encode() + wire.encode_signature(s) for s in entry.signatures]
        if entry.callback is not None:
            lines.append(b"callback" + _SEP.encode() + wire.encode_signature(entry.callback))
    return b"\n".join([*lines, b"end\n"])


def read(text: bytes) -> list[Entry]:
    """Return the entries of which `written` made this text."""
    drafts: list[_Draft] = []
    for line in text.splitlines():
        word, _, rest = line.partition(_SEP.encode())
        if word == b"entry":
            drafts.append(_Draft(rest.decode().split(_SEP), [], []))
        elif word == b"signature":
            drafts[-1].signatures.append(wire.decode_signature(rest, most_bytes=_MOST_BYTES))
        elif word == b"callback":
            drafts[-1].callbacks.append(wire.decode_signature(rest, most_bytes=_MOST_BYTES))
    return [draft.entry() for draft in drafts]


class _Draft(NamedTuple):
    """An entry whose lines are still being read."""

    words: list[str]
    signatures: list[Signature]
    callbacks: list[Signature]

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
        )
