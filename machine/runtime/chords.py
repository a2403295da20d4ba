"""
Firing chords: whoever armed one fires it, and a sweep fires what they could not.

A worker may die between the last member's end and the callback. The chord
stays armed in Redis then, and any supervisor's sweep fires it; the script
lets exactly one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from machine import wire
from machine.backend.base import Backend
from machine.broker.base import Broker, ChordShot
from machine.clock import Clock
from machine.errors import WireError
from machine.follow_up import chord_callback, follow_ups
from machine.outcome import Failed
from machine.runtime.loop import Loop
from machine.runtime.settle import Terms, to_messages
from machine.signature import GroupMeta, Signature, State, TaskState

_log = logging.getLogger("machine.worker")
#: Chords that one sweep looks at.
_BATCH = 100


def fire(
    broker: Broker,
    backend: Backend,
    terms: Terms,
    clock: Clock,
    home: str,
    group: str,
    callback: bytes,
) -> bool:
    """
    Fire an armed chord: send its callback with the members' results, or fail it.

    Returns whether it was this call that fired it.
    """
    try:
        signature = wire.decode_signature(callback)
    except WireError as error:
        _log.error("chord of %s cannot fire: %s", group, error)
        return broker.fire_chord(ChordShot(home, group, [], None, b""))
    meta = backend.read_group(group)
    now_ns = clock.now_ns()
    ready: Signature | Failed
    if meta is None:
        ready, triggered = Failed(f"group {group} has no members any more: its meta expired"), b""
    else:
        ready = chord_callback(signature, backend.read(meta.task_uuids), meta.task_uuids)
        triggered = wire.encode_group(_triggered(meta))
    if isinstance(ready, Failed):
        messages = to_messages(follow_ups(signature, ready), terms, now_ns)
        failed = _failure(signature, ready, now_ns) if signature.uuid else None
        if failed and not terms.keeps_states:
            backend.record(failed)
        state = (
            (failed.task_uuid, wire.encode_state(failed)) if failed and terms.keeps_states else None
        )
        return broker.fire_chord(ChordShot(home, group, messages, state, triggered))
    return broker.fire_chord(
        ChordShot(home, group, to_messages([ready], terms, now_ns), None, triggered)
    )


def _triggered(meta: GroupMeta) -> GroupMeta:
    meta.chord_triggered = True
    return meta


def _failure(callback: Signature, failed: Failed, now_ns: int) -> TaskState:
    return TaskState(
        task_uuid=callback.uuid,
        task_name=callback.name,
        state=State.FAILURE,
        error=failed.error,
        created_at=wire.now_text(now_ns),
    )


class ChordSweep(Loop):
    """Fires chords whose last worker died before it could."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        terms: Terms,
        clock: Clock,
        queues: Sequence[str],
        period_s: float,
    ) -> None:
        super().__init__("chord sweep", period_s)
        self._broker, self._backend, self._terms, self._clock = broker, backend, terms, clock
        self._queues = queues
        self._seen: set[tuple[str, str]] = set()

    def run_once(self, _now_s: float) -> None:
        """Fire what was armed already at the last look: what is new has a worker that is at it."""
        armed = [
            (queue, group, callback)
            for queue in self._queues
            for group, callback in self._broker.armed(queue, _BATCH)
        ]
        for queue, group, callback in armed:
            if (queue, group) in self._seen:
                fire(self._broker, self._backend, self._terms, self._clock, queue, group, callback)
        self._seen = {(queue, group) for queue, group, _ in armed}
