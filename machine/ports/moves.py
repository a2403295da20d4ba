"""
What crosses the broker port: messages, claims, moves, and what became of each.

Plain values. A *move* is one change of state of one claimed message; it shows
the claim it belongs to, so that an adapter can refuse what is no longer held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Message(NamedTuple):
    """
    A signature on its way into a queue.

    Attributes:
        uuid: Its state key.
        queue: The list it goes to.
        payload: The encoded signature; opaque from here on.
        pending: Encoded PENDING state, or b"" when states are kept elsewhere.
        due_ns: Unix nanoseconds before which it must not start; 0 = ready.
    """

    uuid: str
    queue: str
    payload: bytes
    pending: bytes
    due_ns: int = 0


class Enqueued(IntEnum):
    """What became of a message that was sent."""

    FULL = -2  # the queue is at its limit; nothing was written
    BAD_KEY = -1  # the state key or the list holds something else; nothing was written
    DUPLICATE = 0  # a state is kept under this id already; nothing was added
    QUEUED = 1


class Claim(NamedTuple):
    """
    One delivery of one message to one worker.

    Attributes:
        id: ``<fence>.<nonce>``; never given out twice.
        worker_id: The incarnation that holds it.
        queue: The list it was taken from.
        payload: The message's bytes, as they were in the list.
        crash_count: How many workers died holding these bytes.
    """

    id: str
    worker_id: str
    queue: str
    payload: bytes
    crash_count: int = 0

    @property
    def fence(self) -> int:
        """Return the claim's number; grows with every claim of its queue."""
        return int(self.id.partition(".")[0])


class DeadLetter(NamedTuple):
    """A message that will not be tried again by itself, and why. Times are Unix ms."""

    id: str
    reason: str
    payload: bytes
    crash_count: int
    worker_id: str
    buried_ms: int


class Member(NamedTuple):
    """
    A finished member of a chord.

    Attributes:
        home: Queue whose keys count the members that ended: the same for all of them.
        group_uuid: The group.
        uuid: The member's own id.
        size: Members of the group; the chord arms when so many have ended. 0 arms it
            each time: some may end on Go workers, who keep no count.
        callback: Encoded callback signature, kept until the chord fires.
        armed_in: Queue whose keys hold the armed chord: one that this worker consumes,
            so that somebody looks there if it dies; "" = ``home``.
    """

    home: str
    group_uuid: str
    uuid: str
    size: int
    callback: bytes
    armed_in: str = ""


class Canceled(IntEnum):
    """What became of asking for a task to be canceled."""

    BAD_KEY = -1  # the id names a key of another kind; nothing was written
    UNKNOWN = 0  # no state is kept under this id; nothing was written
    ENDED = 1  # it had ended before; nothing was written
    DONE = 2  # its state says so now, and its mark is set; or both were so before


class ChordShot(NamedTuple):
    """
    What firing a chord does, in one step.

    Attributes:
        home: Queue whose keys hold the chord.
        group_uuid: The group.
        messages: To queue: the callback, or what its failure calls for.
        meta: Encoded GroupMeta with ChordTriggered, or b"" when the meta is gone.
        shared: Whether Go workers may trigger this chord too. Then ChordTriggered in
            the stored meta decides who fires it, and nobody does while a Go worker
            holds Machinery's lock for chords. What failed is told either way: Go
            tells nobody.
        fallen: (uuid, encoded FAILURE state) of the callback that will never run, and
            of what was to follow it; each recorded where no state is.
        members: Of these tasks, those that are members of chords in turn.
    """

    home: str
    group_uuid: str
    messages: Sequence[Message]
    meta: bytes
    shared: bool = False
    fallen: Sequence[tuple[str, bytes]] = ()
    members: Sequence[Member] = ()


@dataclass(slots=True, kw_only=True)
class Start:
    """Show STARTED for a task that is still running; the claim stays held."""

    claim: Claim
    state_key: str
    state: bytes


@dataclass(slots=True, kw_only=True)
class Finish:
    """
    End a claim: final state, follow-ups, chord member and dead letter in one step.

    ``state`` is the encoded final state *without* its creation time
    (`wire.encode_state_head`): the adapter keeps the one that is stored, and the
    errors of earlier attempts with it. ``state_key`` "" writes no state. ``letter``
    buries the message (encoded envelope, and its id) beside whatever else happens.
    ``fallen`` are (uuid, encoded FAILURE state) of tasks that were to follow and will
    never run; each is recorded where no state is. ``members`` are the claim's own
    membership of a chord, and those of the fallen.
    """

    claim: Claim
    state_key: str = ""
    state: bytes = b""
    follow_ups: Sequence[Message] = ()
    members: Sequence[Member] = ()
    fallen: Sequence[tuple[str, bytes]] = ()
    letter: tuple[str, bytes] | None = None


@dataclass(slots=True, kw_only=True)
class Retry:
    """
    End a claim by putting its re-encoded message back, due at ``due_ns`` (0 = now).

    ``attempt`` is the encoded record of the run that ended so
    (`wire.encode_attempt`), added to those kept in the state.
    """

    claim: Claim
    state_key: str
    state: bytes
    attempt: bytes
    payload: bytes
    queue: str
    due_ns: int


@dataclass(slots=True, kw_only=True)
class Release:
    """Give a claim back to the head of its queue, unchanged and uncounted."""

    claim: Claim


@dataclass(slots=True, kw_only=True)
class Park:
    """Put a message of an unknown task aside, unchanged, for 1 s, 2 s, 4 s … 60 s."""

    claim: Claim


Move = Start | Finish | Retry | Release | Park


class Verdict(IntEnum):
    """What became of a move."""

    BAD_KEY = -1  # the state key holds something that is not a state; the claim is still held
    FENCED = 0  # the claim is not ours any more; nothing was changed
    DONE = 1
    ARMED = 2  # done, and this was the last member: the chord is ready to fire
    CANCELED = 3  # somebody canceled the task: nothing was changed; end it as canceled


@dataclass(slots=True)
class Exchange:
    """
    The answer to `exchange`.

    Attributes:
        verdicts: One for each move, in order.
        claims: What was taken, oldest first.
        held: For each queue, how many claims the server says the worker held
            before taking these; ``None`` when it is not registered any more.
        marks: How many tasks are marked as canceled and have not ended yet.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    held: dict[str, int | None] = field(default_factory=dict)
    marks: int = 0
