"""
Firing chords: whoever armed one fires it, and a sweep fires what they could not.

A worker may die between the last member's end and the callback. The chord
stays armed in Redis then, and any supervisor's sweep fires it; the script
lets exactly one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from machine.errors import BrokerRefused, SignatureError, WireError
from machine.execution import Failed
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.ports.moves import ChordShot, Finish, Member, Message, Verdict
from machine.runtime.loop import Loop
from machine.runtime.settle import Terms, fallen, not_run
from machine.sending.messages import MessageMaker
from machine.wire.messages import decode_signature
from machine.wire.signature import GroupMeta, Signature, TaskState
from machine.wire.states import encode_group, encode_state
from machine.workflow.callbacks import choose_follow_ups, list_never_run, make_chord_callback

_log = logging.getLogger("machine.worker")
#: Chords that one sweep looks at.
_BATCH = 100
#: Chords shared with Go of which the member that keeps them waiting is remembered.
_MOST_WAITING = 1000


class Chords:
    """
    Fires armed chords.

    Args:
        broker: The queues.
        backend: Where the members' states are.
        terms: How callbacks are sent.
        clock: Our clocks.
    """

    def __init__(self, broker: Broker, backend: Backend, terms: Terms, clock: Clock) -> None:
        self._broker, self._backend, self._terms, self._clock = broker, backend, terms, clock
        #: Group -> a member that had not ended at the last look: the first to look at next time.
        self._waiting: dict[str, str] = {}

    def fire_armed(self, move: Finish) -> None:
        """Fire what this move armed, one or more of its members' chords."""
        for member in move.members:
            self.fire(member)

    def fire(self, member: Member) -> None:
        """
        Fire an armed chord, and any that is armed by its failure; one that is not is left alone.

        Args:
            member: Any member of it: says where the chord is, and its callback.
        """
        todo = [member]
        for one in todo:  # grows meanwhile: a failed callback may be the last member of another
            todo += self._fire(one)

    def _fire(self, member: Member) -> Sequence[Member]:
        """Fire one chord; return the places in others that its failure armed one of."""
        shot = self._shot(member)
        if shot is None:
            return ()
        try:
            return self._carry(shot)
        except BrokerRefused as error:  # a queue is a key of another kind
            if not shot.fallen:
                shot = self._shot(member, str(error)) or shot
        try:
            return self._carry(shot)
        except BrokerRefused as error:
            _log.error("callbacks of the chord of %s cannot be sent: %s", member.group_uuid, error)
            return self._carry(shot._replace(messages=[]))

    def _carry(self, shot: ChordShot) -> Sequence[Member]:
        return shot.members if self._broker.fire_chord(shot) is Verdict.ARMED else ()

    def _shot(self, member: Member, refusal: str = "") -> ChordShot | None:
        """
        Return what firing this chord does, or ``None`` while a member runs elsewhere.

        Args:
            member: See `fire`.
            refusal: Why its callback cannot be sent; "" = it has not been tried.
        """
        home, group = member.armed_in or member.home, member.group_uuid
        try:
            callback = decode_signature(member.callback, delayed_key=self._terms.delayed_key)
        except WireError as error:
            _log.error("chord of %s cannot fire: %s", group, error)
            return ChordShot(home, group, [], b"")
        meta: GroupMeta | None = None
        ready: Signature | Failed = Failed(f"group {group} has no members any more: it expired")
        try:
            meta = self._backend.read_group(group)
        except (WireError, BrokerRefused) as error:
            ready = Failed(f"group {group} cannot be read: {error}")
        triggered = b""
        if meta is not None:
            states = self._states(meta)
            if not states:
                return None
            ready = make_chord_callback(callback, states, meta.task_uuids)
            meta.chord_triggered = True
            triggered = encode_group(meta)
        if refusal and not isinstance(ready, Failed):
            ready = Failed(f"the callback of {group} cannot be sent: {refusal}")
        if not isinstance(ready, Failed):
            try:
                messages = self._messages([ready])
                return ChordShot(home, group, messages, triggered, self._terms.shared_groups)
            except (SignatureError, BrokerRefused) as error:
                ready = Failed(f"the callback of {group} cannot be sent: {error}")
        return self._failed(callback, ready, (home, group, triggered))

    def _states(self, meta: GroupMeta) -> Sequence[TaskState | None]:
        """Return the members' states; none while one that Go may run has not ended."""
        if not self._terms.shared_groups:
            return self._backend.read(meta.task_uuids)
        last = self._waiting.get(meta.group_uuid)
        if last is not None and _is_open(self._backend.read([last])[0]):
            return []
        states = self._backend.read(meta.task_uuids)
        for uuid, state in zip(meta.task_uuids, states, strict=True):
            if _is_open(state):
                if len(self._waiting) >= _MOST_WAITING:
                    self._waiting.clear()
                self._waiting[meta.group_uuid] = uuid
                return []
        self._waiting.pop(meta.group_uuid, None)
        return states

    def _messages(self, signatures: Sequence[Signature]) -> list[Message]:
        now_ns = self._clock.now_ns()
        messages, states = MessageMaker(self._terms).make_follow_ups(signatures, now_ns)
        for state in states:
            self._backend.record(state)
        return messages

    def _failed(
        self, callback: Signature, failed: Failed, chord: tuple[str, str, bytes]
    ) -> ChordShot:
        """Return the shot for a callback that will never run; it sends its error callbacks."""
        home, group, triggered = chord
        terms, now_ns = self._terms, self._clock.now_ns()
        reason = not_run(callback, failed.error)
        states, members = fallen([callback], failed.error, home, terms, now_ns)
        more_states, more_members = fallen(list_never_run(callback), reason, home, terms, now_ns)
        states, members = states + more_states, members + more_members
        try:
            messages = self._messages(choose_follow_ups(callback, failed))
        except (SignatureError, BrokerRefused) as error:
            _log.error("error callbacks of the chord of %s cannot be sent: %s", group, error)
            messages = []
        if not terms.keeps_states:
            for state in states:
                self._backend.record(state)
        return ChordShot(
            *(home, group, messages, triggered, terms.shared_groups),
            fallen=[(state.task_uuid, encode_state(state)) for state in states]
            if terms.keeps_states
            else (),
            members=members,
        )


def _is_open(state: TaskState | None) -> bool:
    return state is None or not state.is_completed


class ChordSweep(Loop):
    """Fires chords whose last worker died before it could, or was not ours."""

    def __init__(
        self, broker: Broker, chords: Chords, queues: Sequence[str], period_s: float
    ) -> None:
        super().__init__("chord sweep", period_s)
        self._broker, self._chords, self._queues = broker, chords, queues
        self._cursors = dict.fromkeys(queues, 0)
        #: What the last pass over a queue's chords met, and what this one has met so far.
        self._seen: dict[str, set[str]] = {queue: set() for queue in queues}
        self._met: dict[str, set[str]] = {queue: set() for queue in queues}

    def run_once(self, _now_s: float) -> None:
        """Fire what was armed already at the last look: what is new has a worker that is at it."""
        for queue in self._queues:
            self._cursors[queue], armed = self._broker.armed(queue, self._cursors[queue], _BATCH)
            for group, callback in armed:
                if group in self._seen[queue]:
                    self._chords.fire(Member(queue, group, "", 0, callback))
            self._met[queue].update(group for group, _ in armed)
            if self._cursors[queue] == 0:
                self._seen[queue], self._met[queue] = self._met[queue], set()
