"""
The broker port: who gets which message, and for how long.

Adapters (`redis`, `eager`) hold the queues; everything above them speaks in
the values below. A *move* is one change of state of one claimed message. Each
move shows the claim it belongs to, and a move of a claim that is no longer
held changes nothing and answers `Verdict.FENCED`; so every call here may be
sent twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol


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


class ChordShot(NamedTuple):
    """
    What firing a chord does, in one step.

    Attributes:
        home: Queue whose keys hold the chord.
        group_uuid: The group.
        messages: To queue: the callback, or what its failure calls for.
        failed: (uuid, encoded FAILURE state) to record where the callback will
            never run, if no state is there; ``None`` when it runs.
        meta: Encoded GroupMeta with ChordTriggered, or b"" when the meta is gone.
        shared: Whether Go workers may trigger this chord too. Then ChordTriggered in
            the stored meta decides who fires it, and nobody does while a Go worker
            holds Machinery's lock for chords.
    """

    home: str
    group_uuid: str
    messages: Sequence[Message]
    failed: tuple[str, bytes] | None
    meta: bytes
    shared: bool = False


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
    (`wire.encode_state_head`): the adapter keeps the one that is stored.
    ``state_key`` "" writes no state. ``letter`` buries the message (encoded
    envelope, and its id) beside whatever else happens.
    """

    claim: Claim
    state_key: str = ""
    state: bytes = b""
    follow_ups: Sequence[Message] = ()
    member: Member | None = None
    letter: tuple[str, bytes] | None = None


@dataclass(slots=True, kw_only=True)
class Retry:
    """End a claim by putting its re-encoded message back, due at ``due_ns`` (0 = now)."""

    claim: Claim
    state_key: str
    state: bytes
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


@dataclass(slots=True)
class Exchange:
    """
    The answer to `exchange`.

    Attributes:
        verdicts: One for each move, in order.
        claims: What was taken, oldest first.
        held: For each queue, how many claims the server says the worker held
            before taking these; ``None`` when it is not registered any more.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    held: dict[str, int | None] = field(default_factory=dict)


class Reaped(NamedTuple):
    """What `reap` did: how many went back, and the claims now held by the heir."""

    requeued: int
    convicted: list[Claim]


class Roster(NamedTuple):
    """A queue's workers: Redis's time and each worker's lease deadline, both in ms."""

    now_ms: int
    stamps: Mapping[str, int]


class Waker(Protocol):
    """Tells when a queue may have something, without taking it."""

    def arm(self) -> None:
        """Ask every queue to wake us; does nothing where that is already asked."""
        ...

    def filenos(self) -> list[int]:
        """Return the file descriptors that become readable when there is news."""
        ...

    def collect(self) -> bool:
        """Read all news that is there, without waiting; say whether something came."""
        ...

    def give_back(self) -> None:
        """Hand what woke us to another worker, because we have no room for it."""
        ...

    def close(self) -> None:
        """Give up what was asked."""
        ...


class Broker(Protocol):
    """
    Queues. Errors: `BrokerUnavailable` when the server does not answer,
    `BrokerRefused` when it answers that it will not.
    """  # noqa: D205 - one sentence

    #: Whether states live in the same store, so that a move and its state are one step.
    keeps_states: bool

    # -- callers ---------------------------------------------------------------------------
    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Write each PENDING state and queue its message; one round trip, idempotent per uuid."""
        ...

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Do what `enqueue` does, without blocking the event loop."""
        ...

    # -- workers ---------------------------------------------------------------------------
    def register(self, worker_id: str, queues: Sequence[str]) -> None:
        """Give a worker its lease on each queue; claims need one."""
        ...

    def unregister(self, worker_id: str, queues: Sequence[str]) -> None:
        """Take the worker off the roster where it holds nothing any more."""
        ...

    def exchange(
        self, worker_id: str, queues: Sequence[str], moves: Sequence[Move], want: int
    ) -> Exchange:
        """
        Carry out the moves, then claim up to ``want`` messages, in one round trip.

        Queues are tried in the order given. Each move is atomic by itself and
        so is each claim; together they are not. Claiming also renews the
        lease of ``worker_id``. Moves may belong to earlier worker ids.
        """
        ...

    def waker(self, queues: Sequence[str]) -> Waker:
        """Return a new waker for these queues, on connections of its own."""
        ...

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        """Return all claims the server says this worker holds, in fence order."""
        ...

    # -- supervisors -----------------------------------------------------------------------
    def heartbeat(self, queue: str, worker_ids: Sequence[str]) -> list[int | None]:
        """Renew leases; for each worker the number of claims held, ``None`` if not registered."""
        ...

    def roster(self, queue: str) -> Roster:
        """Return the queue's workers and their stamps."""
        ...

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        """
        Take up to 200 claims from a dead worker, oldest first.

        Nothing happens unless the worker's stamp is still ``stamp``. Each
        claim's crash count grows by one. Below the limit it goes back to the
        head of its queue; at the limit, or when its id is in ``convict``, it
        becomes a claim of ``heir``, who finishes it as failed. The worker is
        off the roster when it holds nothing more.
        """
        ...

    def promote(self, most: int) -> int:
        """
        Move up to ``most`` due messages to the queues they name, earliest first.

        Returns how many left the delayed set; bytes that are not a message are buried.
        """
        ...

    def armed(self, queue: str, most: int) -> list[tuple[str, bytes]]:
        """Return (group uuid, callback bytes) of up to ``most`` chords that have not fired."""
        ...

    def ended_count(self, home: str, group_uuid: str) -> int:
        """Return how many members of a chord have ended on our workers."""
        ...

    def disarm(self, home: str, group_uuid: str, ended: int) -> None:
        """Take a chord back that is not complete, unless more than ``ended`` members have ended."""
        ...

    def fire_chord(self, shot: ChordShot) -> bool:
        """Fire an armed chord; exactly one call for each chord does it and returns true."""
        ...

    # -- people ----------------------------------------------------------------------------
    def pending(self, queue: str, most: int = -1) -> list[bytes]:
        """Return messages ready in a queue, next first; -1 = all."""
        ...

    def delayed(self, most: int = -1) -> list[bytes]:
        """Return delayed messages of all queues, earliest first; -1 = all."""
        ...

    def dead(self, queue: str, most: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first."""
        ...

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        """Put dead letters back at the tail of their queue, crash count 0; say how many."""
        ...

    def purge_dead(self, queue: str, ids: Sequence[str]) -> int:
        """Delete dead letters for good; say how many."""
        ...

    def ping(self) -> None:
        """Raise unless the server answers."""
        ...

    def eviction_policy(self) -> str:
        """Return what the server forgets when its memory is full; "" where it does not say."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...

    async def aclose(self) -> None:
        """Close every connection, those of the running event loop included."""
        ...
