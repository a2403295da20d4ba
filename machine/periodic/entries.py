"""
The entries of the timetable: what is sent, and at which times. Pure.

A workflow is planned once, when it is registered, with placeholder ids. `runs` replaces them by
the ids of each run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any, Final, Literal, NamedTuple, Self, TypedDict, get_args
from uuid import UUID, uuid5

from machine.errors import SignatureError
from machine.periodic.cron import Schedule, parse_schedule, spec_text
from machine.wire.signature import Signature, copy_signature
from machine.workflow.pieces import Chord, Group, series, steps_of
from machine.workflow.plan import WorkflowPlan, make_plan

EntryKind = Literal["task", "chain", "group", "chord", "workflow"]
CatchUp = Literal["latest", "skip", "all"]
#: Namespace of the placeholder ids in the plan of a workflow.
_NAMESPACE: Final = UUID("c5e0a1d2-7b34-5f68-8a9c-1f2d3e4b5a60")
_LONGEST_NAME: Final = 200


class PeriodicOptions(TypedDict, total=False):
    """
    The options of an entry; each may be left out.

    Attributes:
        catch_up: What to send for times at which no scheduler ran: "latest" sends once for
            all of them, "skip" not at all, "all" once for each of the last 100.
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
        uuids: Ids of its members, in order.
        at_once: Whether all its members are sent at the start of a run.
    """

    group_uuid: str
    uuids: tuple[str, ...]
    at_once: bool


class Outline(NamedTuple):
    """
    The ids in a planned workflow, which each run replaces.

    Attributes:
        uuids: Ids of all tasks, each behind those that it follows.
        groups: Its groups.
    """

    uuids: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    One line of the timetable.

    Attributes:
        name: Its name in Redis and in the ids of its runs; unique for each default queue.
        spec: When it is due; see `cron.parse_schedule`.
        kind: What its signatures form; "workflow" if one of them is a workflow itself.
        signatures: Templates; each run gets ids of its own. Of a workflow those that are sent
            first, which carry all others as callbacks.
        callback: The chord's callback; ``None`` for other kinds.
        outline: The workflow's ids; ``None`` for other kinds.
        catch_up: See `PeriodicOptions`.
        overlap: See `PeriodicOptions`.
        tz: See `PeriodicOptions`; "" = UTC.
        schedule: The times that ``spec`` means.

    Raises:
        ConfigError: The specification means no times.
        SignatureError: Name, kind or signatures are not usable.
    """

    name: str
    spec: str
    signatures: tuple[Signature, ...]
    kind: EntryKind = "task"
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
        object.__setattr__(self, "schedule", parse_schedule(self.spec, self.tz))

    @classmethod
    def of(
        cls,
        kind: EntryKind,
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
            signatures = [copy_signature(signature) for signature in signatures]
            callback = None if callback is None else copy_signature(callback)
        else:
            planned = _plan_pieces(kind, name, signatures, callback)
            kind, signatures, callback = "workflow", planned.heads, None
            outline = _make_outline(planned)
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

    def complete(self, fill: Callable[[Signature], Signature]) -> Self:
        """Return a copy whose signatures are filled in and checked by ``fill``."""
        return replace(
            self,
            signatures=tuple(fill(copy_signature(signature)) for signature in self.signatures),
            callback=None if self.callback is None else fill(copy_signature(self.callback)),
        )


def check_name(name: str) -> None:
    """Raise `SignatureError` unless an entry may have this name."""
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise SignatureError(
            f"Schedule name {name!r} is not usable: give 1 to {_LONGEST_NAME} printable characters."
        )


def _plan_pieces(kind: EntryKind, name: str, pieces: Sequence[Any], callback: Any) -> WorkflowPlan:
    """Plan a workflow; every process that plans it gives its tasks the same placeholder ids."""
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
            return make_plan(steps_of(Group(pieces)), named, group_uuid)
        if kind == "chord":
            return make_plan(steps_of(Chord(Group(pieces), callback)), named, group_uuid)
        return make_plan(series(pieces).steps, named, group_uuid)
    except SignatureError as error:
        raise SignatureError(f"Schedule {name!r}: {error}") from error


def _make_outline(planned: WorkflowPlan) -> Outline:
    groups = [PlannedGroup(g.group_uuid, tuple(g.uuids), g.at_once) for g in planned.groups]
    return Outline(tuple(planned.graph.uuids), tuple(groups))
