"""
Chains, groups and chords of signatures and of each other, and the options of a signature.

All of it is pure but the ``send`` methods, which call a `Sender`. A piece never writes
into the signatures it is given. `machine.workflow.plan` says what is sent for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Generic, Self, TypeVar, Union, overload

from machine.errors import SignatureError
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupResult
from machine.results.task import AsyncResult
from machine.wire.headers import OnDuplicate
from machine.wire.signature import JSON, Signature, copy_signature
from machine.workflow import options
from machine.workflow.sender import Sender, SenderOf, require_sender

R = TypeVar("R")
R2 = TypeVar("R2")
R_co = TypeVar("R_co", covariant=True)
#: Groups in groups, at most: planning recurses for each, and Python bounds recursion.
_MOST_DEPTH = 64


class _Joined:
    """``a | b`` for all pieces but groups: ``b`` comes after ``a``."""

    __slots__ = ()

    @overload
    def __or__(self, then: TypedSignature[R2] | Chain[R2] | Chord[R2]) -> Chain[R2]: ...
    @overload
    def __or__(self, then: Group[R2] | GroupChain[R2]) -> GroupChain[R2]: ...
    def __or__(self, then: Piece[Any]) -> Any:
        return series([self, then])


@dataclass(slots=True, kw_only=True)
class TypedSignature(_Joined, Signature, Generic[R_co]):
    """
    A signature that knows what its task returns, and how to send itself.

    ``task.s(…)`` makes it. ``sender`` is not part of the message.
    """

    sender: SenderOf | None = field(default=None, compare=False, repr=False)

    def options(
        self,
        *,
        uuid: str | None = None,
        queue: str | None = None,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        expires: datetime | float | timedelta | None = None,
        retry_count: int | None = None,
        retry_timeout: int | None = None,
        priority: int | None = None,
        immutable: bool | None = None,
        headers: Mapping[str, JSON] | None = None,
        ignore_when_task_not_registered: bool | None = None,
        unique: str | None = None,
        on_duplicate: OnDuplicate | None = None,
    ) -> Self:
        """
        Return a copy with these options; what is ``None`` stays as it is.

        Args:
            uuid: Its id; one that a state is kept under already is not sent again.
            queue: The list it goes to (RoutingKey).
            eta: Do not start before; must have a time zone.
            countdown: The same as seconds from now, or a ``timedelta``.
            expires: Do not start from then on, but fail as expired: a time with a
                time zone; or seconds, or a ``timedelta``, from when it is queued or due.
            retry_count: Runs allowed after the first one fails, ≥ 0.
            retry_timeout: Seconds the growing delays start above, ≥ 0.
            priority: 0-255; for Go's other brokers, without meaning on Redis.
            immutable: Its results are not handed to its callbacks; on a chord's
                callback: the members' results are not handed to it.
            headers: Added to those it has.
            ignore_when_task_not_registered: A worker that does not know the
                task drops it instead of putting it back.
            unique: A key, 1 to 256 printable characters, that one task at a time may
                have; "" = none after all. Only for a task that is sent by itself.
            on_duplicate: What sending does while another has the key and has not
                ended: "join" (as if not said) returns the other's result, "refuse"
                raises `DuplicateTask`, "replace" cancels the other.

        Raises:
            SignatureError: An option is out of bounds, or contradicts another.
        """
        changes: dict[str, Any] = {
            "uuid": options.check_task_id(uuid),
            "routing_key": queue,
            "eta_ns": options.choose_eta_ns(eta, countdown),
            "retry_count": options.check_whole_number("retry_count", retry_count, None),
            "retry_timeout": options.check_whole_number("retry_timeout", retry_timeout, None),
            "priority": options.check_whole_number("priority", priority, 255),
            "immutable": immutable,
            "headers": options.merge_headers(
                self.headers, headers, expires=expires, unique=unique, on_duplicate=on_duplicate
            ),
            "ignore_when_task_not_registered": ignore_when_task_not_registered,
        }
        return self.replace(**{name: v for name, v in changes.items() if v is not None})

    def link(self, *signatures: Signature) -> Self:
        """Return a copy that sends these too when it succeeds, its results appended (OnSuccess)."""
        return self.replace(on_success=[*self.on_success, *signatures])

    def link_error(self, *signatures: Signature) -> Self:
        """Return a copy that sends these when it fails, the error text first (OnError)."""
        return self.replace(on_error=[*self.on_error, *signatures])

    def send(self) -> AsyncResult[R_co]:
        """Send it; each call sends another task unless ``uuid`` is set."""
        return require_sender(self.sender).send_task(self)

    async def asend(self) -> AsyncResult[R_co]:
        return await require_sender(self.sender).asend_task(self)


#: Parts of a workflow. A plain `Signature` may stand there too; its result is not typed.
Piece = Union[
    TypedSignature[R_co],
    "Chain[R_co]",
    "GroupChain[R_co]",
    "Group[R_co]",
    "Chord[R_co]",
]


def _check_pieces(pieces: Iterable[Any]) -> tuple[Any, ...]:
    checked = tuple(pieces)
    for one in checked:
        if not isinstance(one, _PIECES):
            raise SignatureError(
                f"{one!r} is not a signature; for a task it is task.s(…), or task.partial(…) when "
                "results are to be appended. Chains, groups and chords may stand there too."
            )
    return checked


def steps_of(piece: Any) -> tuple[Signature | Group[Any], ...]:
    """Return the steps of a piece: signatures and groups, one after another."""
    if isinstance(piece, Signature | Group):
        return (piece,)
    if isinstance(piece, Chord):
        return (piece.group, piece.callback)
    steps: tuple[Signature | Group[Any], ...] = piece.steps
    return steps


def series(pieces: Iterable[Any]) -> Chain[Any] | GroupChain[Any]:
    """
    Return the pieces one after another, chains among them joined.

    Raises:
        SignatureError: There are none, or one cannot stand in a workflow.
    """
    steps = tuple(step for piece in _check_pieces(pieces) for step in steps_of(piece))
    return GroupChain(steps) if steps and isinstance(steps[-1], Group) else Chain(steps)


def _find_sender(steps: Iterable[Signature | Group[Any]]) -> SenderOf | None:
    todo = list(steps)
    for step in todo:  # grows meanwhile: members of groups, and theirs
        if isinstance(step, Group):
            todo += (inner for member in step.pieces for inner in steps_of(member))
        elif isinstance(step, TypedSignature) and step.sender:
            return step.sender
    return None


def _name_of(piece: Any) -> str:
    return piece.name if isinstance(piece, Signature) else repr(piece)


class _Series(_Joined):
    """
    Steps one after another.

    Attributes:
        steps: Signatures and groups; chains that were among them are joined in.
    """

    def __init__(self, pieces: Iterable[Any]) -> None:
        self.steps: tuple[Signature | Group[Any], ...] = tuple(
            step for piece in _check_pieces(pieces) for step in steps_of(piece)
        )
        if not self.steps:
            raise SignatureError("A chain needs at least one signature.")
        if len(self.steps) > 1 and any(
            isinstance(step, Group) and not step.pieces for step in self.steps
        ):
            raise SignatureError(
                "A group in a chain needs at least one member; what follows it would never run."
            )

    def _sender(self) -> Sender:
        return require_sender(_find_sender(self.steps))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' | '.join(map(_name_of, self.steps))}>"


class Chain(_Series, Generic[R_co]):
    """
    Tasks one after another; each one's results are *appended* to the next one's arguments.

    A step may be a group: each of its members gets the results of the task
    before it, and the task after it gets those of all members, in group order.
    A step's own ``on_success`` is replaced by the next step, as in Machinery.
    The type parameter is what the last task returns.
    """

    def __init__(self, pieces: Iterable[Any]) -> None:
        super().__init__(pieces)
        if isinstance(self.steps[-1], Group):
            raise SignatureError(
                "This chain ends with a group, so that it has several results; make it by "
                "chain(…), by | or as GroupChain(…)."
            )

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """
        Return the tasks of a plain chain.

        Raises:
            SignatureError: A step is a group.
        """
        return _require_signatures(self.steps, "chain")

    def linked(self) -> list[Signature]:
        """Return copies, each with the next one as its ``on_success``; empty ids stay empty."""
        links = [copy_signature(signature) for signature in self.signatures]
        for link, after in pairwise(links):
            link.on_success = [after]
        return links

    def send(self) -> ChainResult[R_co]:
        """Send the first step; each one that succeeds sends the next."""
        result: ChainResult[R_co] = self._sender().send_chain(self)
        return result

    async def asend(self) -> ChainResult[R_co]:
        result: ChainResult[R_co] = await self._sender().asend_chain(self)
        return result


class GroupChain(_Series, Generic[R_co]):
    """
    Steps one after another, of which the last one is a group: it has as many results.

    The type parameter is what each member of that group returns.
    """

    def __init__(self, pieces: Iterable[Any]) -> None:
        super().__init__(pieces)
        if not isinstance(self.steps[-1], Group):
            raise SignatureError("This chain does not end with a group; make it by chain(…) or |.")

    def send(self) -> GroupResult[R_co]:
        """Send the first step; each one that succeeds sends the next."""
        result: GroupResult[R_co] = self._sender().send_chain(self)
        return result

    async def asend(self) -> GroupResult[R_co]:
        result: GroupResult[R_co] = await self._sender().asend_chain(self)
        return result


def _require_signatures(pieces: Iterable[Any], what: str) -> tuple[Signature, ...]:
    signatures = tuple(pieces)
    for one in signatures:
        if not isinstance(one, Signature):
            raise SignatureError(f"Only tasks may stand in this {what}, not {one!r}.")
    return signatures


class Group(Generic[R_co]):
    """
    Tasks side by side; their values come back in the order given here.

    A member may be a workflow: the last task of a chain or a chord is then the
    member. Groups are flattened: the members of a group in a group, or at the end
    of a chain in it, are members of the outer group.

    Attributes:
        pieces: The members as they were given.
        group_uuid: Its id; made when it is sent if empty.
        depth: How deep groups nest; 1 where no member has a group in it.
    """

    def __init__(self, pieces: Iterable[Any], group_uuid: str = "") -> None:
        self.pieces = _check_pieces(pieces)
        self.group_uuid = group_uuid
        workflows = [piece for piece in self.pieces if not isinstance(piece, Signature)]
        inner = [step for workflow in workflows for step in steps_of(workflow)]
        groups = [step for step in inner if isinstance(step, Group)]
        self.depth: int = 1 + max((group.depth for group in groups), default=0)
        if self.depth > _MOST_DEPTH:
            raise SignatureError(
                f"Groups are in each other {self.depth} deep; at most {_MOST_DEPTH}."
            )
        if any(not group.pieces for group in groups):
            raise SignatureError("A group in a group needs at least one member.")

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """
        Return the members of a plain group.

        Raises:
            SignatureError: A member is a workflow.
        """
        return _require_signatures(self.pieces, "group")

    def members(self, group_uuid: str, callback: Signature | None = None) -> list[Signature]:
        """Return copies with this group id, the group's size and this callback in each."""
        members = [copy_signature(signature) for signature in self.signatures]
        for member in members:
            member.group_uuid = group_uuid
            member.group_task_count = len(members)
            member.chord_callback = callback or member.chord_callback
        return members

    def send(self, send_concurrency: int = 0) -> GroupResult[R_co]:
        """Send all members; ``send_concurrency`` is Machinery's, see `Server.send_group`."""
        sender = require_sender(_find_sender([self]))
        result: GroupResult[R_co] = sender.send_group(self, send_concurrency)
        return result

    async def asend(self, send_concurrency: int = 0) -> GroupResult[R_co]:
        sender = require_sender(_find_sender([self]))
        result: GroupResult[R_co] = await sender.asend_group(self, send_concurrency)
        return result

    @overload
    def __or__(self, then: TypedSignature[R2]) -> Chord[R2]: ...
    @overload
    def __or__(self, then: Chain[R2] | Chord[R2]) -> Chain[R2]: ...
    @overload
    def __or__(self, then: Group[R2] | GroupChain[R2]) -> GroupChain[R2]: ...
    def __or__(self, then: Piece[Any]) -> Any:
        return Chord(self, then) if isinstance(then, Signature) else series([self, then])

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"<Group of {len(self.pieces)}>"


class Chord(_Joined, Generic[R_co]):
    """
    A group, and one task after all of it: the callback gets all results, in group order.

    They are appended to the callback's own arguments unless *the callback* is
    immutable. When a member fails, the callback never runs and its result is
    that failure.
    """

    def __init__(self, group: Group[Any], callback: Signature) -> None:
        if not group.pieces:
            raise SignatureError("A chord needs at least one member; its callback would never run.")
        self.group = group
        [self.callback] = _require_signatures(
            _check_pieces([callback]), "chord's place for the callback"
        )

    def send(self, send_concurrency: int = 0) -> ChordResult[R_co]:
        """Send all members; ``send_concurrency`` is Machinery's, see `Server.send_group`."""
        result: ChordResult[R_co] = self._sender().send_chord(self, send_concurrency)
        return result

    async def asend(self, send_concurrency: int = 0) -> ChordResult[R_co]:
        result: ChordResult[R_co] = await self._sender().asend_chord(self, send_concurrency)
        return result

    def _sender(self) -> Sender:
        return require_sender(_find_sender([self.group, self.callback]))

    def __repr__(self) -> str:
        return f"<Chord of {len(self.group)} | {self.callback.name}>"


_PIECES = (Signature, Chain, GroupChain, Group, Chord)
