"""
The broker contract, as a machine: whatever happens in whatever order, nothing is lost or doubled.

A plain model says where each message must be. After every step the broker is
asked, and every answer must be the model's. The invariants' numbers are those
of docs/design.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from machine.ports.broker import Reaped
from machine.ports.moves import (
    Canceled,
    Claim,
    Enqueued,
    Finish,
    Move,
    Park,
    Release,
    Retry,
    Start,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Bench

S_NS = 1_000_000_000
HOUR_NS = 3600 * S_NS
MAX_DELIVERIES = 3
ENDINGS = ["finish", "fail", "bury"]
#: Moves that tell what a task came to: refused once it is canceled.
OUTCOMES = ["finish", "fail", "follow", "retry", "later", "bury"]
KINDS = ["finish", "fail", "follow", "retry", "later", "release", "park", "start", "bury"]

picks = st.integers(min_value=0, max_value=1_000)


class Conservation(RuleBasedStateMachine):
    """Messages, two workers that die and come back as others, and one reaper."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.broker = bench.broker
        self.ready: list[bytes] = []
        self.delayed: list[bytes] = []
        self.dead: list[bytes] = []
        self.states: dict[str, str] = {}
        self.canceled: set[str] = set()
        self.marked: set[str] = set()
        self.crashes: Counter[bytes] = Counter()
        self.held: dict[str, list[Claim]] = {}
        self.lost: list[Claim] = []
        self.ids: set[str] = set()
        self.sent = 0
        self.born = 0
        self.reaper = self.birth("reaper")
        self.workers = [self.birth("w"), self.birth("w")]

    # -- the model's own words -----------------------------------------------------------------
    def birth(self, kind: str) -> str:
        self.born += 1
        worker = self.bench.worker(f"{kind}{self.born}")
        self.held[worker] = []
        return worker

    def name(self) -> str:
        self.sent += 1
        return f"n{self.sent}"

    def any_claim(self, pick: int) -> Claim:
        claims = [claim for worker in sorted(self.held) for claim in self.held[worker]]
        return claims[pick % len(claims)]

    def build(self, kind: str, claim: Claim) -> Move:
        bench = self.bench
        if claim.crash_count >= MAX_DELIVERIES and kind not in ENDINGS:
            kind = "bury"  # an heir ends what it inherits
        later_ns = bench.now_ns() + HOUR_NS
        following = bench.message(f"{bench.name_of(claim.payload)}-next")
        moves: dict[str, Callable[[], Move]] = {
            "finish": lambda: bench.finish(claim),
            "fail": lambda: bench.finish(claim, "FAILURE"),
            "follow": lambda: bench.finish(claim, follow_ups=[following]),
            "bury": lambda: bench.finish(claim, "FAILURE", letter=bench.letter(claim, "bad")),
            "start": lambda: bench.start(claim),
            "release": lambda: Release(claim=claim),
            "park": lambda: Park(claim=claim),
            "retry": lambda: bench.retry(claim),
            "later": lambda: bench.retry(claim, due_ns=later_ns),
        }
        return moves[kind]()

    def expect(self, move: Move) -> None:
        """Do to the model what the move must do to the store."""
        claim = move.claim
        name = self.bench.name_of(claim.payload)
        if isinstance(move, Start):
            self.states[name] = "STARTED"
            return
        self.held[claim.worker_id].remove(claim)
        self.lost.append(claim)
        match move:
            case Finish():
                self.states[name] = self.bench_word(move.state)
                del self.crashes[claim.payload]
                if move.letter:
                    self.dead.append(claim.payload)
                for message in move.follow_ups:
                    self.accept(message.payload)
            case Retry():
                self.states[name] = "RETRY"
                del self.crashes[claim.payload]
                (self.delayed if move.due_ns else self.ready).append(move.payload)
            case Release():
                self.ready.insert(0, claim.payload)
            case Park():
                self.delayed.append(claim.payload)

    @staticmethod
    def bench_word(head: bytes) -> str:
        return "SUCCESS" if b'"State":"SUCCESS"' in head else "FAILURE"

    def accept(self, payload: bytes) -> None:
        name = self.bench.name_of(payload)
        if name not in self.states:
            self.states[name] = "PENDING"
            self.ready.append(payload)

    # -- what happens --------------------------------------------------------------------------
    @rule(count=st.integers(min_value=1, max_value=5))
    def send(self, count: int) -> None:
        messages = [self.bench.message(self.name()) for _ in range(count)]

        assert self.broker.enqueue(messages) == [Enqueued.QUEUED] * count

        for message in messages:
            self.accept(message.payload)

    @precondition(lambda self: self.states)
    @rule(pick=picks)
    def send_again(self, pick: int) -> None:
        """I6: the same id again is no second message."""
        name = sorted(self.states)[pick % len(self.states)]

        assert self.broker.enqueue([self.bench.message(name)]) == [Enqueued.DUPLICATE]

    @rule(which=st.integers(min_value=0, max_value=1), want=st.integers(min_value=1, max_value=4))
    def claim(self, which: int, want: int) -> None:
        worker = self.workers[which]

        claims = self.bench.take(worker, want)

        taken, self.ready = self.ready[:want], self.ready[want:]
        assert [claim.payload for claim in claims] == taken  # I20
        assert [claim.crash_count for claim in claims] == [self.crashes[raw] for raw in taken]  # I7
        assert all(claim.crash_count < MAX_DELIVERIES for claim in claims)
        assert self.ids.isdisjoint(claim.id for claim in claims)
        self.ids.update(claim.id for claim in claims)
        self.held[worker] += claims

    @precondition(lambda self: any(self.held.values()))
    @rule(pick=picks, kind=st.sampled_from(KINDS))
    def move(self, pick: int, kind: str) -> None:
        """A move is done once; I5: made again it does nothing more."""
        claim = self.any_claim(pick)
        if self.bench.name_of(claim.payload) in self.marked:
            self.end_as_canceled(kind, claim)
            return
        move = self.build(kind, claim)

        assert self.bench.make(move) == [Verdict.DONE]

        self.expect(move)
        before = self.bench.dump()
        again = Verdict.DONE if isinstance(move, Start) else Verdict.FENCED
        assert self.bench.make(move) == [again]
        assert self.bench.dump() == before

    def end_as_canceled(self, kind: str, claim: Claim) -> None:
        """Whatever a canceled task came to changes nothing; then it ends, once."""
        before = self.bench.dump()
        move = self.build(kind if kind in OUTCOMES else "finish", claim)
        assert self.bench.make(move) == [Verdict.CANCELED]
        assert self.bench.dump() == before
        name = self.bench.name_of(claim.payload)
        end = self.bench.finish(claim)
        end.state = self.bench.head(end.state_key, "FAILURE", error="canceled")

        assert self.bench.make(end) == [Verdict.DONE]

        self.marked.remove(name)
        self.expect(end)

    @precondition(lambda self: self.states)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        name = sorted(self.states)[pick % len(self.states)]
        ended = self.states[name] in ("SUCCESS", "FAILURE")

        codes = self.broker.cancel([self.bench.uuid(name)], ahead=[self.bench.uuid(f"{name}-next")])

        done = not ended or name in self.canceled
        assert codes[0] == (Canceled.DONE if done else Canceled.ENDED)
        if not ended:
            self.mark(name)
        self.cancel_ahead(f"{name}-next", codes[1])

    def cancel_ahead(self, name: str, code: Canceled) -> None:
        word = self.states.get(name)
        ended = word in ("SUCCESS", "FAILURE") and name not in self.canceled
        assert code == (Canceled.ENDED if ended else Canceled.DONE)
        if word is None:
            self.states[name] = "FAILURE"
            self.canceled.add(name)
        elif word not in ("SUCCESS", "FAILURE"):
            self.mark(name)

    def mark(self, name: str) -> None:
        self.states[name] = "FAILURE"
        self.canceled.add(name)
        self.marked.add(name)

    @precondition(lambda self: self.lost)
    @rule(pick=picks, kind=st.sampled_from(KINDS))
    def move_too_late(self, pick: int, kind: str) -> None:
        """I2, I4: whoever lost its claim changes nothing at all."""
        move = self.build(kind, self.lost[pick % len(self.lost)])
        before = self.bench.dump()

        assert self.bench.make(move) == [Verdict.FENCED]
        assert self.bench.dump() == before

    @rule(which=st.integers(min_value=0, max_value=1))
    def die(self, which: int) -> None:
        self.reap(self.workers[which])
        self.workers[which] = self.birth("w")

    @precondition(lambda self: self.held[self.reaper])
    @rule()
    def reaper_dies(self) -> None:
        dead, self.reaper = self.reaper, self.birth("reaper")
        self.reap(dead)

    @rule(which=st.integers(min_value=0, max_value=1))
    def crash_loop(self, which: int) -> None:
        """Claim all there is and die, until all of it is convicted."""
        for _ in range(MAX_DELIVERIES):
            self.claim(which, 1_000)
            self.die(which)

    @rule(which=st.integers(min_value=0, max_value=1))
    def reap_the_living(self, which: int) -> None:
        """I14: a stamp that has changed meanwhile is no reason to reap."""
        worker = self.workers[which]
        stale = self.bench.stamp(worker) - 1

        assert self.broker.reap(self.bench.queue, worker, stale, self.reaper, []) == Reaped(0, [])

    def reap(self, worker: str) -> None:
        reaped = self.bench.reap(worker, self.reaper)

        back, convicted = [], []
        for claim in self.held.pop(worker):
            self.lost.append(claim)
            self.crashes[claim.payload] += 1
            guilty = self.crashes[claim.payload] >= MAX_DELIVERIES
            (convicted if guilty else back).append(claim.payload)
        assert reaped.requeued == len(back)
        assert Counter(claim.payload for claim in reaped.convicted) == Counter(convicted)
        for claim in reaped.convicted:
            assert (claim.worker_id, claim.queue) == (self.reaper, self.bench.queue)
            assert claim.crash_count == self.crashes[claim.payload]
        self.ready[:0] = back
        self.held[self.reaper] += reaped.convicted

    @precondition(lambda self: self.delayed)
    @rule(pick=picks)
    def promote(self, pick: int) -> None:
        payload = self.delayed.pop(pick % len(self.delayed))
        self.bench.put_delayed(payload, self.bench.now_ns() - S_NS)

        assert self.broker.promote(100) == 1

        self.ready.append(payload)

    # -- what must be true ---------------------------------------------------------------------
    @invariant()
    def everything_is_where_the_model_says(self) -> None:
        queue = self.bench.queue
        ready = self.broker.pending(queue)
        delayed = self.broker.delayed()
        dead = [letter.payload for letter in self.broker.dead(queue)]
        held = {worker: self.broker.held(queue, worker) for worker in self.held}

        assert ready == self.ready
        assert sorted(delayed) == sorted(self.delayed)
        assert sorted(dead) == sorted(self.dead)
        assert sorted(self.broker.roster(queue).stamps) == sorted(self.held)
        assert {w: sorted(c.id for c in claims) for w, claims in held.items()} == {
            w: sorted(c.id for c in claims) for w, claims in self.held.items()
        }
        self.each_message_is_in_one_place([*ready, *delayed], held)

    def each_message_is_in_one_place(
        self, waiting: list[bytes], held: dict[str, list[Claim]]
    ) -> None:
        """
        I1: each accepted id is in exactly one place, or has ended; never both, never neither.

        A canceled one has its final state before its message ends; the mark is for that time.
        """
        names = sorted(self.states)
        states = self.bench.backend.read([self.bench.uuid(name) for name in names])
        words = {n: None if s is None else s.state for n, s in zip(names, states, strict=True)}
        assert words == self.states

        places = Counter(self.bench.name_of(payload) for payload in waiting)
        for claims in held.values():
            places.update(self.bench.name_of(claim.payload) for claim in claims)
        ended = {name for name, word in words.items() if word in ("SUCCESS", "FAILURE")}
        assert self.broker.canceled([self.bench.uuid(name) for name in names]) == {
            self.bench.uuid(name) for name in self.marked
        }
        final = Counter(ended - self.marked)
        assert places + final == Counter(names)

    def teardown(self) -> None:
        self.bench.close()


def test_nothing_is_lost_or_doubled_whatever_happens(
    make_bench: Callable[..., Bench],
) -> None:
    def build() -> Any:
        return Conservation(make_bench(max_deliveries=MAX_DELIVERIES))

    run_state_machine_as_test(
        build,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
