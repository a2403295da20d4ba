"""
Eager mode: what is sent runs at once, in the process that sent it.

The same steps as a worker's, in a plain loop; for tests and first tries,
without a server. Machinery's word for it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine.execution import Outcome
from machine.ports.backend import Backend
from machine.ports.broker import Broker
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Finish, Move, Verdict
from machine.registry import Registry
from machine.runtime.child.admission import admit, split_expired
from machine.runtime.child.instruments import Watch
from machine.runtime.child.pool import InlinePool, Job
from machine.runtime.chords import Chords
from machine.runtime.settle import Terms, canceled, settle

_ME = "eager"


class EagerRunner:
    """Runs whatever is queued, until nothing is left."""

    def __init__(
        self,
        broker: Broker,
        backend: Backend,
        registry: Registry,
        terms: Terms,
        clock: Clock,
        queues: Callable[[], Sequence[str]],
        watch: Watch | None = None,
    ) -> None:
        self._broker, self._registry = broker, registry
        self._chords = Chords(broker, backend, terms, clock)
        self._clock, self._queues, self._watch = clock, queues, watch
        self.terms, self.max_message_bytes = terms, terms.max_message_bytes

    @property
    def queues(self) -> Sequence[str]:
        """Return every queue there is."""
        return self._queues()

    def run(self) -> None:
        """Run all that is ready, what follows from it, and what its tasks send."""
        while True:
            queues = self.queues
            self._broker.register(_ME, queues)
            claims = self._broker.exchange(_ME, queues, [], 1).claims
            if not claims:
                return
            self._run(claims)

    def _run(self, claims: list[Claim]) -> None:
        now_ns = self._clock.now_ns()
        jobs, moves = admit(claims, self._registry, self, now_ns)
        jobs, expired = split_expired(jobs, now_ns)
        # Machinery leaves a task that nobody registered pending; put aside it would run for ever.
        moves = [move if isinstance(move, Finish) else Finish(claim=move.claim) for move in moves]

        def done(job: Job, outcome: Outcome) -> None:
            settled = settle(job.claim, job.signature, outcome, self.terms, self._clock.now_ns())
            moves.append(settled.move)

        for job, failed in expired:
            done(job, failed)
        pool = InlinePool(1, done, None, self._watch)
        pool.submit(jobs)
        pool.work(float("inf"))
        pool.close()
        while moves:
            moves = self._settle(moves)

    def _settle(self, moves: list[Move]) -> list[Move]:
        """Carry out moves; return those that are to be made instead of refused ones."""
        instead: list[Move] = []
        verdicts = self._broker.exchange(_ME, (), moves, 0).verdicts
        for move, verdict in zip(moves, verdicts, strict=True):
            if verdict is Verdict.ARMED and isinstance(move, Finish):
                self._chords.fire_armed(move)
            elif verdict is Verdict.CANCELED:
                instead.append(canceled(move.claim, self.terms, self._clock.now_ns()).move)
        return instead
