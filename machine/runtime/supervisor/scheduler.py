"""
Periodic -> ready: what stands in the timetable is sent at its times, by whoever is there.

There is no leader. Each scheduler reads the marks, works out what is due by the store's own
clock, and moves the marks on; of those who try the same, one succeeds. It imports no task: a
supervisor runs the entries that its children report.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Self

from machine.errors import BrokerUnavailable
from machine.periodic.cron import Every, Schedule
from machine.periodic.entries import Entry
from machine.periodic.marks import MOST_CAUGHT_UP, Mark, Step, steps
from machine.periodic.runs import Run, run_of
from machine.ports.backend import Backend
from machine.ports.moves import Message
from machine.ports.periodic import Lock, Marks, Tick, Ticked, Ticker
from machine.redis.keys import periodic
from machine.runtime.loop import Loop, Loops
from machine.wire.limits import PERIODIC_LOCK_PREFIX
from machine.wire.signature import Signature, TaskState

_log = logging.getLogger("machine.worker")
#: Seconds between two looks at the own clock, and where an entry is due more often than that.
_PERIOD_S, _SHORT_PERIOD_S = 0.2, 0.05
#: Seconds between two looks at the store's clock: it may step, and marks may be set by hand.
_LOOK_S = 10.0
#: Seconds until something that could not be sent is tried again.
_AGAIN_S = 1.0
#: A mark so far ahead of the store's clock is worth a word, ms.
_AHEAD_MS = 60_000
_NS_PER_MS = 1_000_000
#: Signatures -> messages, and the states that the broker does not keep itself.
Write = Callable[[Sequence[Signature]], tuple[list[Message], list[TaskState]]]


class _Planned(NamedTuple):
    """A tick, and what is to be said when it is done; "" = nothing."""

    entry: Entry
    due_ms: int
    tick: Tick
    sends: bool
    text: str


class Scheduler(Loop):
    """
    Sends what is due; any number of them may do so side by side.

    Args:
        ticker: Keeps the marks; not shared with another thread.
        backend: Says whether the run before has ended; keeps groups.
        home: Queue whose keys hold the timetable: the default queue.
        entries: The timetable as it is now, complete; asked often.
        write: Makes messages of signatures.
        lock: Machinery's, where Go's schedulers run the same entries; taken before each run.
        program: The name that Go's schedulers put into the lock's key.
        on_sent: Called when something was sent; eager mode runs the queue there.
        writes_ahead: Whether Go workers may look for members that are not sent yet.
    """

    def __init__(
        self,
        ticker: Ticker,
        backend: Backend,
        home: str,
        entries: Callable[[], Sequence[Entry]],
        write: Write,
        *,
        lock: Lock | None = None,
        program: str = "",
        on_sent: Callable[[], None] = lambda: None,
        writes_ahead: bool = False,
    ) -> None:
        super().__init__("scheduler", _PERIOD_S)
        self._ticker, self._backend, self._home = ticker, backend, home
        self._entries, self._write = entries, write
        self._lock, self._program = lock, program
        self._on_sent, self._writes_ahead = on_sent, writes_ahead
        self._known: Sequence[Entry] = ()
        self._look_at_s = float("-inf")
        #: Entry -> the time its lock was last tried for, and whether we got it.
        self._locked: dict[str, tuple[int, bool]] = {}
        self._said: dict[str, tuple[str, int]] = {}
        #: Entries of which the log says last that they are canceled.
        self._off: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- one turn --------------------------------------------------------------------------
    def run_once(self, now_s: float) -> None:
        """Send what is due, if anything can be; ``now_s`` is monotonic seconds."""
        entries = list(self._entries())
        if entries != self._known:
            self._known, self._look_at_s = entries, float("-inf")
            is_fast = any(_is_fast(entry.schedule) for entry in entries)
            self.period_s = _SHORT_PERIOD_S if is_fast else _PERIOD_S
        if not entries or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + _AGAIN_S  # where an error ends this turn
        marks = self._ticker.marks(self._home)
        planned: list[_Planned] = []
        waits = [_LOOK_S, *(self._serve(entry, marks, planned) for entry in entries)]
        outcomes = self._ticker.tick([one.tick for one in planned])
        waits += [self._tell(one, outcome) for one, outcome in zip(planned, outcomes, strict=True)]
        self._look_at_s = now_s + min(waits)
        if any(one.sends for one in planned):
            self._on_sent()

    def _serve(self, entry: Entry, marks: Marks, planned: list[_Planned]) -> float:
        """Add an entry's ticks to those planned; return the seconds until its next time."""
        self._say_canceled(entry.name, is_canceled=entry.name in marks.canceled)
        try:
            found = self._plan(entry, marks)
        except BrokerUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one entry's bug must not keep the others waiting
            if self._first(entry, "broken", 0):
                _log.exception("schedule %r cannot be sent; it is tried again", entry.name)
            return _AGAIN_S
        planned += found
        mark = Mark.of(marks.texts.get(entry.name, ""))
        from_ms = max(marks.now_ms, mark.last_ms if mark else 0)
        next_ms = entry.schedule.next_after(found[-1].due_ms if found else from_ms)
        return _LOOK_S if next_ms is None else max(0.0, (next_ms - marks.now_ms) / 1000)

    def _plan(self, entry: Entry, marks: Marks) -> list[_Planned]:
        """Return the ticks that move an entry on to now."""
        before = marks.texts.get(entry.name, "")
        mark = Mark.of(before)
        if mark is None:
            # Never seen before: it counts from now, nothing of the past is sent.
            start = Mark(entry.schedule.start(marks.now_ms), 0)
            tick = Tick(self._home, entry.name, before, start.text, ())
            return [
                _Planned(entry, start.last_ms, tick, sends=False, text="is new; counting from %s")
            ]
        if mark.last_ms > marks.now_ms + _AHEAD_MS and self._first(entry, "ahead", mark.last_ms):
            _log.warning(
                "schedule %r was served for %s, which is ahead of Redis's clock; it waits until "
                "then. To begin anew: HDEL '%s' '%s'",
                *(entry.name, _moment(mark.last_ms), periodic(self._home), entry.name),
            )
        if entry.name in marks.canceled:
            return self._passed(entry, mark, marks.now_ms, before)
        planned: list[_Planned] = []
        # Machinery's lock knows only the time that is now.
        most = MOST_CAUGHT_UP if self._lock is None else 1
        for step in steps(entry, mark.last_ms, marks.now_ms, most=most):
            one = self._step(entry, step, mark, marks.now_ms, before, is_first=not planned)
            if one is None:
                break
            planned.append(one)
            before = one.tick.after
            mark = Mark(step.due_ms, step.due_ms if one.sends else mark.ran_ms)
        return planned

    def _passed(self, entry: Entry, mark: Mark, now_ms: int, before: str) -> list[_Planned]:
        """Return the tick that moves a canceled entry on, if a time is due."""
        return [
            _Planned(entry, due_ms, tick, sends=False, text="")
            for due_ms in entry.schedule.times(mark.last_ms, now_ms, 1)
            for tick in [Tick(self._home, entry.name, before, Mark(due_ms, mark.ran_ms).text, ())]
        ]

    def _step(
        self, entry: Entry, step: Step, mark: Mark, now_ms: int, before: str, *, is_first: bool
    ) -> _Planned | None:
        """Return the tick for one time; ``None`` when that time is somebody else's."""
        sends, text = step.sends, "sent for %s"
        if not sends:
            text = "not sent for %s, which was missed"
        elif not entry.overlap and self._still_runs(entry, mark.ran_ms, was_planned=not is_first):
            sends, text = False, "not sent for %s, because the run before has not ended"
        elif self._lock is not None and not self._is_ours(entry, step.due_ms, now_ms):
            return None
        messages = self._messages(run_of(entry, self._home, step.due_ms)) if sends else []
        after = Mark(step.due_ms, step.due_ms if sends else mark.ran_ms).text
        tick = Tick(self._home, entry.name, before, after, messages)
        return _Planned(entry, step.due_ms, tick, sends, text)

    def _still_runs(self, entry: Entry, ran_ms: int, *, was_planned: bool) -> bool:
        """Say whether the run for that time has a task that has not ended."""
        if was_planned or not ran_ms:
            return was_planned
        states = self._backend.read(run_of(entry, self._home, ran_ms).uuids)
        return any(state is not None and not state.is_completed for state in states)

    def _is_ours(self, entry: Entry, due_ms: int, now_ms: int) -> bool:
        """Take Machinery's lock for a time, asking once; say whether we have it."""
        tried_ms, is_ours = self._locked.get(entry.name, (0, False))
        if tried_ms != due_ms and self._lock is not None:
            next_ms = entry.schedule.next_after(due_ms) or now_ms + _AHEAD_MS
            key = lock_name(self._program, entry.name, entry.spec)
            until_ns, now_ns = next_ms * _NS_PER_MS - 1, now_ms * _NS_PER_MS
            is_ours = lock_with_retries(self._lock, key, until_ns, now_ns)
            self._locked[entry.name] = (due_ms, is_ours)
        return is_ours

    def _messages(self, run: Run) -> list[Message]:
        """Return a run's messages; write down what the tick does not."""
        messages, states = self._write(run.signatures)
        sent = {signature.uuid for signature in run.signatures}
        for meta in run.metas:
            later = [u for u in meta.task_uuids if u not in sent] if self._writes_ahead else []
            ahead = [TaskState.pending_id(uuid, meta.created_at) for uuid in later]
            self._backend.record_group(meta, ahead=ahead)
        for state in states:
            # Another scheduler may have sent it already, and a worker may be at it.
            if self._backend.read([state.task_uuid])[0] is None:
                self._backend.record(state)
        return messages

    def _tell(self, one: _Planned, outcome: Ticked) -> float:
        """Log what became of a tick; return the seconds until its entry is to be looked at."""
        name, moment = one.entry.name, _moment(one.due_ms)
        if outcome is Ticked.QUEUED:
            if one.text:
                _log.info(f"schedule %r {one.text}", name, moment)
            return _LOOK_S
        if outcome is Ticked.CANCELED:
            self._say_canceled(name, is_canceled=True)
            return _LOOK_S
        if outcome is Ticked.DUPLICATE:
            return 0.0  # another one was faster, perhaps with an earlier time than ours
        if self._first(one.entry, outcome.name, one.due_ms):
            why = (
                "a queue is full; it is sent when there is room"
                if outcome is Ticked.FULL
                else "a queue or an id names a key that holds something else"
            )
            _log.warning("schedule %r is not sent for %s: %s", name, moment, why)
        return _AGAIN_S

    def _say_canceled(self, name: str, *, is_canceled: bool) -> None:
        """Log that an entry is canceled, or goes on, when that is new."""
        if is_canceled and name not in self._off:
            self._off.add(name)
            _log.info("schedule %r is canceled; nothing is sent for it until it is resumed", name)
        elif not is_canceled and name in self._off:
            self._off.remove(name)
            _log.info("schedule %r is no longer canceled; it goes on", name)

    def _first(self, entry: Entry, what: str, due_ms: int) -> bool:
        """Say whether this is worth a line in the log: not when it was the last thing said."""
        is_first = self._said.get(entry.name) != (what, due_ms)
        self._said[entry.name] = (what, due_ms)
        return is_first

    # -- a thread of its own ---------------------------------------------------------------
    def start(self) -> Self:
        """Do this from a thread until `stop`, in a process that is no worker."""
        self._thread = threading.Thread(target=self._go_on, name="scheduler", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send nothing more; a call that waits for an absent server is left alone."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_AGAIN_S)
        self.close()

    def _go_on(self) -> None:
        loops = Loops([self])
        while not self._stopping.is_set():
            next_s = loops.run_due(time.monotonic())
            self._stopping.wait(max(0.0, next_s - time.monotonic()))

    def close(self) -> None:
        """Close the connections of its own: marks and lock."""
        self._ticker.close()
        if self._lock is not None:
            self._lock.close()


def _is_fast(schedule: Schedule) -> bool:
    return isinstance(schedule, Every) and schedule.period_ms < 1000


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")


#: Go tries once, and three times more, without a pause.
TRIES = 4


def lock_name(program: str, name: str, spec: str) -> str:
    """Return the key of a schedule's lock, in which Go puts nothing between the parts."""
    return f"{PERIODIC_LOCK_PREFIX}{program}{name}{spec}"


def lock_with_retries(lock: Lock, key: str, until_ns: int, now_ns: int) -> bool:
    """Try up to four times; say whether the lock is ours."""
    return any(lock.lock(key, until_ns, now_ns) for _ in range(TRIES))
