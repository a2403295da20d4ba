"""
Unique tasks: the key that one task at a time may have, read from a signature. Pure.

Only a task that is sent by itself can have one. Who has it now is the broker's to say.
"""

from __future__ import annotations

from typing import NamedTuple

from machine.errors import SignatureError
from machine.options import policy, unique_key
from machine.signature import ON_DUPLICATE_HEADER, UNIQUE_HEADER, Signature


class Unique(NamedTuple):
    """What a signature asks for: its key, and what to do when another task has it."""

    key: str
    on_duplicate: str


def unique_of(signature: Signature) -> Unique | None:
    """
    Return what a signature asks for; ``None`` for one that is not unique.

    Raises:
        SignatureError: The key or the policy is not usable.
    """
    headers = signature.headers
    if not headers or UNIQUE_HEADER not in headers:
        return None
    try:
        key = unique_key(headers[UNIQUE_HEADER])
        return Unique(key, policy(headers.get(ON_DUPLICATE_HEADER, "join")))
    except SignatureError as error:
        raise SignatureError(f"Task {signature.name!r}: {error}") from None


def refuse_unique(signature: Signature) -> None:
    """
    Refuse a unique task where it is not sent by itself.

    Raises:
        SignatureError: It is unique.
    """
    if signature.headers and UNIQUE_HEADER in signature.headers:
        raise SignatureError(
            f"Task {signature.name!r} is unique, and only a task that is sent by itself can be: "
            "not one in a chain, a group or a chord, a callback, or one that is periodic. Say "
            ".options(unique='') for this sending, or send it by itself."
        )
