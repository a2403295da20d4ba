"""
Workflows in workflows -> the messages to send now, which carry all the others. Pure.

Machinery's wire has three ways to say "after": a task's ``OnSuccess``, which
may list several; and a group's ``ChordCallback``, which is one. So what follows
a task is sent by it, be it a task or all of a group; what follows a group is
the callback that its members carry; and between a group and a group stands
`GATHER`, a built-in task which takes all results of the one and hands them to
each member of the other. What a workflow in a group ends with is that group's
member. Nothing here knows bytes or ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from machine.errors import SignatureError
from machine.execution import Succeeded, running_task
from machine.results.group import Course
from machine.wire.limits import MOST_NESTED, MOST_NODES
from machine.wire.signature import Signature, TaskResult, copied
from machine.workflow.pieces import Group, steps_of

#: The name of the built-in task between two groups.
GATHER: Final = "machine.gather"
#: Fills in and checks a signature that nobody else holds; the prefix of its id.
Complete = Callable[[Signature, str], Signature]


def gather(*_values: Any) -> Any:
    """
    Return all that was appended to the arguments, types unchanged: the results of a group.

    Every registry knows it as `GATHER`; a Go worker does not.
    """
    context = running_task.get()
    args = context.signature.args if context is not None else ()
    return Succeeded([TaskResult(arg.type, arg.value) for arg in args])


class Stage(NamedTuple):
    """
    One step of a workflow as it is sent.

    Attributes:
        uuids: The task's id, or those of the group's members in order.
        task_name: The task's name, "" for a group.
        group_uuid: The group's id, "" for a task.
        at_once: Whether all of them are sent at once.
    """

    uuids: Sequence[str]
    task_name: str = ""
    group_uuid: str = ""
    at_once: bool = False


@dataclass(slots=True)
class Plan:
    """
    What a workflow comes to.

    Attributes:
        heads: The signatures to send now, complete; what follows is in them.
        stages: One for each step.
        course: All tasks.
        groups: Each group's id and its members, in order; whether all are sent at once.
        due_ns: Unix nanoseconds of the latest ETA of all; 0 = none.
    """

    heads: list[Signature]
    stages: list[Stage]
    course: Course
    groups: list[Stage]
    due_ns: int


@dataclass(slots=True)
class _After:
    """
    What comes after a piece: signatures its task sends, or a group its ends are members of.

    Attributes:
        then: Sent by the task before them.
        size: How many members the group has; 0 where this is no group.
        uuids: The members' ids, as they become known.
    """

    then: list[Signature] = field(default_factory=list)
    group_uuid: str = ""
    size: int = 0
    callback: Signature | None = None
    uuids: list[str] = field(default_factory=list)


def plan(
    steps: Sequence[Signature | Group[Any]],
    complete: Complete,
    new_group_uuid: Callable[[], str],
) -> Plan:
    """
    Return what is to be sent for these steps, one after another.

    Args:
        steps: As `steps_of` gives them; they are not written into.
        complete: Gives a signature its id and checks it.
        new_group_uuid: Makes a group's id.

    Raises:
        SignatureError: Two tasks have one id, or a message would hold too much.
    """
    return _Planner(complete, new_group_uuid).planned(steps)


class _Planner:
    """One run of `plan`: from the last step to the first, because each carries the next."""

    def __init__(self, complete: Complete, new_group_uuid: Callable[[], str]) -> None:
        self._complete, self._new_group_uuid = complete, new_group_uuid
        self._causes: dict[str, Sequence[str]] = {}
        self._groups: list[_After] = []
        self._due_ns = 0
        #: By id of an object that carries others: signatures in its message, and how deep they
        #: nest. What it carries lives as long as it does.
        self._sizes: dict[int, tuple[int, int]] = {}

    def planned(self, steps: Sequence[Signature | Group[Any]]) -> Plan:
        stages: list[_After | Signature] = []
        heads, uuids = self._series(steps, _After(), stages)
        _refuse_twins(uuids, "tasks")
        _refuse_twins([group.group_uuid for group in self._groups], "groups")
        for head in heads:
            head.headers = head.headers or {}
            self._refuse_giant(head)
        first = [head.uuid for head in heads]
        course = Course(uuids, first, self._causes)
        known = set(first)
        return Plan(
            heads,
            [_stage(stage, known) for stage in reversed(stages)],
            course,
            [_stage(group, known) for group in reversed(self._groups)],
            self._due_ns,
        )

    def _series(
        self,
        steps: Sequence[Signature | Group[Any]],
        after: _After,
        stages: list[_After | Signature] | None = None,
    ) -> tuple[list[Signature], list[str]]:
        """Return what is sent first of these steps, and the ids of all, causes first."""
        parts: list[list[str]] = []
        for place in range(len(steps) - 1, -1, -1):
            step = steps[place]
            after_group = place > 0 and isinstance(steps[place - 1], Group)
            stage: _After | Signature
            if isinstance(step, Signature):
                stage = self._task(step, after, "chord" if after_group else "task")
                after = _After([stage])
                parts.append([stage.uuid])
            else:
                # At the end of a group's member a group is no group of its own.
                stage = after if after.size else self._group(step, after)
                heads, uuids = self._members(step, stage)
                after = _After(heads)
                parts.append(uuids)
            if stages is not None:
                stages.append(stage)
            if after_group and not isinstance(step, Signature):
                collector = self._task(Signature(name=GATHER), after, "chord")
                after = _After([collector])
                parts.append([collector.uuid])
        return after.then, [uuid for part in reversed(parts) for uuid in part]

    def _task(self, step: Signature, after: _After, kind: str) -> Signature:
        """Return a complete copy that carries what comes after it."""
        own = copied(step)
        if after.then:
            own.on_success = []
        own = self._complete(own, kind)
        if kind == "task" and not own.headers and step.headers is None:
            own.headers = None  # Machinery writes {} when it sends, and null in what is nested
        if after.then:
            own.on_success = list(after.then)
            for follower in after.then:
                self._causes[follower.uuid] = [own.uuid]
        elif after.size:
            own.group_uuid, own.group_task_count = after.group_uuid, after.size
            own.chord_callback = after.callback or own.chord_callback
            after.uuids.append(own.uuid)
        if own.eta_ns and own.eta_ns > self._due_ns:
            self._due_ns = own.eta_ns
        if own.on_success or own.on_error or own.chord_callback is not None:
            self._measure(own)
        return own

    def _group(self, group: Group[Any], after: _After) -> _After:
        """Return what comes after a group's members: the group itself."""
        callback = after.then[0] if after.then else None
        made = _After(
            group_uuid=group.group_uuid or self._new_group_uuid(),
            size=_ends_of(group),
            callback=callback,
        )
        self._groups.append(made)
        if callback is not None:
            self._causes[callback.uuid] = made.uuids
        return made

    def _members(self, group: Group[Any], after: _After) -> tuple[list[Signature], list[str]]:
        heads: list[Signature] = []
        uuids: list[str] = []
        for piece in group.pieces:
            if isinstance(piece, Signature):
                heads.append(self._task(piece, after, "task"))
                uuids.append(heads[-1].uuid)
                continue
            more_heads, more_uuids = self._series(steps_of(piece), after)
            heads += more_heads
            uuids += more_uuids
        return heads, uuids

    def _measure(self, own: Signature) -> None:
        below = [self._size_of(one) for one in _carried(own)]
        nodes = 1 + sum(nodes for nodes, _ in below)
        self._sizes[id(own)] = nodes, 1 + max((depth for _, depth in below), default=-1)

    def _size_of(self, signature: Signature) -> tuple[int, int]:
        return self._sizes.get(id(signature)) or _size_of(signature)

    def _refuse_giant(self, head: Signature) -> None:
        nodes, depth = self._sizes.get(id(head), (1, 0))
        if nodes > MOST_NODES:
            raise SignatureError(
                f"The message of task {head.name!r} would hold {nodes} signatures; at most "
                f"{MOST_NODES}. What follows a task travels in its message, and what follows a "
                "group in that of each member: let large groups stand first, or let a task send "
                "the rest."
            )
        if depth > MOST_NESTED:
            raise SignatureError(
                f"The message of task {head.name!r} would hold {depth} tasks one after another; at "
                f"most {MOST_NESTED}. Let the last task of a shorter chain send the rest."
            )


def _carried(signature: Signature) -> list[Signature]:
    callback = signature.chord_callback
    found = [*signature.on_success, *signature.on_error]
    return found if callback is None else [*found, callback]


def _size_of(signature: Signature) -> tuple[int, int]:
    """Return how many signatures a message of this one would hold, and how deep they nest."""
    todo, deepest = [(signature, 0)], 0
    for one, depth in todo:  # grows meanwhile
        deepest = max(deepest, depth)
        if len(todo) <= MOST_NODES and depth <= MOST_NESTED:
            todo += ((carried, depth + 1) for carried in _carried(one))
    return len(todo), deepest


def _ends_of(group: Group[Any]) -> int:
    """Return how many tasks end a group's members."""
    lasts = [steps_of(piece)[-1] for piece in group.pieces]
    return sum(_ends_of(last) if isinstance(last, Group) else 1 for last in lasts)


def _stage(stage: _After | Signature, first: set[str]) -> Stage:
    if isinstance(stage, Signature):
        return Stage([stage.uuid], task_name=stage.name, at_once=stage.uuid in first)
    return Stage(
        stage.uuids, group_uuid=stage.group_uuid, at_once=all(u in first for u in stage.uuids)
    )


def _refuse_twins(uuids: Sequence[str], what: str) -> None:
    if len(set(uuids)) < len(uuids):
        twice = next(uuid for uuid, count in Counter(uuids).items() if count > 1)
        raise SignatureError(
            f"Two {what} of the workflow have the id {twice!r}; leave it empty, or give each its "
            "own."
        )
