"""
The messages that an entry sends for one time. Pure.

Every id follows from the entry's name and the time. So any number of schedulers make the same
messages for a time, and the store keeps the first. Of a planned workflow each run gets ids of its
own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from machine.periodic.entries import Entry, Outline
from machine.wire.signature import GroupMeta, Signature, copy_signature
from machine.wire.text import format_time
from machine.workflow.pieces import Chain, Group

#: Namespace of the ids of all runs.
_NAMESPACE: Final = UUID("3d8c1f7e-52ab-5b0d-9a44-6e0f2c9b7d15")


class PeriodicRun(NamedTuple):
    """
    What an entry sends for one time.

    Attributes:
        signatures: To send now.
        uuids: Ids of all tasks of the run, also of those that are sent later.
        metas: The records of its groups; write them before anything is sent.
    """

    signatures: list[Signature]
    uuids: list[str]
    metas: list[GroupMeta]


def run_of(entry: Entry, home: str, due_ms: int) -> PeriodicRun:
    """
    Return what the entry sends for a time; always the same for the same arguments.

    Args:
        entry: The entry.
        home: Queue whose keys hold the timetable; entries of two homes share no ids.
        due_ms: The time, Unix ms.
    """
    seed, created_at = f"{home} {entry.name} {due_ms}", format_time(due_ms * 1_000_000)
    if entry.outline is not None:
        return _workflow_run(entry, entry.outline, seed, created_at)
    if entry.kind == "chain":
        [first] = _rename_all(seed, Chain(entry.signatures).linked()[:1])
        uuids = [first.uuid]
        link = first
        for _ in entry.signatures[1:]:
            [link] = link.on_success
            uuids.append(link.uuid)
        return PeriodicRun([first], uuids, [])
    if entry.kind == "task":
        signatures = _rename_all(seed, entry.signatures)
        return PeriodicRun(signatures, [signatures[0].uuid], [])
    callback = None if entry.callback is None else _Renamer(seed).copy(entry.callback, "c", "chord")
    group_uuid = _id("group", seed, "g")
    members = _rename_all(seed, Group(entry.signatures).members(group_uuid))
    for member in members:
        member.chord_callback = callback or member.chord_callback
    uuids = [member.uuid for member in members]
    meta = GroupMeta(group_uuid=group_uuid, task_uuids=uuids, created_at=created_at)
    return PeriodicRun(members, [*uuids, callback.uuid] if callback else uuids, [meta])


def _workflow_run(entry: Entry, outline: Outline, seed: str, created_at: str) -> PeriodicRun:
    """Return a planned workflow's run: its plan, with every placeholder id replaced."""
    known = {uuid: _id(uuid.partition("_")[0], seed, uuid) for uuid in outline.uuids}
    known |= {g.group_uuid: _id("group", seed, g.group_uuid) for g in outline.groups}
    renamer = _Renamer(seed, known)
    metas = [
        GroupMeta(
            group_uuid=known[group.group_uuid],
            task_uuids=[known[uuid] for uuid in group.uuids],
            created_at=created_at,
            nested=not group.at_once,
        )
        for group in outline.groups
    ]
    heads = [renamer.copy(head, "", "task") for head in entry.signatures]
    return PeriodicRun(heads, [known[uuid] for uuid in outline.uuids], metas)


def _rename_all(seed: str, signatures: Iterable[Signature]) -> list[Signature]:
    renamer = _Renamer(seed)
    return [renamer.copy(signature, str(i), "task") for i, signature in enumerate(signatures)]


class _Renamer:
    """
    Copies signatures and gives the copies the ids of one run.

    Args:
        seed: Differs between any two runs.
        known: Placeholder id -> id in the run; other ids follow from seed and path.
    """

    def __init__(self, seed: str, known: Mapping[str, str] | None = None) -> None:
        self._seed, self._known = seed, known or {}
        #: Id -> copy. Each member of a group carries the same callback: it is copied once.
        self._made: dict[str, Signature] = {}

    def copy(self, signature: Signature, path: str, kind: str) -> Signature:
        """
        Return a copy of a signature and its callbacks.

        Args:
            signature: One of the plan.
            path: Its place in the entry, from which its id follows.
            kind: The prefix of its id.
        """
        uuid = self._known.get(signature.uuid, "")
        if uuid in self._made:
            return self._made[uuid]
        own = copy_signature(signature)
        own.uuid, own.eta_ns = uuid or _id(kind, self._seed, path), None
        own.group_uuid = self._known.get(own.group_uuid, own.group_uuid)
        path = uuid or path
        own.on_success = [
            self.copy(callback, f"{path}.s{i}", "task") for i, callback in enumerate(own.on_success)
        ]
        own.on_error = [
            self.copy(callback, f"{path}.e{i}", "task") for i, callback in enumerate(own.on_error)
        ]
        if own.chord_callback is not None:
            own.chord_callback = self.copy(own.chord_callback, f"{path}.c", "chord")
        if uuid:
            self._made[uuid] = own
        return own


def _id(kind: str, seed: str, path: str) -> str:
    return f"{kind}_{uuid5(_NAMESPACE, f'{seed} {path}')}"
