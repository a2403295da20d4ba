"""
Functions that make chains, groups and chords.

`chain`, `group` and `chord` copy what they are given. The ``new_…`` constructors fill in
and link the very signatures they are given, as Machinery's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar, overload

from machine.wire.signature import Arg, Signature, new_uuid
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, Piece, TypedSignature, series

R = TypeVar("R")
_Task = TypedSignature[R] | Chain[R] | Chord[R]
_Group = Group[R] | GroupChain[R]
_Any = Signature | Piece[Any]
_Members = Group[Any] | Iterable[_Any]


@overload
def chain(a: _Task[R], /) -> Chain[R]: ...


@overload
def chain(a: _Group[R], /) -> GroupChain[R]: ...


@overload
def chain(a: _Any, b: _Task[R], /) -> Chain[R]: ...


@overload
def chain(a: _Any, b: _Group[R], /) -> GroupChain[R]: ...


@overload
def chain(a: _Any, b: _Any, c: _Task[R], /) -> Chain[R]: ...


@overload
def chain(a: _Any, b: _Any, c: _Group[R], /) -> GroupChain[R]: ...


@overload
def chain(a: _Any, b: _Any, c: _Any, d: _Task[R], /) -> Chain[R]: ...


@overload
def chain(a: _Any, b: _Any, c: _Any, d: _Group[R], /) -> GroupChain[R]: ...


@overload
def chain(*pieces: Signature) -> Chain[Any]: ...


@overload
def chain(*pieces: _Any) -> Chain[Any] | GroupChain[Any]: ...


def chain(*pieces: Any) -> Chain[Any] | GroupChain[Any]:
    """Return the steps one after another, as ``a | b | c`` does, which is typed at any length."""
    return series(pieces)


@overload
def group(*pieces: Piece[R]) -> Group[R]: ...


@overload
def group(pieces: Iterable[Piece[R]], /) -> Group[R]: ...


def group(*pieces: Any) -> Group[Any]:
    """Return tasks and workflows side by side; takes them, or one iterable of them."""
    if len(pieces) == 1 and isinstance(pieces[0], Iterable):
        return Group(pieces[0])
    return Group(pieces)


@overload
def chord(members: _Members, callback: TypedSignature[R]) -> Chord[R]: ...


@overload
def chord(members: _Members, callback: Chain[R] | Chord[R]) -> Chain[R]: ...


@overload
def chord(members: _Members, callback: _Group[R]) -> GroupChain[R]: ...


def chord(members: _Members, callback: Any) -> Any:
    """Return a group with a callback, as ``group(…) | callback`` does."""
    return (members if isinstance(members, Group) else Group[Any](members)) | callback


# -- Machinery's constructors ------------------------------------------------------------------
def new_signature(name: str, args: Sequence[Arg] = ()) -> Signature:
    """Return a signature of this task with a new id, as Machinery's NewSignature does."""
    return Signature(uuid=new_uuid("task"), name=name, args=list(args))


def new_chain(*signatures: Signature) -> Chain[Any]:
    """Link the signatures given, replacing each one's ``on_success``, as NewChain does."""
    linked = Chain[Any](signatures)
    for signature in linked.signatures:
        signature.uuid = signature.uuid or new_uuid("task")
    for signature, after in pairwise(signatures):
        signature.on_success = [after]
    return linked


def new_group(*signatures: Signature) -> Group[Any]:
    """Give the signatures ids, one group id and the group's size, as NewGroup does."""
    made = Group[Any](signatures, new_uuid("group"))
    for signature in made.signatures:
        signature.uuid = signature.uuid or new_uuid("task")
        signature.group_uuid = made.group_uuid
        signature.group_task_count = len(signatures)
    return made


def new_chord(members: Group[Any], callback: Signature) -> Chord[Any]:
    """Give the callback a ``chord_…`` id and put it into every member, as NewChord does."""
    whole = Chord[Any](members, callback)
    callback.uuid = callback.uuid or new_uuid("chord")
    for signature in members.signatures:
        signature.chord_callback = callback
    return whole
