"""
Bodies -> signatures and workflows, complete with ids. Pure but for the clock and random ids.

A body names registered tasks only, queues that are known here only, and the
options that `OPTIONS` lists. Nothing is sent here.
"""

from __future__ import annotations

import difflib
import uuid as uuids
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from caller.web import bodies
from caller.web.bodies import OPTIONS
from caller.web.problems import Problem
from caller.web.task_schema import Form
from machine.wire.signature import new_uuid
from machine.wire.text import shown
from machine.workflow.pieces import Chain, Group, GroupChain, Piece, TypedSignature, series

#: Bytes of all messages of one workflow: what follows a group is in each member's message.
MOST_WORKFLOW_BYTES: Final = 64 << 20

_CALL: Final = ("args", "kwargs", "options")
_SIGNATURE: Final = ("name", *_CALL)
_PIECES: Final = ("chain", "group", "chord")


class Drafted(NamedTuple):
    """A task of a request: its id, and its name."""

    uuid: str
    name: str


class Composer:
    """
    Composes one request's signatures.

    Args:
        forms: The tasks known, by name.
        queues: Queues that may be named.
        carried: Headers of every message: the request's id, and its trace.
        seed: What all ids are derived from; random ones by default.

    Attributes:
        drafted: The tasks composed so far, in the body's order.
    """

    def __init__(
        self,
        forms: Mapping[str, Form],
        queues: Sequence[str],
        carried: Mapping[str, str],
        seed: uuids.UUID | None = None,
    ) -> None:
        self._forms = forms
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
        call = bodies.members(body, "the body", _CALL)
        if name not in self._forms:
            raise Problem("unknown-task", self._unknown(name))
        return self._signature(name, call, "", partial=False)

    def chain(self, body: Any) -> Chain[Any] | GroupChain[Any]:
        """Return the chain that a body asks for: ``{"steps": […]}``; raises as `task`."""
        found = bodies.members(body, "the body", ("steps",))
        return self._chain(found.get("steps"), "steps", 0, partial=False)

    def group(self, body: Any) -> Group[Any]:
        """Return the group that a body asks for: ``{"members": […]}``; raises as `task`."""
        found = bodies.members(body, "the body", ("members",))
        return self._group(found.get("members"), "members", 0, partial=False)

    def chord(self, body: Any) -> Piece[Any]:
        """Return the chord that a body asks for; a chain where its callback is one."""
        return self._chord(body, "the body", 0, partial=False)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name[:256], self._forms, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"Task {shown(name)} is not registered here.{hint} GET /tasks lists those that are."

    # -- pieces ----------------------------------------------------------------------------
    def _piece(self, found: Any, where: str, after: int, *, partial: bool) -> Piece[Any]:
        if isinstance(found, dict) and len(found) == 1 and (kind := next(iter(found))) in _PIECES:
            make = {"chain": self._chain, "group": self._group, "chord": self._chord}[kind]
            return make(found[kind], f"{where}.{kind}", after, partial=partial)
        call = bodies.members(found, where, (*_SIGNATURE, *_PIECES))
        for kind in _PIECES:
            if kind in call:
                raise Problem("invalid", f"{where} has members beside {kind!r}; it stands alone.")
        name = bodies.text(call.get("name"), f"{where}.name")
        if name not in self._forms:
            raise Problem("invalid", f"{where}.name: {self._unknown(name)}")
        self._weigh(found, after)
        return self._signature(name, call, f"{where}.", partial=partial)

    def _chain(
        self, found: Any, where: str, after: int, *, partial: bool
    ) -> Chain[Any] | GroupChain[Any]:
        steps = bodies.array(found, where, least=1)
        sizes = [self._size(step) for step in steps]
        left, made = sum(sizes), []
        for at, (step, size) in enumerate(zip(steps, sizes, strict=True)):
            left -= size
            piece = self._piece(step, f"{where}[{at}]", after + left, partial=partial or at > 0)
            made.append(piece)
        return series(made)

    def _group(self, found: Any, where: str, after: int, *, partial: bool) -> Group[Any]:
        pieces = bodies.array(found, where, least=1)
        self._groups += 1
        group_uuid = ""
        if self._seed is not None:
            group_uuid = f"group_{uuids.uuid5(self._seed, f'group {self._groups}')}"
        made = [
            self._piece(piece, f"{where}[{at}]", after, partial=partial)
            for at, piece in enumerate(pieces)
        ]
        return Group(made, group_uuid)

    def _chord(self, found: Any, where: str, after: int, *, partial: bool) -> Piece[Any]:
        chord = bodies.members(found, where, ("members", "callback"))
        if "callback" not in chord:
            raise Problem("invalid", f"{where} has no callback; give one, or send a group.")
        size = self._size(chord["callback"])
        members = self._group(
            chord.get("members"), f"{where}.members", after + size, partial=partial
        )
        callback = self._piece(chord["callback"], f"{where}.callback", after, partial=True)
        joined: Piece[Any] = members | callback
        return joined

    def _weigh(self, found: Any, after: int) -> None:
        """Count what one more message holds: itself, and all that follows it."""
        self._bytes += self._size(found) + after
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
        if not isinstance(found, list | dict):
            return 8
        if id(found) not in self._sizes:  # the body outlives this composer's work
            parts = [*found, *found.values()] if isinstance(found, dict) else found
            self._sizes[id(found)] = 2 + sum(self._size(part) + 1 for part in parts)
        return self._sizes[id(found)]

    # -- one signature ---------------------------------------------------------------------
    def _signature(
        self, name: str, call: Mapping[str, Any], where: str, *, partial: bool
    ) -> TypedSignature[Any]:
        args = bodies.array(call.get("args", []), f"{where}args")
        kwargs = call.get("kwargs", {})
        if not isinstance(kwargs, dict):
            raise bodies.refuse(f"{where}kwargs", kwargs, "an object")
        options = self._options(call.get("options", {}), f"{where}options")
        signature = self._forms[name].call(args, kwargs, partial=partial)
        headers = {**self._carried, **options.pop("headers", {})}
        drafted = Drafted(self._new_id(), name)
        self.drafted.append(drafted)
        return signature.options(uuid=drafted.uuid, headers=headers, **options)

    def _new_id(self) -> str:
        if self._seed is None:
            return new_uuid("task")
        return f"task_{uuids.uuid5(self._seed, f'task {len(self.drafted)}')}"

    def _options(self, found: Any, where: str) -> dict[str, Any]:
        given = bodies.members(found, where, OPTIONS)
        options = {
            name: OPTIONS[name].read(value, f"{where}.{name}") for name, value in given.items()
        }
        queue = options.get("queue")
        if queue is not None and queue not in self._queues:
            raise bodies.refuse(f"{where}.queue", queue, f"one of {', '.join(self._queues)}")
        return options
