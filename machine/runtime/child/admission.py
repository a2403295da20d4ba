"""
Claims -> jobs to run, or moves that end the claims at once. Pure.

Untrusted bytes become signatures here. A message that cannot be read is buried.
One whose task is not registered here is parked for another worker, or dropped
where its sender asked for that.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from machine.errors import WireError
from machine.execution import Failed
from machine.ports.moves import Claim, Finish, Move, Park
from machine.registry import Registry
from machine.runtime.child.pool import Job
from machine.runtime.settle import SettleRules, bury
from machine.wire.headers import describe_lateness
from machine.wire.messages import decode_signature
from machine.wire.signature import Signature

_log = logging.getLogger("machine.worker")


def admit(
    claims: Sequence[Claim],
    registry: Registry,
    rules: SettleRules,
    queues: Sequence[str],
    now_ns: int,
) -> tuple[list[Job], list[Move]]:
    """
    Return the jobs among these claims, and the moves that end the others.

    Args:
        claims: What was claimed, oldest first.
        registry: The tasks that can run here.
        rules: The bound of a message, and names that no id may have.
        queues: What this worker consumes; no id may have their names either.
        now_ns: Unix nanoseconds, the time on dead letters.
    """
    jobs: list[Job] = []
    moves: list[Move] = []
    names = {rules.default_queue, *queues, *rules.allowed_queues}
    for claim in claims:
        try:
            signature = _read_message(claim, rules, names)
        except WireError as error:
            _log.error("a message on '%s' is buried: %s", claim.queue, error)
            moves.append(bury(claim, str(error), now_ns))
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
    Separate the jobs that may still start from those that expired while they waited.

    Args:
        jobs: Read, and known here; none has started.
        now_ns: Unix nanoseconds.

    Returns:
        The jobs to run; and the expired ones, each with the outcome to settle it with.
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


def _read_message(claim: Claim, rules: SettleRules, queues: Collection[str]) -> Signature:
    """
    Decode a claim's message.

    Raises:
        WireError: It is not a message, or it would write its state over a queue.
    """
    signature = decode_signature(
        claim.payload, most_bytes=rules.max_message_bytes, delayed_key=rules.delayed_key
    )
    # An empty list has no key in Redis, so the name of an empty queue looks free. A state that is
    # written there would make the key a string, and nothing could be queued any more.
    todo = [signature]
    for one in todo:
        if one.uuid and (one.uuid in (claim.queue, one.routing_key) or one.uuid in queues):
            message = f"signature field UUID is '{one.uuid}', the name of a queue; give it another"
            raise WireError(message)
        if one.on_success or one.on_error or one.chord_callback is not None:
            todo += [*one.on_success, *one.on_error]
            todo += [one.chord_callback] if one.chord_callback is not None else []
    return signature


def count_to_keep(claims: Sequence[Claim], *, idle: bool) -> tuple[int, bool]:
    """
    Decide how many of these claims may run side by side.

    A message whose worker died runs with nothing beside it. If the next worker
    dies too, that message alone gets the blame, not the tasks that ran with it.

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
