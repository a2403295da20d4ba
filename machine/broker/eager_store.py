"""
What Redis holds for the queues, as plain structures in memory.

Each method is one change of state, as a Lua script is for the Redis adapter. It
takes no lock and waits for nothing: `broker.eager` locks, and wakes who waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count, islice

from machine.backend.eager import (
    EXPIRE_DEFAULT_S,
    UNFINISHED_S,
    EagerBackend,
    is_ahead,
    is_final,
    is_state,
)
from machine.broker.eager_line import Line, Rules, digest_of
from machine.errors import WireError
from machine.ports.broker import Reaped
from machine.ports.clock import Clock
from machine.ports.moves import (
    Canceled,
    ChordShot,
    Claim,
    Enqueued,
    Finish,
    Member,
    Message,
    Move,
    Release,
    Retry,
    Start,
    Verdict,
)
from machine.wire.messages import decode_signature
from machine.wire.signature import State, TaskState
from machine.wire.states import (
    CANCELED,
    decode_letter,
    decode_state,
    encode_letter,
    encode_state_head,
)

#: Most claims one `reap` takes.
REAP_MOST = 200
#: First and longest time a message of an unknown task is put aside, in seconds.
PARK_FIRST_S, PARK_MOST_S = 1.0, 60.0
_MS = 1_000_000
_S = 1_000_000_000
#: How the fields of a canceled task's state begin.
_CANCELED = b'"State":"FAILURE","Results":null,"Error":"canceled'


class EagerStore:
    """
    All queues of one process.

    Args:
        clock: The only clock; stands for Redis's.
        rules: Limits.
        backend: Keeps the states, or ``None`` when they live elsewhere.
        on_ready: Called with the name of a queue that got a message.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        rules: Rules,
        backend: EagerBackend | None,
        on_ready: Callable[[str], None],
    ) -> None:
        self.lines: dict[str, Line] = {}
        self.delayed: dict[bytes, int] = {}
        #: Canceled task -> Unix ns until which its mark is kept.
        self.marks: dict[str, int] = {}
        self._clock = clock
        self._rules = rules
        #: How long the members of a group that ended are remembered.
        self._ended_ns = max(rules.results_expire_s or EXPIRE_DEFAULT_S, UNFINISHED_S) * _S
        self._backend = backend
        self._on_ready = on_ready
        self._nonce = count(1)

    def line(self, queue: str) -> Line:
        """Return the queue's line; a new one where there is none."""
        return self.lines.setdefault(queue, Line())

    @property
    def rules(self) -> Rules:
        """Return the limits it goes by."""
        return self._rules

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        return self._clock.now_ns() // _MS

    # -- in --------------------------------------------------------------------------------
    def enqueue(self, message: Message) -> Enqueued:
        """Write the PENDING state and queue the message, unless a state is kept already."""
        refused = self.refusal(message)
        if refused is None:
            self._send(message)
        elif refused is Enqueued.DUPLICATE and self._backend:
            self._backend.touch(message.uuid)
        return Enqueued.QUEUED if refused is None else refused

    def refusal(self, message: Message) -> Enqueued | None:
        """Return why a message would not be queued, ``None`` when it would."""
        if self._backend and message.pending:
            kind = self._kind(message.uuid)
            if kind:
                return Enqueued.DUPLICATE if kind == "state" else Enqueued.BAD_KEY
        if self._kind(message.queue) not in ("", "list"):
            return Enqueued.BAD_KEY
        full = len(self.line(message.queue).ready) >= self._rules.max_queue_length
        return Enqueued.FULL if full else None

    def promote(self, most: int) -> int:
        """Move due messages to the queues they name, earliest first; say how many left."""
        now_ns = self._clock.now_ns()
        due = heapq.nsmallest(most, ((ns, raw) for raw, ns in self.delayed.items() if ns <= now_ns))
        for _, payload in due:
            del self.delayed[payload]
            try:
                signature = decode_signature(payload, delayed_key=self._rules.delayed_key)
            except WireError as error:
                self._bury(payload, str(error))
                continue
            queue = signature.routing_key or self._rules.default_queue
            if self._kind(queue) not in ("", "list"):
                self._bury(payload, f"'{queue}' is not a list; send it to another queue.")
            else:
                self._push(queue, payload)
        return len(due)

    def replay(self, queue: str, ids: Sequence[str]) -> int:
        """Put dead letters back at the tail of their queue, crash count 0."""
        line = self.line(queue)
        found = [line.dead.pop(one)[1] for one in dict.fromkeys(ids) if one in line.dead]
        for envelope in found:
            payload = decode_letter(envelope).payload
            line.forgive(payload)
            self._push(queue, payload)
        return len(found)

    # -- claims ----------------------------------------------------------------------------
    def lease(self, queue: str, worker_id: str) -> None:
        """Set the worker's stamp one lease from now."""
        lease_ms = int(self._rules.lease_s * 1000)
        self.line(queue).stamps[worker_id] = self.now_ms() + lease_ms

    def claim(self, queue: str, worker_id: str, want: int) -> tuple[int | None, list[Claim]]:
        """Return how many the worker held before, and what it took now."""
        line = self.line(queue)
        if worker_id not in line.stamps:
            return None, []
        self.lease(queue, worker_id)
        before = len(line.held.get(worker_id, ()))
        taken = [line.ready.popleft() for _ in range(min(want, len(line.ready)))]
        return before, [self._hold(queue, worker_id, payload) for payload in taken]

    def claims_of(self, queue: str, worker_id: str) -> list[Claim]:
        """Return the worker's claims in fence order."""
        line = self.line(queue)
        held = line.held.get(worker_id, {})
        claims = [
            Claim(one, worker_id, queue, payload, line.crashes.get(digest_of(payload), 0))
            for one, payload in held.items()
        ]
        return sorted(claims, key=lambda claim: claim.fence)

    def reap(
        self, queue: str, worker_id: str, stamp: int, heir: str, convict: Sequence[str]
    ) -> Reaped:
        """Take claims from a dead worker; see the port."""
        line = self.line(queue)
        # A holder that is not on the roster could never be reaped itself.
        if line.stamps.get(worker_id) != stamp or heir not in line.stamps:
            return Reaped(0, [])
        back: list[bytes] = []
        convicted: list[Claim] = []
        for claim in islice(self.claims_of(queue, worker_id), REAP_MOST):
            payload = line.let_go(claim)
            line.crashes[digest_of(payload)] = claim.crash_count + 1
            if claim.crash_count + 1 >= self._rules.max_deliveries or claim.id in convict:
                line.held.setdefault(heir, {})[claim.id] = payload
                convicted.append(claim._replace(worker_id=heir, crash_count=claim.crash_count + 1))
            else:
                back.append(payload)
        if worker_id not in line.held:
            del line.stamps[worker_id]
        line.ready.extendleft(reversed(back))
        if back:
            self._on_ready(queue)
        return Reaped(len(back), convicted)

    # -- moves -----------------------------------------------------------------------------
    def carry_out(self, move: Move) -> Verdict:
        """Make one move; a claim that is not held changes nothing."""
        claim = move.claim
        line = self.line(claim.queue)
        if claim.id not in line.held.get(claim.worker_id, {}):
            if isinstance(move, Finish):
                self._keep_orphan(move)
            return Verdict.FENCED
        if isinstance(move, Start | Finish | Retry) and self._is_bad_key(move.state_key):
            return Verdict.BAD_KEY
        match move:
            case Start():
                kept = self._state(move.state_key)
                if kept is None or not is_final(kept):
                    self._write(move.state_key, move.state)
            case Finish():
                return self._finish(line, move)
            case Retry() if move.state_key in self.marks:
                return Verdict.CANCELED
            case Retry():
                self._write(move.state_key, move.state, move.due_ns, move.attempt)
                line.forgive(line.let_go(claim))
                self._place(move.queue, move.payload, move.due_ns)
            case Release():
                line.ready.appendleft(line.let_go(claim))
                self._on_ready(claim.queue)
            case _:  # Park
                payload = line.let_go(claim)
                digest = digest_of(payload)
                times = line.parked[digest] = line.parked.get(digest, 0) + 1
                delay_s = backoff_s(times, first_s=PARK_FIRST_S, most_s=PARK_MOST_S)
                self.delayed[payload] = self._clock.now_ns() + int(delay_s * _S)
        return Verdict.DONE

    def fire(self, shot: ChordShot) -> Verdict:
        """Fire an armed chord, once."""
        if self.line(shot.home).armed.pop(shot.group_uuid, None) is None:
            return Verdict.FENCED
        for message in shot.messages:
            self._follow(message)
        if self._backend and shot.meta and self._kind(shot.group_uuid) == "string":
            self._backend.put(shot.group_uuid, shot.meta)
        return Verdict.ARMED if self._let_fall(shot.fallen, shot.members) else Verdict.DONE

    def _finish(self, line: Line, move: Finish) -> Verdict:
        canceled = move.state_key in self.marks
        if canceled and not _is_canceled(move.state):
            return Verdict.CANCELED
        if not (canceled and self._state(move.state_key)):
            self._write(move.state_key, move.state)
        self.marks.pop(move.state_key, None)
        for message in move.follow_ups:
            self._follow(message)
        armed = self._let_fall(move.fallen, move.members)
        if move.letter is not None:
            one, envelope = move.letter
            line.dead[one] = (self.now_ms(), envelope)
        line.forgive(line.let_go(move.claim))
        return Verdict.ARMED if armed else Verdict.DONE

    def _let_fall(self, fallen: Sequence[tuple[str, bytes]], members: Sequence[Member]) -> bool:
        """Record what will never run, count members; say whether a chord is armed by them."""
        for uuid, state in fallen:
            if not self._kind(uuid):
                self._write(uuid, state)
        armed = False
        for member in members:
            armed = self._end_member(member) or armed
        return armed

    # -- canceling -------------------------------------------------------------------------
    def cancel(self, uuid: str, *, error: str = CANCELED, ahead: bool = False) -> Canceled:
        """
        Let a task end as canceled.

        Args:
            uuid: Its id.
            error: "canceled", and perhaps more behind it.
            ahead: Whether it may have no state yet.
        """
        self.forget_marks()
        if self._backend is None:
            self._mark(uuid)
            return Canceled.DONE
        if self._kind(uuid) not in ("", "state"):
            return Canceled.BAD_KEY
        kept = self._state(uuid)
        if kept is not None and is_ahead(kept):
            kept, ahead = None, True
        if kept is None:
            if ahead:
                self._write(uuid, encode_state_head(_canceled(uuid, "", error)))
            return Canceled.DONE if ahead else Canceled.UNKNOWN
        if is_final(kept):
            return Canceled.DONE if _is_canceled(kept) else Canceled.ENDED
        name = decode_state(kept).task_name
        # A delayed task's message comes later than any result is kept: the mark waits for it.
        kept_until_ns = self._backend.kept_until_ns(uuid)
        self._write(uuid, encode_state_head(_canceled(uuid, name, error)))
        self._mark(uuid, kept_until_ns)
        return Canceled.DONE

    def is_open(self, uuid: str) -> bool:
        """Say whether a state is kept under this id and not final."""
        kept = self._state(uuid)
        return kept is not None and is_state(kept) and not is_final(kept)

    def _mark(self, uuid: str, at_least_ns: int = 0) -> None:
        self.marks[uuid] = max(self._clock.now_ns() + 7 * self._ended_ns, at_least_ns)

    def forget_marks(self) -> int:
        """Forget the marks whose time is over; return how many are left."""
        if self.marks:
            now_ns = self._clock.now_ns()
            self.marks = {uuid: until for uuid, until in self.marks.items() if until > now_ns}
        return len(self.marks)

    def _end_member(self, member: Member) -> bool:
        home = self.line(member.home)
        now_ns = self._clock.now_ns()
        home.ended = {group: e for group, e in home.ended.items() if e[1] > now_ns}
        ended, _ = home.ended.get(member.group_uuid, (set(), 0))
        is_new = member.uuid not in ended
        ended.add(member.uuid)
        home.ended[member.group_uuid] = (ended, now_ns + self._ended_ns)
        if is_new and member.size in (0, len(ended)):
            self.line(member.armed_in or member.home).armed[member.group_uuid] = member.callback
            return True
        return False

    def _keep_orphan(self, move: Finish) -> None:
        # The server lost both the claim and the state: nobody else will run this again.
        if move.state_key and not self._kind(move.state_key):
            self._write(move.state_key, move.state)

    # -- pieces ----------------------------------------------------------------------------
    def _hold(self, queue: str, worker_id: str, payload: bytes) -> Claim:
        line = self.line(queue)
        line.fence = max(line.fence, self._clock.now_ns() // 1000) + 1
        one = f"{line.fence}.{next(self._nonce)}"
        line.held.setdefault(worker_id, {})[one] = payload
        return Claim(one, worker_id, queue, payload, line.crashes.get(digest_of(payload), 0))

    def _follow(self, message: Message) -> None:
        if not (self._backend and message.pending and self._kind(message.uuid)):
            self._send(message)

    def _send(self, message: Message) -> None:
        if message.pending:
            self._write(message.uuid, message.pending, message.due_ns)
        self._place(message.queue, message.payload, message.due_ns)

    def _place(self, queue: str, payload: bytes, due_ns: int) -> None:
        if due_ns > self._clock.now_ns() and not self._rules.ignore_eta:
            self.delayed[payload] = due_ns
        else:
            self._push(queue, payload)

    def _push(self, queue: str, payload: bytes) -> None:
        self.line(queue).ready.append(payload)
        self._on_ready(queue)

    def _bury(self, payload: bytes, reason: str) -> None:
        now_ms = self.now_ms()
        envelope = encode_letter(
            reason=reason, payload=payload, crash_count=0, worker_id="", buried_ms=now_ms
        )
        self.line(self._rules.default_queue).dead[digest_of(payload)] = (now_ms, envelope)

    def _write(self, key: str, encoded: bytes, due_ns: int = 0, attempt: bytes = b"") -> None:
        if self._backend and key and encoded:
            self._backend.put(key, encoded, due_ns=due_ns, attempt=attempt)

    def _state(self, key: str) -> bytes | None:
        return self._backend.peek(key) if self._backend and key else None

    def _is_bad_key(self, key: str) -> bool:
        return bool(self._backend and key) and self._kind(key) not in ("", "state")

    def _kind(self, key: str) -> str:
        """Say what is kept under this name: in one keyspace a name is one thing."""
        if key == self._rules.delayed_key:
            return "zset" if self.delayed else ""
        line = self.lines.get(key)
        if line is not None and line.ready:
            return "list"
        kept = self._state(key)
        if kept is None or is_ahead(kept):
            return ""
        return "state" if is_state(kept) else "string"


def _is_canceled(encoded: bytes) -> bool:
    """Say whether this is the state of a canceled task, whatever else its values say."""
    at = encoded.find(b'"State":"')
    return at >= 0 and encoded.startswith(_CANCELED, at)


def _canceled(uuid: str, name: str, error: str) -> TaskState:
    return TaskState(task_uuid=uuid, state=State.FAILURE, task_name=name, error=error)


def backoff_s(attempt: int, *, first_s: float, most_s: float) -> float:
    """
    Return ``first_s`` doubled for each attempt after the first, at most ``most_s``.

    Args:
        attempt: From 1; anything lower counts as 1.
        first_s: Seconds after the first attempt, > 0.
        most_s: The ceiling in seconds.
    """
    return min(most_s, first_s * 2.0 ** min(max(attempt, 1) - 1, 60))
