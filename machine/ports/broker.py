"""
The broker port: who gets which message, and for how long.

A store implements four roles: `Queues` for callers, `Claims` for those who run
tasks, `Upkeep` for supervisors, `Inspector` for people. Code asks for the role
that it uses. Everything above speaks in the values of `moves`: a *move* is one
change of state of one claimed message. Each move shows the claim it belongs
to, and a move of a claim that is no longer held changes nothing and answers
`Verdict.FENCED`; so every call here may be sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from machine.ports.moves import (
    Canceled,
    ChordShot,
    Claim,
    DeadLetter,
    Enqueued,
    Exchange,
    Message,
    Move,
    Verdict,
)

#: What was put aside comes back within this, so `unpark` looks no further. Seconds.
UNPARK_WITHIN_S = 61
#: Most delayed messages that one `unpark` looks at.
UNPARK_MOST = 10_000


class Admitted(NamedTuple):
    """
    What became of a unique message.

    Attributes:
        outcome: DUPLICATE also when another task has the key: nothing was added.
        uuid: The task that has the key now; the message's own where it was refused.
    """

    outcome: Enqueued
    uuid: str


class QueueCount(NamedTuple):
    """
    What is in one queue.

    Attributes:
        queue: Its name.
        pending: Messages ready to be claimed.
        running: Messages that workers hold.
        dead: Dead letters.
        workers: Ids of the workers whose lease has not run out, supervisors among them.
        oldest: The message that is next; empty where there is none.
    """

    queue: str
    pending: int
    running: int
    dead: int
    workers: list[str]
    oldest: bytes


class Survey(NamedTuple):
    """What `Broker.survey` found: delayed messages of all queues, and a count of each."""

    delayed: int
    queues: list[QueueCount]


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


class Queues(Protocol):
    """What callers do: send and cancel."""

    #: Whether states live in the same store, so that a message and its state are one step.
    keeps_states: bool

    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Write each PENDING state and queue its message; one round trip, idempotent per uuid."""
        ...

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Do what `enqueue` does, without blocking the event loop."""
        ...

    def enqueue_unique(self, message: Message, key: str, *, replace: bool = False) -> Admitted:
        """
        Queue a message unless a task with this key is there: one whose state is kept and not final.

        One step, and idempotent per uuid; only where states are kept here.

        Args:
            message: Its id is what has the key then.
            key: 1 to 256 printable characters; one namespace for each default queue.
            replace: Cancel the task that is there, and queue this one in the same step.
        """
        ...

    async def aenqueue_unique(
        self, message: Message, key: str, *, replace: bool = False
    ) -> Admitted:
        """Do what `enqueue_unique` does, without blocking the event loop."""
        ...

    def cancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """
        Let tasks end as canceled: FAILURE at once, and a mark that workers look at.

        Each is one step by itself; all travel in one round trip. A mark outlives
        restarts and is gone when the task's message has ended; where states are kept
        elsewhere it stays a week, and a task that ends before its worker looks still
        sends what follows its success.

        Args:
            uuids: Ids with a state.
            ahead: Ids of tasks that others are to send later. They are canceled
                where no state is kept yet, too, and then will never be queued.

        Returns:
            One for each of ``uuids``, then one for each of ``ahead``.
        """
        ...

    async def acancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Do what `cancel` does, without blocking the event loop."""
        ...


class Claims(Protocol):
    """What those do who run tasks: a child of a worker, and eager mode."""

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

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these tasks that are marked as canceled."""
        ...

    def waker(self, queues: Sequence[str]) -> Waker:
        """Return a new waker for these queues, on connections of its own."""
        ...

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        """Return all claims the server says this worker holds, in fence order."""
        ...

    def unpark(self, queue: str, knows: Callable[[str], bool]) -> int:
        """
        Make due what was put aside on a queue (`Park`) because no worker knew its task.

        At most 10,000 delayed messages are looked at, those that are due first; the
        others come back at their time.

        Args:
            queue: Where they were put aside, and where they go.
            knows: Says of a task's name whether it is known now.

        Returns:
            How many are due now, their counts forgotten.
        """
        ...


class Upkeep(Protocol):
    """What supervisors do: renew leases, find the dead, move what is due, fire chords."""

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

    def armed(self, queue: str, cursor: int, most: int) -> tuple[int, list[tuple[str, bytes]]]:
        """
        Return some chords that have not fired: (group uuid, callback bytes) of about ``most``.

        Args:
            queue: Whose keys hold them.
            cursor: 0 begins; what the last call returned goes on.
            most: Roughly how many.

        Returns:
            The cursor to go on with, 0 after the last ones; and the chords, some
            perhaps twice.
        """
        ...

    def fire_chord(self, shot: ChordShot) -> Verdict:
        """
        Fire an armed chord; exactly one call for each chord does it.

        Returns:
            DONE when this call fired it, ARMED when that armed a chord of
            ``shot.members`` too, FENCED when it was fired before or cannot be now.
        """
        ...


class Inspector(Protocol):
    """What people do, and what shows them queues: look, replay dead letters, delete them."""

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

    def survey(self, queues: Sequence[str]) -> Survey:
        """Count what is in these queues, at once: an absent server is not waited for."""
        ...

    def ping(self) -> None:
        """Raise unless the server answers."""
        ...

    def eviction_policy(self) -> str:
        """Return what the server forgets when its memory is full; "" where it does not say."""
        ...


class Broker(Queues, Claims, Upkeep, Inspector, Protocol):
    """
    Queues: all four roles, and their end.

    Errors: `BrokerUnavailable` when the server does not answer, `BrokerRefused`
    when it answers that it will not.
    """

    def close(self) -> None:
        """Close every connection."""
        ...

    async def aclose(self) -> None:
        """Close every connection, those of the running event loop included."""
        ...
