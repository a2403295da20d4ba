"""
Eager mode: what is sent runs at once, in the process that sent it.

It takes the same steps as a worker, in a plain loop, on the same scripts; for
tests and first tries. Machinery's word for it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from machine.execution import Hooks, Outcome
from machine.ports.broker import Claims
from machine.ports.clock import Clock
from machine.ports.moves import Claim, Finish, Move, Verdict
from machine.registry import Registry
from machine.runtime.child.admission import admit, split_expired
from machine.runtime.child.executor import call_after_hooks
from machine.runtime.child.instruments import Instruments
from machine.runtime.child.pool import InlinePool, Job
from machine.runtime.child.session import find_next_move
from machine.runtime.chords import Chords
from machine.runtime.settle import SettleRules, settle

_WORKER_ID = "eager"


class InlineRunner:
    """
    Runs whatever is queued, until nothing is left.

    Args:
        broker: The queues.
        chords: Fires the chords that tasks arm.
        registry: The tasks, and the hooks around them.
        rules: How outcomes are settled.
        clock: Says what time it is.
        queues: Returns the names of all queues.
        instruments: Counts and traces; ``None`` = neither.
    """

    def __init__(
        self,
        broker: Claims,
        chords: Chords,
        registry: Registry,
        rules: SettleRules,
        clock: Clock,
        queues: Callable[[], Sequence[str]],
        instruments: Instruments | None = None,
    ) -> None:
        self._broker, self._chords, self._registry = broker, chords, registry
        self._rules, self._clock, self._queues = rules, clock, queues
        self._instruments = instruments

    @property
    def _hooks(self) -> Hooks:
        return self._registry.hooks

    def run(self) -> None:
        """
        Run all that is ready, what follows from it, and what its tasks send.

        Nothing runs while the hook `pre_consume` says no; the next call asks it again.
        """
        while True:
            queues = self._queues()
            if not queues or (self._hooks.pre_consume and not self._hooks.pre_consume()):
                return
            exchange = self._broker.exchange(_WORKER_ID, queues, [], 1)
            # Only new queues: a lease that has run out stays ours, because nobody reaps here.
            unknown = [queue for queue, held in exchange.held.items() if held is None]
            if unknown:
                self._broker.register(_WORKER_ID, unknown)
            if exchange.claims:
                self._run(exchange.claims)
            elif not unknown:
                return

    def _run(self, claims: list[Claim]) -> None:
        now_ns = self._clock.now_ns()
        jobs, moves = admit(claims, self._registry, self._rules, self._queues(), now_ns)
        jobs, expired = split_expired(jobs, now_ns)
        # Machinery leaves a task that nobody registered pending; put aside it would run for ever.
        moves = [move if isinstance(move, Finish) else Finish(claim=move.claim) for move in moves]

        def end(job: Job, outcome: Outcome) -> None:
            settled = settle(job.claim, job.signature, outcome, self._rules, self._clock.now_ns())
            moves.append(settled.move)

        def end_run(job: Job, outcome: Outcome) -> None:
            end(job, outcome)
            call_after_hooks(self._hooks, job.signature, outcome)

        for job, failed in expired:
            end(job, failed)
        pool = InlinePool(1, end_run, self._hooks.pre_task, self._instruments)
        pool.submit(jobs)
        pool.work(float("inf"))
        pool.close()
        while moves:
            moves = self._settle(moves)

    def _settle(self, moves: list[Move]) -> list[Move]:
        """Carry out moves; return those that are to be made instead of refused ones."""
        instead: list[Move] = []
        verdicts = self._broker.exchange(_WORKER_ID, (), moves, 0).verdicts
        for move, verdict in zip(moves, verdicts, strict=True):
            if verdict is Verdict.ARMED and isinstance(move, Finish):
                self._chords.fire_armed(move)
                continue
            # No states are kept elsewhere.
            next_move, _ = find_next_move(move, verdict, self._rules, self._clock.now_ns())
            if next_move is not None:
                instead.append(next_move)
        return instead
