"""
An entry and a time -> what is sent: the same whoever asks, however often. Pure.

Every id is made from the entry's name and the time, so that any number of schedulers, asked for
the same time, send the same messages. A workflow was planned when it was entered; for each time
its plan gets ids of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from machine.periodic.entries import Entry, Outline
from machine.wire.signature import GroupMeta, Signature, copy_signature
from machine.wire.text import format_time
from machine.workflow.pieces import Chain, Group

#: Root of the ids of what entries send.
_NAMESPACE: Final = UUID("3d8c1f7e-52ab-5b0d-9a44-6e0f2c9b7d15")


class Run(NamedTuple):
    """
    What an entry sends for one time.

    Attributes:
        signatures: To send now.
        uuids: Of every task of the run, also those that are sent later.
        metas: The groups' records; written before anything is sent.
    """

    signatures: list[Signature]
    uuids: list[str]
    metas: list[GroupMeta]


def run_of(entry: Entry, home: str, due_ms: int) -> Run:
    """
    Return what the entry sends for a time: the same whoever asks, however often.

    Args:
        entry: The entry.
        home: Queue whose keys hold the timetable; entries of two homes share no ids.
        due_ms: The time, Unix ms.
    """
    seed, created_at = f"{home} {entry.name} {due_ms}", format_time(due_ms * 1_000_000)
    if entry.outline is not None:
        return _workflow(entry, entry.outline, seed, created_at)
    if entry.kind == "chain":
        [first] = _named(seed, Chain(entry.signatures).linked()[:1])
        uuids = [first.uuid]
        link = first
        for _ in entry.signatures[1:]:
            [link] = link.on_success
            uuids.append(link.uuid)
        return Run([first], uuids, [])
    if entry.kind == "task":
        signatures = _named(seed, entry.signatures)
        return Run(signatures, [signatures[0].uuid], [])
    callback = None if entry.callback is None else _Renamed(seed).of(entry.callback, "c", "chord")
    group_uuid = _id("group", seed, "g")
    members = _named(seed, Group(entry.signatures).members(group_uuid))
    for member in members:
        member.chord_callback = callback or member.chord_callback
    uuids = [member.uuid for member in members]
    meta = GroupMeta(group_uuid=group_uuid, task_uuids=uuids, created_at=created_at)
    return Run(members, [*uuids, callback.uuid] if callback else uuids, [meta])


def _workflow(entry: Entry, outline: Outline, seed: str, created_at: str) -> Run:
    """Return a planned workflow's run: each id of the plan is replaced, wherever it stands."""
    known = {uuid: _id(uuid.partition("_")[0], seed, uuid) for uuid in outline.uuids}
    known |= {g.group_uuid: _id("group", seed, g.group_uuid) for g in outline.groups}
    renamed = _Renamed(seed, known)
    metas = [
        GroupMeta(
            group_uuid=known[group.group_uuid],
            task_uuids=[known[uuid] for uuid in group.uuids],
            created_at=created_at,
            nested=not group.at_once,
        )
        for group in outline.groups
    ]
    heads = [renamed.of(head, "", "task") for head in entry.signatures]
    return Run(heads, [known[uuid] for uuid in outline.uuids], metas)


def _named(seed: str, signatures: Iterable[Signature]) -> list[Signature]:
    renamed = _Renamed(seed)
    return [renamed.of(signature, str(i), "task") for i, signature in enumerate(signatures)]


class _Renamed:
    """
    Copies with the ids of one run.

    Args:
        seed: What is different for each run.
        known: Id of a plan -> id of the run; the others follow from seed and path.
    """

    def __init__(self, seed: str, known: Mapping[str, str] | None = None) -> None:
        self._seed, self._known = seed, known or {}
        #: By id: what follows a group is carried by each of its members.
        self._made: dict[str, Signature] = {}

    def of(self, signature: Signature, path: str, kind: str) -> Signature:
        """Return a copy, and copies of all below it; ``path`` says where it stands."""
        uuid = self._known.get(signature.uuid, "")
        if uuid in self._made:
            return self._made[uuid]
        own = copy_signature(signature)
        own.uuid, own.eta_ns = uuid or _id(kind, self._seed, path), None
        own.group_uuid = self._known.get(own.group_uuid, own.group_uuid)
        path = uuid or path
        own.on_success = [
            self.of(callback, f"{path}.s{i}", "task") for i, callback in enumerate(own.on_success)
        ]
        own.on_error = [
            self.of(callback, f"{path}.e{i}", "task") for i, callback in enumerate(own.on_error)
        ]
        if own.chord_callback is not None:
            own.chord_callback = self.of(own.chord_callback, f"{path}.c", "chord")
        if uuid:
            self._made[uuid] = own
        return own


def _id(kind: str, seed: str, path: str) -> str:
    return f"{kind}_{uuid5(_NAMESPACE, f'{seed} {path}')}"
