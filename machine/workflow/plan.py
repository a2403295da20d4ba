"""
Workflows in workflows -> the messages to send now, which carry all the others. Pure.

On Machinery's wire a task can name what comes after it in two ways. ``OnSuccess`` lists
signatures, so a task sends what follows it: one task, or every member of a group.
``ChordCallback`` is one signature, so a group is followed by one task, whose signature
each member carries. A group cannot send a group: between the two stands `GATHER`, a
built-in task that takes all results of the first and hands them to each member of the
second. Where a member of a group is itself a workflow, the task that ends it is the
member. Nothing here knows bytes or ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from machine.errors import SignatureError
from machine.execution import Succeeded, running_task
from machine.results.group import TaskGraph
from machine.wire.limits import MOST_NESTED, MOST_NODES
from machine.wire.signature import Signature, TaskResult, copy_signature
from machine.workflow.pieces import Group, steps_of

#: The name of the built-in task between two groups.
GATHER: Final = "machine.gather"
#: Fills in and checks a signature that nobody else holds; the prefix of its id.
Complete = Callable[[Signature, str], Signature]


def gather(*_values: Any) -> Any:
    """
    Return the arguments, types unchanged: to them the results of a group were appended.

    Every registry knows it as `GATHER`; a Go worker does not.
    """
    context = running_task.get()
    args = context.signature.args if context is not None else ()
    return Succeeded([TaskResult(arg.type, arg.value) for arg in args])


class PlannedStep(NamedTuple):
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
class WorkflowPlan:
    """
    What is sent for a workflow.

    Attributes:
        heads: The signatures to send now, complete; what follows is in them.
        steps: One for each step.
        graph: All tasks, and which follow which.
        groups: Each group's id and its members, in order; whether all are sent at once.
        due_ns: Unix nanoseconds of the latest ETA of all; 0 = none.
    """

    heads: list[Signature]
    steps: list[PlannedStep]
    graph: TaskGraph
    groups: list[PlannedStep]
    due_ns: int


@dataclass(slots=True)
class _After:
    """
    What comes after a piece: signatures that its last task sends, or a group it is a member of.

    Attributes:
        then: Signatures that the task before them sends.
        size: How many members the group has; 0 where this is no group.
        uuids: The members' ids, as they become known.
    """

    then: list[Signature] = field(default_factory=list)
    group_uuid: str = ""
    size: int = 0
    callback: Signature | None = None
    uuids: list[str] = field(default_factory=list)


def make_plan(
    steps: Sequence[Signature | Group[Any]],
    complete: Complete,
    new_group_uuid: Callable[[], str],
) -> WorkflowPlan:
    """
    Return what is to be sent for these steps, one after another.

    Args:
        steps: As `steps_of` gives them; they are not written into.
        complete: Gives a signature its id and checks it.
        new_group_uuid: Makes a group's id.

    Raises:
        SignatureError: Two tasks have one id, or a message would hold too much.
    """
    return _Planner(complete, new_group_uuid).plan(steps)


class _Planner:
    """One run of `make_plan`: from the last step to the first, because each carries the next."""

    def __init__(self, complete: Complete, new_group_uuid: Callable[[], str]) -> None:
        self._complete, self._new_group_uuid = complete, new_group_uuid
        self._causes: dict[str, Sequence[str]] = {}
        self._groups: list[_After] = []
        self._due_ns = 0
        #: id() of a signature that carries others -> how many its message holds, and how deep
        #: they nest. Kept because each is carried by many, and counting anew would be quadratic.
        #: An id() is not used again meanwhile: what comes before a signature holds it.
        self._sizes: dict[int, tuple[int, int]] = {}

    def plan(self, steps: Sequence[Signature | Group[Any]]) -> WorkflowPlan:
        step_ends: list[_After | Signature] = []
        heads, uuids = self._add_steps(steps, _After(), step_ends)
        _refuse_duplicates(uuids, "tasks")
        _refuse_duplicates([group.group_uuid for group in self._groups], "groups")
        for head in heads:
            head.headers = head.headers or {}
            self._check_size(head)
        first = [head.uuid for head in heads]
        graph = TaskGraph(uuids, first, self._causes)
        known = set(first)
        return WorkflowPlan(
            heads,
            [_planned_step(one, known) for one in reversed(step_ends)],
            graph,
            [_planned_step(group, known) for group in reversed(self._groups)],
            self._due_ns,
        )

    def _add_steps(
        self,
        steps: Sequence[Signature | Group[Any]],
        after: _After,
        step_ends: list[_After | Signature] | None = None,
    ) -> tuple[list[Signature], list[str]]:
        """
        Return what is sent first of these steps, and the ids of all, causes first.

        Args:
            steps: One after another.
            after: What comes after the last one.
            step_ends: Gets a task or a group for each step, the last step first.
        """
        parts: list[list[str]] = []
        for place in range(len(steps) - 1, -1, -1):
            step = steps[place]
            after_group = place > 0 and isinstance(steps[place - 1], Group)
            made: _After | Signature
            if isinstance(step, Signature):
                made = self._add_task(step, after, "chord" if after_group else "task")
                after = _After([made])
                parts.append([made.uuid])
            else:
                # A group that ends a member of another group adds its members to that one.
                made = after if after.size else self._add_group(step, after)
                heads, uuids = self._add_members(step, made)
                after = _After(heads)
                parts.append(uuids)
            if step_ends is not None:
                step_ends.append(made)
            if after_group and not isinstance(step, Signature):
                collector = self._add_task(Signature(name=GATHER), after, "chord")
                after = _After([collector])
                parts.append([collector.uuid])
        return after.then, [uuid for part in reversed(parts) for uuid in part]

    def _add_task(self, step: Signature, after: _After, kind: str) -> Signature:
        """Return a complete copy that carries what comes after it."""
        own = copy_signature(step)
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

    def _add_group(self, group: Group[Any], after: _After) -> _After:
        """Note a group; return it as what comes after its members."""
        callback = after.then[0] if after.then else None
        made = _After(
            group_uuid=group.group_uuid or self._new_group_uuid(),
            size=_count_ends(group),
            callback=callback,
        )
        self._groups.append(made)
        if callback is not None:
            self._causes[callback.uuid] = made.uuids
        return made

    def _add_members(self, group: Group[Any], after: _After) -> tuple[list[Signature], list[str]]:
        heads: list[Signature] = []
        uuids: list[str] = []
        for piece in group.pieces:
            if isinstance(piece, Signature):
                heads.append(self._add_task(piece, after, "task"))
                uuids.append(heads[-1].uuid)
                continue
            more_heads, more_uuids = self._add_steps(steps_of(piece), after)
            heads += more_heads
            uuids += more_uuids
        return heads, uuids

    def _measure(self, own: Signature) -> None:
        below = [self._size_of(one) for one in _list_carried(own)]
        nodes = 1 + sum(nodes for nodes, _ in below)
        self._sizes[id(own)] = nodes, 1 + max((depth for _, depth in below), default=-1)

    def _size_of(self, signature: Signature) -> tuple[int, int]:
        return self._sizes.get(id(signature)) or _size_of(signature)

    def _check_size(self, head: Signature) -> None:
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


def _list_carried(signature: Signature) -> list[Signature]:
    callback = signature.chord_callback
    carried = [*signature.on_success, *signature.on_error]
    return carried if callback is None else [*carried, callback]


def _size_of(signature: Signature) -> tuple[int, int]:
    """Return how many signatures a message of this one would hold, and how deep they nest."""
    todo, deepest = [(signature, 0)], 0
    for one, depth in todo:  # grows meanwhile, up to the bounds that are checked afterwards
        deepest = max(deepest, depth)
        if len(todo) <= MOST_NODES and depth <= MOST_NESTED:
            todo += ((carried, depth + 1) for carried in _list_carried(one))
    return len(todo), deepest


def _count_ends(group: Group[Any]) -> int:
    """Return how many tasks end a group's members."""
    lasts = [steps_of(piece)[-1] for piece in group.pieces]
    return sum(_count_ends(last) if isinstance(last, Group) else 1 for last in lasts)


def _planned_step(made: _After | Signature, first: set[str]) -> PlannedStep:
    if isinstance(made, Signature):
        return PlannedStep([made.uuid], task_name=made.name, at_once=made.uuid in first)
    return PlannedStep(
        made.uuids, group_uuid=made.group_uuid, at_once=all(u in first for u in made.uuids)
    )


def _refuse_duplicates(uuids: Sequence[str], what: str) -> None:
    if len(set(uuids)) < len(uuids):
        twice = next(uuid for uuid, count in Counter(uuids).items() if count > 1)
        raise SignatureError(
            f"Two {what} of the workflow have the id {twice!r}; leave it empty, or give each its "
            "own."
        )
