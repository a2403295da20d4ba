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
from machine.broker.base import Broker, ChordShot, Member
from machine.clock import Clock
from machine.errors import BrokerRefused, SignatureError, WireError
from machine.follow_up import chord_callback, follow_ups
from machine.outcome import Failed
from machine.runtime.loop import Loop
from machine.runtime.settle import Terms, to_messages
from machine.signature import Signature, State, TaskState

_log = logging.getLogger("machine.worker")
#: Chords that one sweep looks at.
_BATCH = 100


def fire(broker: Broker, backend: Backend, terms: Terms, clock: Clock, member: Member) -> bool:
    """
    Fire an armed chord: send its callback with the members' results, or fail it.

    Args:
        broker: The queues.
        backend: Where the members' states are.
        terms: How the callback is sent.
        clock: Our clocks.
        member: Any member of it: says where the chord is, and its callback.

    Returns:
        Whether it was this call that fired it.
    """
    home, group = member.armed_in or member.home, member.group_uuid
    try:
        callback = wire.decode_signature(member.callback, delayed_key=terms.delayed_key)
    except WireError as error:
        _log.error("chord of %s cannot fire: %s", group, error)
        return broker.fire_chord(ChordShot(home, group, [], None, b""))
    ended = broker.ended_count(home, group) if terms.shared_groups else 0
    meta, triggered = None, b""
    ready: Signature | Failed = Failed(f"group {group} has no members any more: its meta expired")
    try:
        meta = backend.read_group(group)
    except (WireError, BrokerRefused) as error:
        ready = Failed(f"group {group} cannot be read: {error}")
    if meta is not None:
        states = backend.read(meta.task_uuids)
        if terms.shared_groups and not all(state and state.is_completed for state in states):
            # Whoever ends the last member looks again: a Go worker fires it itself.
            broker.disarm(home, group, ended)
            return False
        ready = chord_callback(callback, states, meta.task_uuids)
        meta.chord_triggered = True
        triggered = wire.encode_group(meta)
    now_ns = clock.now_ns()
    if not isinstance(ready, Failed):
        try:
            if not terms.keeps_states:
                backend.record(_state(ready, State.PENDING, "", now_ns))
            messages = to_messages([ready], terms, now_ns)
            return broker.fire_chord(
                ChordShot(home, group, messages, None, triggered, terms.shared_groups)
            )
        except (SignatureError, BrokerRefused) as error:
            ready = Failed(f"the callback of {group} cannot be sent: {error}")
    return _fail(broker, backend, terms, now_ns, callback, ready, (home, group, triggered))


def _fail(
    broker: Broker,
    backend: Backend,
    terms: Terms,
    now_ns: int,
    callback: Signature,
    failed: Failed,
    chord: tuple[str, str, bytes],
) -> bool:
    """Record that a callback will never run, and send its error callbacks."""
    home, group, triggered = chord
    state = _state(callback, State.FAILURE, failed.error, now_ns)
    record: tuple[str, bytes] | None = None
    if callback.uuid and terms.keeps_states:
        record = (callback.uuid, wire.encode_state(state))
    elif callback.uuid:
        backend.record(state)
    try:
        messages = to_messages(follow_ups(callback, failed), terms, now_ns)
        return broker.fire_chord(
            ChordShot(home, group, messages, record, triggered, terms.shared_groups)
        )
    except (SignatureError, BrokerRefused) as error:
        _log.error("error callbacks of the chord of %s cannot be sent: %s", group, error)
        return broker.fire_chord(ChordShot(home, group, [], record, triggered, terms.shared_groups))


def _state(callback: Signature, state: State, error: str, now_ns: int) -> TaskState:
    return TaskState(
        task_uuid=callback.uuid,
        task_name=callback.name,
        state=state,
        error=error,
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
                member = Member(queue, group, "", 0, callback)
                fire(self._broker, self._backend, self._terms, self._clock, member)
        self._seen = {(queue, group) for queue, group, _ in armed}
