"""
Fires chords: sends a chord's callback once all of its members have ended.

The worker whose move ends the last member arms the chord and fires it. If it
dies in between, the chord stays armed in Redis, and a supervisor's sweep fires
it. The script makes sure that only one of them sends the callback.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from machine.errors import BrokerRefused, SignatureError, WireError
from machine.execution import Failed
from machine.ports.backend import Backend
from machine.ports.broker import Upkeep
from machine.ports.clock import Clock
from machine.ports.moves import ChordShot, Finish, Member, Message, Verdict
from machine.runtime.loop import Loop
from machine.runtime.settle import SettleRules, explain_not_run, fail_unrun
from machine.sending.messages import MessageMaker
from machine.wire.messages import decode_signature
from machine.wire.signature import GroupMeta, Signature, TaskState
from machine.wire.states import encode_group, encode_state
from machine.workflow.callbacks import choose_follow_ups, list_never_run, make_chord_callback

_log = logging.getLogger("machine.worker")
#: Chords that one sweep looks at.
_BATCH = 100
#: Most chords shared with Go for which a member that has not ended is remembered.
_MOST_WAITING = 1000


class Chords:
    """
    Fires armed chords.

    Args:
        broker: The queues.
        backend: Where the members' states are.
        rules: The bounds and queues of callbacks.
        clock: The times of new states.
    """

    def __init__(self, broker: Upkeep, backend: Backend, rules: SettleRules, clock: Clock) -> None:
        self._broker, self._backend, self._rules, self._clock = broker, backend, rules, clock
        #: Group -> a member that had not ended at the last look. It is read alone at the next one,
        #: so that a large group is not read as a whole at each of its members' ends.
        self._waiting: dict[str, str] = {}

    def fire_armed(self, move: Finish) -> None:
        """Fire the chords that a move armed: those of its members that are the last ones."""
        for member in move.members:
            self.fire(member)

    def fire(self, member: Member) -> None:
        """
        Fire an armed chord, and those that its failure arms. Does nothing if it is not armed.

        Args:
            member: Any member of the chord; it names the queue and carries the callback.
        """
        todo = [member]
        for one in todo:  # grows: a callback that fails may be the last member of another chord
            todo += self._fire(one)

    def _fire(self, member: Member) -> Sequence[Member]:
        """Fire one chord; return the memberships through which its failure armed another one."""
        shot = self._make_shot(member)
        if shot is None:
            return ()
        try:
            return self._send(shot)
        except BrokerRefused as error:  # a queue's key has another type
            if not shot.fallen:
                shot = self._make_shot(member, str(error)) or shot
        try:
            return self._send(shot)
        except BrokerRefused as error:
            _log.error("callbacks of the chord of %s cannot be sent: %s", member.group_uuid, error)
            return self._send(shot._replace(messages=[]))

    def _send(self, shot: ChordShot) -> Sequence[Member]:
        return shot.members if self._broker.fire_chord(shot) is Verdict.ARMED else ()

    def _make_shot(self, member: Member, refusal: str = "") -> ChordShot | None:
        """
        Return the change of state that fires this chord; ``None`` while a member still runs.

        Args:
            member: See `fire`.
            refusal: Why the broker refused its callback; "" = it was not sent yet.
        """
        home, group = member.armed_in or member.home, member.group_uuid
        try:
            callback = decode_signature(member.callback, delayed_key=self._rules.delayed_key)
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
            states = self._read_states(meta)
            if not states:
                return None
            ready = make_chord_callback(callback, states, meta.task_uuids)
            meta.chord_triggered = True
            triggered = encode_group(meta)
        if refusal and not isinstance(ready, Failed):
            ready = Failed(f"the callback of {group} cannot be sent: {refusal}")
        if not isinstance(ready, Failed):
            try:
                messages = self._make_messages([ready])
                return ChordShot(home, group, messages, triggered, self._rules.shared_groups)
            except (SignatureError, BrokerRefused) as error:
                ready = Failed(f"the callback of {group} cannot be sent: {error}")
        return self._make_failed_shot(callback, ready, (home, group, triggered))

    def _read_states(self, meta: GroupMeta) -> Sequence[TaskState | None]:
        """Return the members' states; none while a member of a shared group has not ended."""
        if not self._rules.shared_groups:
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

    def _make_messages(self, signatures: Sequence[Signature]) -> list[Message]:
        now_ns = self._clock.now_ns()
        messages, states = MessageMaker(self._rules).make_follow_ups(signatures, now_ns)
        for state in states:
            self._backend.record(state)
        return messages

    def _make_failed_shot(
        self, callback: Signature, failed: Failed, chord: tuple[str, str, bytes]
    ) -> ChordShot:
        """Return the shot of a callback that will never run: it sends its error callbacks."""
        home, group, triggered = chord
        rules, now_ns = self._rules, self._clock.now_ns()
        reason = explain_not_run(callback, failed.error)
        states, members = fail_unrun([callback], failed.error, home, rules, now_ns)
        more_states, more_members = fail_unrun(
            list_never_run(callback), reason, home, rules, now_ns
        )
        states, members = states + more_states, members + more_members
        try:
            messages = self._make_messages(choose_follow_ups(callback, failed))
        except (SignatureError, BrokerRefused) as error:
            _log.error("error callbacks of the chord of %s cannot be sent: %s", group, error)
            messages = []
        if not rules.keeps_states:
            for state in states:
                self._backend.record(state)
        kept = states if rules.keeps_states else ()
        return ChordShot(
            home,
            group,
            messages,
            triggered,
            rules.shared_groups,
            fallen=[(state.task_uuid, encode_state(state)) for state in kept],
            members=members,
        )


def _is_open(state: TaskState | None) -> bool:
    return state is None or not state.is_completed


class ChordSweep(Loop):
    """
    Fires chords that stay armed: their last worker died before it could, or is not ours.

    Args:
        broker: Asked for armed chords.
        chords: Fires them.
        queues: Where to look.
        period_s: Seconds between two looks.
    """

    def __init__(
        self, broker: Upkeep, chords: Chords, queues: Sequence[str], period_s: float
    ) -> None:
        super().__init__("chord sweep", period_s)
        self._broker, self._chords, self._queues = broker, chords, queues
        self._cursors = dict.fromkeys(queues, 0)
        #: Queue -> the groups that the last complete scan found, and those of the present one.
        self._seen: dict[str, set[str]] = {queue: set() for queue in queues}
        self._met: dict[str, set[str]] = {queue: set() for queue in queues}

    def run_once(self, _now_s: float) -> None:
        """Fire the chords that the last scan found too; a newer one is its own worker's to fire."""
        for queue in self._queues:
            self._cursors[queue], armed = self._broker.armed(queue, self._cursors[queue], _BATCH)
            for group, callback in armed:
                if group in self._seen[queue]:
                    self._chords.fire(Member(queue, group, "", 0, callback))
            self._met[queue].update(group for group, _ in armed)
            if self._cursors[queue] == 0:
                self._seen[queue], self._met[queue] = self._met[queue], set()
