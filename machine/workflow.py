"""
Signatures put together: options, chains, groups, chords, and how they are sent.

Everything here is a pure function of its arguments but the ``send`` methods,
which hand over to a `Sender`. Builders copy what they are given; only the
``new_…`` constructors write into it, as Machinery's do. What follows an
outcome (`follow_up`) can be had here too. No bytes, no Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Generic, Protocol, Self, TypeVar

from machine import options
from machine.errors import SignatureError
from machine.follow_up import attempt, chord_callback, copied, follow_ups, retried
from machine.result import AsyncResult, ChainResult, ChordResult, GroupResult
from machine.signature import JSON, Signature

__all__ = [
    "Chain",
    "Chord",
    "Group",
    "Sender",
    "SenderOf",
    "TypedSignature",
    "attempt",
    "chord_callback",
    "copied",
    "follow_ups",
    "retried",
]

R = TypeVar("R")
R2 = TypeVar("R2")
R_co = TypeVar("R_co", covariant=True)


class Sender(Protocol):
    """What can send: the server. Each method has an asyncio twin with an ``a`` in front."""

    def send_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Send one task."""
        ...

    def send_chain(self, chain: Chain[R], /) -> ChainResult[R]:
        """Send the first task of a chain; each sends the next."""
        ...

    def send_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """Send all members of a group."""
        ...

    def send_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Send all members of a chord; the last one to end sends the callback."""
        ...

    async def asend_task(self, signature: Signature, /) -> AsyncResult[Any]:
        """Send one task."""
        ...

    async def asend_chain(self, chain: Chain[R], /) -> ChainResult[R]:
        """Send the first task of a chain."""
        ...

    async def asend_group(self, group: Group[R], /, send_concurrency: int = 0) -> GroupResult[R]:
        """Send all members of a group."""
        ...

    async def asend_chord(self, chord: Chord[R], /, send_concurrency: int = 0) -> ChordResult[R]:
        """Send all members of a chord."""
        ...


#: Finds the sender when something is sent, not when it is built.
SenderOf = Callable[[], Sender]


def _found(sender: SenderOf | None) -> Sender:
    if sender is None:
        raise SignatureError(
            "Nothing here knows a server to send to: these signatures were made by hand. "
            "Use server.send_task(), send_chain(), send_group() or send_chord()."
        )
    return sender()


@dataclass(slots=True, kw_only=True)
class TypedSignature(Signature, Generic[R_co]):
    """
    A signature that knows what its task returns, and how to send itself.

    ``task.s(…)`` makes it. ``sender`` is not part of the message.
    """

    sender: SenderOf | None = field(default=None, compare=False, repr=False)

    def options(
        self,
        *,
        queue: str | None = None,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        retry_count: int | None = None,
        retry_timeout: int | None = None,
        priority: int | None = None,
        immutable: bool | None = None,
        headers: Mapping[str, JSON] | None = None,
        ignore_when_task_not_registered: bool | None = None,
    ) -> Self:
        """
        Return a copy with these options; what is ``None`` stays as it is.

        Args:
            queue: The list it goes to (RoutingKey).
            eta: Do not start before; must have a time zone.
            countdown: The same as seconds from now, or a ``timedelta``.
            retry_count: Runs allowed after the first one fails, ≥ 0.
            retry_timeout: Seconds the growing delays start above, ≥ 0.
            priority: 0-255; for Go's other brokers, without meaning on Redis.
            immutable: Its results are not handed to its callbacks; on a chord's
                callback: the members' results are not handed to it.
            headers: Added to those it has.
            ignore_when_task_not_registered: A worker that does not know the
                task drops it instead of putting it back.

        Raises:
            SignatureError: An option is out of bounds, or contradicts another.
        """
        changes: dict[str, Any] = {
            "routing_key": queue,
            "eta_ns": options.eta_ns(eta, countdown),
            "retry_count": options.whole("retry_count", retry_count, None),
            "retry_timeout": options.whole("retry_timeout", retry_timeout, None),
            "priority": options.whole("priority", priority, 255),
            "immutable": immutable,
            "headers": None if headers is None else {**(self.headers or {}), **headers},
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
        return _found(self.sender).send_task(self)

    async def asend(self) -> AsyncResult[R_co]:
        """Do what `send` does, without blocking the event loop."""
        return await _found(self.sender).asend_task(self)

    def __or__(self, then: TypedSignature[R2]) -> Chain[R2]:
        return Chain([self, then])


def _checked(signatures: Iterable[Any]) -> tuple[Signature, ...]:
    found = tuple(signatures)
    for one in found:
        if not isinstance(one, Signature):
            raise SignatureError(
                f"{one!r} is not a signature; for a task it is task.s(…), or task.partial(…) when "
                "results are to be appended. Chains and groups do not nest."
            )
    return found


def _sender_among(signatures: Iterable[Signature]) -> SenderOf | None:
    return next((s.sender for s in signatures if isinstance(s, TypedSignature) and s.sender), None)


class Chain(Generic[R_co]):
    """
    Tasks one after another; each one's results are *appended* to the next one's arguments.

    A member's own ``on_success`` is replaced by the next member, as in Machinery.
    Its type parameter is what the last task returns.
    """

    def __init__(self, signatures: Iterable[Signature]) -> None:
        self.signatures = _checked(signatures)
        if not self.signatures:
            raise SignatureError("A chain needs at least one signature.")

    def linked(self) -> list[Signature]:
        """Return copies, each with the next one as its ``on_success``; empty ids stay empty."""
        links = [copied(signature) for signature in self.signatures]
        for link, after in pairwise(links):
            link.on_success = [after]
        return links

    def send(self) -> ChainResult[R_co]:
        """Send the first task; each one that succeeds sends the next."""
        return _found(_sender_among(self.signatures)).send_chain(self)

    async def asend(self) -> ChainResult[R_co]:
        """Do what `send` does, without blocking the event loop."""
        return await _found(_sender_among(self.signatures)).asend_chain(self)

    def __or__(self, then: TypedSignature[R2]) -> Chain[R2]:
        return Chain([*self.signatures, then])

    def __repr__(self) -> str:
        return f"<Chain {' | '.join(s.name for s in self.signatures)}>"


class Group(Generic[R_co]):
    """Tasks side by side; their values come back in the order given here."""

    def __init__(self, signatures: Iterable[Signature], group_uuid: str = "") -> None:
        self.signatures = _checked(signatures)
        self.group_uuid = group_uuid

    def members(self, group_uuid: str, callback: Signature | None = None) -> list[Signature]:
        """Return copies with this group id, the group's size and this callback in each."""
        members = [copied(signature) for signature in self.signatures]
        for member in members:
            member.group_uuid = group_uuid
            member.group_task_count = len(members)
            member.chord_callback = callback or member.chord_callback
        return members

    def send(self, send_concurrency: int = 0) -> GroupResult[R_co]:
        """Send all members; ``send_concurrency`` is Machinery's, see `Server.send_group`."""
        sender = _found(_sender_among(self.signatures))
        return sender.send_group(self, send_concurrency)

    async def asend(self, send_concurrency: int = 0) -> GroupResult[R_co]:
        """Do what `send` does, without blocking the event loop."""
        sender = _found(_sender_among(self.signatures))
        return await sender.asend_group(self, send_concurrency)

    def __or__(self, callback: TypedSignature[R2]) -> Chord[R2]:
        return Chord(self, callback)

    def __len__(self) -> int:
        return len(self.signatures)

    def __repr__(self) -> str:
        return f"<Group of {len(self.signatures)}>"


class Chord(Generic[R_co]):
    """
    A group, and one task after all of it: the callback gets all results, in group order.

    They are appended to the callback's own arguments unless *the callback* is
    immutable. When a member fails, the callback never runs and its result is
    that failure.
    """

    def __init__(self, group: Group[Any], callback: Signature) -> None:
        if not group.signatures:
            raise SignatureError("A chord needs at least one member; its callback would never run.")
        self.group = group
        [self.callback] = _checked([callback])

    def send(self, send_concurrency: int = 0) -> ChordResult[R_co]:
        """Send all members; ``send_concurrency`` is Machinery's, see `Server.send_group`."""
        return self._sender().send_chord(self, send_concurrency)

    async def asend(self, send_concurrency: int = 0) -> ChordResult[R_co]:
        """Do what `send` does, without blocking the event loop."""
        return await self._sender().asend_chord(self, send_concurrency)

    def _sender(self) -> Sender:
        return _found(_sender_among([*self.group.signatures, self.callback]))

    def __repr__(self) -> str:
        return f"<Chord of {len(self.group)} | {self.callback.name}>"
