"""
Claims -> jobs to run, or moves that end them at once. Pure.

Here untrusted bytes become signatures. What cannot be run here is buried,
parked or dropped; what was in a dead worker's hands is kept apart.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from machine.errors import WireError
from machine.execution import Failed
from machine.ports.moves import Claim, Finish, Move, Park
from machine.registry import Registry
from machine.runtime.child.pool import Job
from machine.runtime.settle import Terms, buried
from machine.wire.headers import describe_lateness
from machine.wire.messages import decode_signature
from machine.wire.signature import Signature

_log = logging.getLogger("machine.worker")


class Rules(Protocol):
    """What intake needs to know; a child's `Ways` are such rules."""

    @property
    def queues(self) -> Sequence[str]:
        """Queues whose names no id may have."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """Larger messages are buried."""
        ...

    @property
    def terms(self) -> Terms:
        """How outcomes are settled."""
        ...


def admit(
    claims: Sequence[Claim], registry: Registry, rules: Rules, now_ns: int
) -> tuple[list[Job], list[Move]]:
    """Return the jobs among these claims, and the moves that end the others."""
    jobs: list[Job] = []
    moves: list[Move] = []
    queues = {rules.terms.default_queue, *rules.queues, *rules.terms.allowed_queues}
    for claim in claims:
        try:
            signature = _read(claim, rules, queues)
        except WireError as error:
            _log.error("a message on '%s' is buried: %s", claim.queue, error)
            moves.append(buried(claim, str(error), now_ns))
            continue
        if signature.name in registry:
            jobs.append(Job(claim, signature, registry.get(signature.name)))
        elif signature.ignore_when_task_not_registered:
            moves.append(Finish(claim=claim))
        else:
            name, uuid = signature.name, signature.uuid
            _log.warning("task '%s' (%s) is not registered here; put aside for a while", name, uuid)
            moves.append(Park(claim=claim))
    return jobs, moves


def split_expired(jobs: Sequence[Job], now_ns: int) -> tuple[list[Job], list[tuple[Job, Failed]]]:
    """
    Part the jobs that may still start from those whose time has passed.

    Args:
        jobs: Read and known here; not started.
        now_ns: Unix nanoseconds.

    Returns:
        The jobs to run; and the others, each with what it ends as.
    """
    in_time: list[Job] = []
    too_late: list[tuple[Job, Failed]] = []
    for job in jobs:
        error = describe_lateness(job.signature, now_ns)
        if error:
            too_late.append((job, Failed(error)))
        else:
            in_time.append(job)
    return in_time, too_late


def _read(claim: Claim, rules: Rules, queues: Collection[str]) -> Signature:
    """
    Decode a claim's message.

    Raises:
        WireError: It is not a message, or it would write its state over a queue.
    """
    signature = decode_signature(
        claim.payload, most_bytes=rules.max_message_bytes, delayed_key=rules.terms.delayed_key
    )
    # An empty queue has no key, so its name looks free: a state written there ends the queue.
    todo = [signature]
    for one in todo:
        if one.uuid and (one.uuid in (claim.queue, one.routing_key) or one.uuid in queues):
            message = f"signature field UUID is '{one.uuid}', the name of a queue; give it another"
            raise WireError(message)
        if one.on_success or one.on_error or one.chord_callback is not None:
            todo += [*one.on_success, *one.on_error]
            todo += [one.chord_callback] if one.chord_callback is not None else []
    return signature


def kept_together(claims: Sequence[Claim], *, idle: bool) -> tuple[int, bool]:
    """
    Say how many of these claims may run side by side.

    A message that was in a dead worker's hands runs with nothing beside it, so
    that another death convicts it and not its neighbours.

    Args:
        claims: What was claimed, oldest first.
        idle: Whether nothing else is held.

    Returns:
        How many to keep, from the first; and whether to work alone from now on.
    """
    suspect = next((i for i, claim in enumerate(claims) if claim.crash_count), None)
    if suspect is None:
        return len(claims), False
    return (1 if idle and suspect == 0 else suspect), True
