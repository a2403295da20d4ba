"""
The broker in one process's memory: eager mode, and the contract's second adapter.

Every method does what the Redis adapter's does, under one lock, with the time
of the clock it is given. It knows no server, and what it holds ends with the
process.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from itertools import islice

from machine.backend.eager import EXPIRE_DEFAULT_S, EagerBackend
from machine.broker.eager_line import Rules
from machine.broker.eager_parked import EagerParked
from machine.broker.eager_store import EagerStore
from machine.broker.eager_survey import EagerSurvey
from machine.broker.eager_unique import EagerUnique
from machine.ports.broker import Reaped, Roster
from machine.ports.clock import Clock
from machine.ports.moves import (
    Canceled,
    ChordShot,
    Claim,
    DeadLetter,
    Enqueued,
    Exchange,
    Message,
    Move,
    Release,
    Verdict,
)
from machine.wire.limits import DELAYED_DEFAULT
from machine.wire.states import decode_letter


class EagerWaker:
    """
    A socket pair that becomes readable once after each `arm` when a queue has something.

    One reader; any thread may queue. It takes nothing out of a queue.
    """

    def __init__(self, broker: EagerBroker, queues: Sequence[str]) -> None:
        self._broker = broker
        self.queues = frozenset(queues)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def arm(self) -> None:
        """Ask to be woken, at once if something is there; does nothing if already asked."""
        self._broker.listen(self)

    def filenos(self) -> list[int]:
        """Return the descriptor that becomes readable when there is news."""
        return [self._reader.fileno()]

    def collect(self) -> bool:
        """Read all news that is there, without waiting; say whether something came."""
        came = False
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                came = True
        return came

    def give_back(self) -> None:
        """Do nothing: it took nothing, and every waker that listened was told."""

    def eviction_policy(self) -> str:
        """Return that nothing is ever forgotten."""
        return "noeviction"

    def close(self) -> None:
        """Stop listening and close the sockets."""
        self._broker.ignore(self)
        self._reader.close()
        self._writer.close()

    def tell(self) -> None:
        """Make the descriptor readable."""
        with contextlib.suppress(BlockingIOError):  # full, so it is readable
            self._writer.send(b"!")


class EagerBroker(EagerUnique, EagerParked, EagerSurvey):
    """
    A `Broker` in memory; safe from any number of threads.

    Args:
        clock: Stands for Redis's clock: leases, due times and fences go by it.
        default_queue: Queue of a due message that names none, and of what cannot be read.
        delayed_key: Name of the delayed set; no state may have it.
        results_expire_s: Seconds a group's meta is kept; 0 means 3600.
        max_queue_length: Messages ready in one queue beyond which `enqueue` says FULL.
        max_deliveries: Workers that may die holding a message before it is convicted.
        lease_s: Seconds from a sign of life to the stamp.
        backend: Keeps the states, in one step with the moves; ``None`` keeps no states.
        ignore_eta: Machinery's eager mode: whatever is due later is ready at once.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        default_queue: str = "machinery_tasks",
        delayed_key: str = DELAYED_DEFAULT,
        results_expire_s: int = EXPIRE_DEFAULT_S,
        max_queue_length: int = 1_000_000,
        max_deliveries: int = 3,
        lease_s: float = 15.0,
        backend: EagerBackend | None = None,
        ignore_eta: bool = False,
    ) -> None:
        self.keeps_states = backend is not None
        # The backend's own lock: a move and its state must be seen together.
        self._lock = backend.changed if backend else threading.Condition(threading.RLock())
        self._listening: set[EagerWaker] = set()
        self.holders: dict[str, str] = {}
        self.store = EagerStore(
            clock=clock,
            rules=Rules(
                default_queue=default_queue,
                delayed_key=delayed_key,
                max_queue_length=max_queue_length,
                max_deliveries=max_deliveries,
                lease_s=lease_s,
                results_expire_s=results_expire_s,
                ignore_eta=ignore_eta,
            ),
            backend=backend,
            on_ready=self._wake,
        )

    def queues(self) -> list[str]:
        """Return the names of all queues that something was ever put in."""
        with self._lock:
            return list(self.store.lines)

    # -- callers ---------------------------------------------------------------------------
    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Write each PENDING state and queue its message; idempotent per uuid."""
        with self._lock:
            return [self.store.enqueue(message) for message in messages]

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        """Do what `enqueue` does; nothing here waits."""
        return self.enqueue(messages)

    def cancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Let tasks end as canceled; see `Broker.cancel`."""
        with self._lock:
            here = [self.store.cancel(uuid) for uuid in uuids]
            return here + [self.store.cancel(uuid, ahead=True) for uuid in ahead]

    async def acancel(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Do what `cancel` does; nothing here waits."""
        return self.cancel(uuids, ahead=ahead)

    def canceled(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these tasks that are marked as canceled."""
        with self._lock:
            return {uuid for uuid in uuids if uuid in self.store.marks}

    # -- workers ---------------------------------------------------------------------------
    def register(self, worker_id: str, queues: Sequence[str]) -> None:
        """Give a worker its lease on each queue; claims need one."""
        with self._lock:
            for queue in queues:
                self.store.lease(queue, worker_id)

    def unregister(self, worker_id: str, queues: Sequence[str]) -> None:
        """Take the worker off the roster where it holds nothing any more."""
        with self._lock:
            for queue in queues:
                line = self.store.line(queue)
                if worker_id not in line.held:
                    line.stamps.pop(worker_id, None)

    def exchange(
        self, worker_id: str, queues: Sequence[str], moves: Sequence[Move], want: int
    ) -> Exchange:
        """Carry out the moves, then claim up to ``want`` messages; queues in the order given."""
        answer = Exchange()
        with self._lock:
            answer.verdicts = self._carry_out(moves)
            for queue in queues:
                left = max(0, want - len(answer.claims))
                answer.held[queue], taken = self.store.claim(queue, worker_id, left)
                answer.claims += taken
            answer.marks = self.store.forget_marks()
        return answer

    def _carry_out(self, moves: Sequence[Move]) -> list[Verdict]:
        verdicts = [Verdict.FENCED] * len(moves)
        # Releases given together keep their order, so the last one goes to the head first.
        back = [i for i, move in enumerate(moves) if isinstance(move, Release)]
        others = [i for i, move in enumerate(moves) if not isinstance(move, Release)]
        for i in (*others, *reversed(back)):
            verdicts[i] = self.store.carry_out(moves[i])
        return verdicts

    def waker(self, queues: Sequence[str]) -> EagerWaker:
        """Return a new waker for these queues."""
        return EagerWaker(self, queues)

    def held(self, queue: str, worker_id: str) -> list[Claim]:
        """Return all claims this worker holds, in fence order."""
        with self._lock:
            return self.store.claims_of(queue, worker_id)

    # -- supervisors -----------------------------------------------------------------------
    def heartbeat(self, queue: str, worker_ids: Sequence[str]) -> list[int | None]:
        """Renew leases; for each worker the number of claims held, ``None`` if not registered."""
        with self._lock:
            return [self.store.claim(queue, worker_id, 0)[0] for worker_id in worker_ids]

    def roster(self, queue: str) -> Roster:
        """Return the queue's workers and their stamps."""
        with self._lock:
            return Roster(self.store.now_ms(), dict(self.store.line(queue).stamps))

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        """Take up to 200 claims from a dead worker, oldest first, if its stamp is still this."""
        with self._lock:
            return self.store.reap(queue, worker_id, stamp, heir, convict)

    def promote(self, most: int) -> int:
        """Move up to ``most`` due messages to the queues they name, earliest first."""
        with self._lock:
            return self.store.promote(most)

    def armed(self, queue: str, cursor: int, most: int) -> tuple[int, list[tuple[str, bytes]]]:
        """Return some chords that have not fired; the cursor is how many came before."""
        with self._lock:
            chords = list(self.store.line(queue).armed.items())
        after = cursor + most
        return (after if after < len(chords) else 0), chords[cursor:after]

    def fire_chord(self, shot: ChordShot) -> Verdict:
        """Fire an armed chord; exactly one call for each chord does it."""
        with self._lock:
            return self.store.fire(shot)

    # -- people ----------------------------------------------------------------------------
    def pending(self, queue: str, most: int = -1) -> list[bytes]:
        """Return messages ready in a queue, next first; -1 = all."""
        with self._lock:
            return list(islice(self.store.line(queue).ready, None if most < 0 else most))

    def delayed(self, most: int = -1) -> list[bytes]:
        """Return delayed messages of all queues, earliest first; -1 = all."""
        with self._lock:
            ordered = sorted((due_ns, raw) for raw, due_ns in self.store.delayed.items())
        return [raw for _, raw in ordered[: None if most < 0 else most]]

    def dead(self, queue: str, most: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first."""
        with self._lock:
            dead = self.store.line(queue).dead
            oldest = sorted((ms, one, raw) for one, (ms, raw) in dead.items())[:most]
        found = [(one, decode_letter(raw), ms) for ms, one, raw in oldest]
        return [
            DeadLetter(one, letter.reason, letter.payload, letter.crash_count, letter.worker_id, ms)
            for one, letter, ms in found
        ]

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        """Put dead letters back at the tail of their queue, crash count 0; say how many."""
        with self._lock:
            return self.store.replay(queue, ids)

    def purge_dead(self, queue: str, ids: Sequence[str]) -> int:
        """Delete dead letters for good; say how many."""
        with self._lock:
            dead = self.store.line(queue).dead
            return sum(dead.pop(one, None) is not None for one in dict.fromkeys(ids))

    def ping(self) -> None:
        """Return: memory always answers."""

    def eviction_policy(self) -> str:
        """Return that nothing is ever forgotten."""
        return "noeviction"

    async def aclose(self) -> None:
        """Close nothing: there is no connection."""

    def close(self) -> None:
        """Stop waking anybody; wakers close their own sockets."""
        with self._lock:
            self._listening.clear()

    # -- wakers ----------------------------------------------------------------------------
    def listen(self, waker: EagerWaker) -> None:
        """Tell this waker, once, as soon as one of its queues has something."""
        with self._lock:
            if waker in self._listening:
                return
            if any(self.store.line(queue).ready for queue in waker.queues):
                waker.tell()
            else:
                self._listening.add(waker)

    def ignore(self, waker: EagerWaker) -> None:
        """Tell this waker nothing any more."""
        with self._lock:
            self._listening.discard(waker)

    def _wake(self, queue: str) -> None:
        heard = {waker for waker in self._listening if queue in waker.queues}
        self._listening -= heard
        for waker in heard:
            waker.tell()
