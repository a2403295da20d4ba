"""
Claims -> jobs to run, or moves that end them at once. Pure.

Here untrusted bytes become signatures. What cannot be run here is buried,
parked or dropped; what was in a dead worker's hands is kept apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from machine import wire
from machine.broker.base import Claim, Finish, Move, Park
from machine.errors import WireError
from machine.registry import Registry
from machine.runtime.pool import Job
from machine.runtime.settle import buried

_log = logging.getLogger("machine.worker")


def sort(
    claims: Sequence[Claim], registry: Registry, max_message_bytes: int, now_ns: int
) -> tuple[list[Job], list[Move]]:
    """Return the jobs among these claims, and the moves that end the others."""
    jobs: list[Job] = []
    moves: list[Move] = []
    for claim in claims:
        try:
            signature = wire.decode_signature(claim.payload, most_bytes=max_message_bytes)
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
