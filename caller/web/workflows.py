"""
Bodies -> signatures and workflows, complete with ids. Pure but for the clock and random ids.

A body names registered tasks and queues that are known here only. Nothing is
sent here.
"""

from __future__ import annotations

import difflib
import uuid as uuids
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Struct

from caller.web.bodies import (
    CallBody,
    ChainBody,
    ChordBody,
    GroupBody,
    PieceBody,
    SendOptions,
    convert,
    given,
    signature_options,
)
from caller.web.problems import Problem
from caller.web.task_schema import TaskSchema
from machine.wire.signature import new_uuid
from machine.wire.text import shorten
from machine.workflow.pieces import Chain, Group, GroupChain, Piece, TypedSignature, series

#: Bytes of all messages of one workflow: what follows a group is in each member's message.
MOST_WORKFLOW_BYTES: Final = 64 << 20


class Drafted(NamedTuple):
    """A task of a request: its id, and its name."""

    uuid: str
    name: str


class Composer:
    """
    Composes one request's signatures.

    Args:
        tasks: The tasks known, by name.
        queues: Queues that may be named.
        carried: Headers of every message: the request's id, and its trace.
        seed: What all ids are derived from; random ones by default.

    Attributes:
        drafted: The tasks composed so far, in the body's order.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSchema],
        queues: Sequence[str],
        carried: Mapping[str, str],
        seed: uuids.UUID | None = None,
    ) -> None:
        self._tasks = tasks
        self._queues = queues
        self._carried = carried
        self._seed = seed
        self._groups = 0
        self._bytes = 0
        self._sizes: dict[int, int] = {}
        self.drafted: list[Drafted] = []

    def task(self, name: str, body: Any) -> TypedSignature[Any]:
        """
        Return the signature of a call.

        Raises:
            Problem: The body is not right, or there is no such task.
            SignatureError: The task could not be called so.
        """
        if name not in self._tasks:
            raise Problem("unknown-task", self._unknown(name))
        return self._signature(name, convert(body, CallBody), "", partial=False)

    def chain(self, body: Any) -> Chain[Any] | GroupChain[Any]:
        """Return the chain that a body asks for; raises as `task`."""
        return self._chain(convert(body, ChainBody).steps, "steps", 0, partial=False)

    def group(self, body: Any) -> Group[Any]:
        """Return the group that a body asks for; raises as `task`."""
        return self._group(convert(body, GroupBody).members, "members", 0, partial=False)

    def chord(self, body: Any) -> Piece[Any]:
        """Return the chord that a body asks for; a chain where its callback is one."""
        return self._chord(convert(body, ChordBody), "", 0, partial=False)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name[:256], self._tasks, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return (
            f"Task {shorten(name)} is not registered here.{hint} GET /tasks lists those that are."
        )

    # -- pieces ----------------------------------------------------------------------------
    # `where` is a piece's place in the body; `after` the bytes of what follows it, which is
    # part of its message; `partial` whether results are appended to its arguments.
    def _piece(self, body: PieceBody, where: str, after: int, *, partial: bool) -> Piece[Any]:
        for kind in ("chain", "group", "chord"):
            if getattr(body, kind) is not UNSET and len(given(body)) > 1:
                raise Problem("invalid", f"{where} has members beside {kind!r}; it stands alone.")
        if body.chain is not UNSET:
            return self._chain(body.chain, f"{where}.chain", after, partial=partial)
        if body.group is not UNSET:
            return self._group(body.group, f"{where}.group", after, partial=partial)
        if body.chord is not UNSET:
            return self._chord(body.chord, f"{where}.chord.", after, partial=partial)
        if body.name is UNSET:
            raise Problem("invalid", f"{where} has no member 'name'; give it.")
        if body.name not in self._tasks:
            raise Problem("invalid", f"{where}.name: {self._unknown(body.name)}")
        self._weigh(body, after)
        return self._signature(body.name, body, f"{where}.", partial=partial)

    def _chain(
        self, steps: Sequence[PieceBody], where: str, after: int, *, partial: bool
    ) -> Chain[Any] | GroupChain[Any]:
        sizes = [self._size(step) for step in steps]
        left, made = sum(sizes), []
        for at, (step, size) in enumerate(zip(steps, sizes, strict=True)):
            left -= size
            piece = self._piece(step, f"{where}[{at}]", after + left, partial=partial or at > 0)
            made.append(piece)
        return series(made)

    def _group(
        self, members: Sequence[PieceBody], where: str, after: int, *, partial: bool
    ) -> Group[Any]:
        self._groups += 1
        group_uuid = ""
        if self._seed is not None:
            group_uuid = f"group_{uuids.uuid5(self._seed, f'group {self._groups}')}"
        made = [
            self._piece(member, f"{where}[{at}]", after, partial=partial)
            for at, member in enumerate(members)
        ]
        return Group(made, group_uuid)

    def _chord(self, body: ChordBody, where: str, after: int, *, partial: bool) -> Piece[Any]:
        size = self._size(body.callback)
        members = self._group(body.members, f"{where}members", after + size, partial=partial)
        callback = self._piece(body.callback, f"{where}callback", after, partial=True)
        joined: Piece[Any] = members | callback
        return joined

    def _weigh(self, body: PieceBody, after: int) -> None:
        """Count what one more message holds: itself, and all that follows it."""
        self._bytes += self._size(body) + after
        if self._bytes > MOST_WORKFLOW_BYTES:
            raise Problem(
                "invalid",
                f"The workflow's messages would hold more than {MOST_WORKFLOW_BYTES >> 20} MiB "
                "together, for what follows a group travels with each of its members. Let a task "
                "send the rest.",
            )

    def _size(self, found: Any) -> int:
        """Return about how many bytes of JSON a value is; each part is looked at once."""
        if isinstance(found, str):
            return len(found) + 2
        if not isinstance(found, list | dict | Struct):
            return 8
        if id(found) not in self._sizes:  # the body outlives this composer's work
            parts: Any = found
            if not isinstance(found, list):
                members = found if isinstance(found, dict) else given(found)
                parts = [*members, *members.values()]
            self._sizes[id(found)] = 2 + sum(self._size(part) + 1 for part in parts)
        return self._sizes[id(found)]

    # -- one signature ---------------------------------------------------------------------
    def _signature(
        self, name: str, body: CallBody, where: str, *, partial: bool
    ) -> TypedSignature[Any]:
        args = [] if body.args is UNSET else body.args
        kwargs = {} if body.kwargs is UNSET else body.kwargs
        sending = SendOptions() if body.options is UNSET else body.options
        options = signature_options(sending, f"{where}options", self._queues)
        signature = self._tasks[name].call(args, kwargs, partial=partial)
        headers = {**self._carried, **options.pop("headers", {})}
        drafted = Drafted(self._new_id(), name)
        self.drafted.append(drafted)
        return signature.options(uuid=drafted.uuid, headers=headers, **options)

    def _new_id(self) -> str:
        if self._seed is None:
            return new_uuid("task")
        return f"task_{uuids.uuid5(self._seed, f'task {len(self.drafted)}')}"
