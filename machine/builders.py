"""
Chains, groups and chords as functions: ours, which copy, and Machinery's, which write.

`chain`, `group` and `chord` leave what they are given alone; the ``new_…``
constructors fill in and link the very signatures they are given, as Machinery's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar, overload

from machine.signature import Arg, Signature, new_uuid
from machine.workflow import Chain, Chord, Group, TypedSignature

R = TypeVar("R")


@overload
def chain(a: TypedSignature[R], /) -> Chain[R]: ...
@overload
def chain(a: Signature, b: TypedSignature[R], /) -> Chain[R]: ...
@overload
def chain(a: Signature, b: Signature, c: TypedSignature[R], /) -> Chain[R]: ...
@overload
def chain(*signatures: Signature) -> Chain[Any]: ...
def chain(*signatures: Signature) -> Chain[Any]:
    """Return the tasks one after another, as ``a | b | c`` does, which is typed at any length."""
    return Chain(signatures)


@overload
def group(*signatures: TypedSignature[R]) -> Group[R]: ...
@overload
def group(signatures: Iterable[TypedSignature[R]], /) -> Group[R]: ...
def group(*signatures: Any) -> Group[Any]:
    """Return the tasks side by side; takes signatures, or one iterable of them."""
    if len(signatures) == 1 and not isinstance(signatures[0], Signature):
        return Group(signatures[0])
    return Group(signatures)


def chord(members: Group[Any] | Iterable[Signature], callback: TypedSignature[R]) -> Chord[R]:
    """Return a group with a callback, as ``group(…) | callback`` does."""
    return Chord(members if isinstance(members, Group) else Group(members), callback)


# -- Machinery's constructors: they fill in and link the very signatures they are given ----------
def new_signature(name: str, args: Sequence[Arg] = ()) -> Signature:
    """Return a signature of this task with a new id, as Machinery's NewSignature does."""
    return Signature(uuid=new_uuid("task"), name=name, args=list(args))


def new_chain(*signatures: Signature) -> Chain[Any]:
    """Link the signatures given, replacing each one's ``on_success``, as NewChain does."""
    linked = Chain[Any](signatures)
    for signature in signatures:
        signature.uuid = signature.uuid or new_uuid("task")
    for signature, after in pairwise(signatures):
        signature.on_success = [after]
    return linked


def new_group(*signatures: Signature) -> Group[Any]:
    """Give the signatures ids, one group id and the group's size, as NewGroup does."""
    group_uuid = new_uuid("group")
    for signature in signatures:
        signature.uuid = signature.uuid or new_uuid("task")
        signature.group_uuid = group_uuid
        signature.group_task_count = len(signatures)
    return Group(signatures, group_uuid)


def new_chord(members: Group[Any], callback: Signature) -> Chord[Any]:
    """Give the callback a ``chord_…`` id and put it into every member, as NewChord does."""
    whole = Chord[Any](members, callback)
    callback.uuid = callback.uuid or new_uuid("chord")
    for signature in members.signatures:
        signature.chord_callback = callback
    return whole
