"""
Sends periodic tasks at their times.

There is no leader: every worker's supervisor runs a scheduler. Each one reads the watermarks,
computes by the store's clock what is due, and asks the store to move the watermarks on and to
queue the messages in the same step. Of those that ask for the same time, one succeeds. A
supervisor imports no task; it serves the entries that its children report.
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
from machine.periodic.runs import PeriodicRun, run_of
from machine.periodic.watermarks import MOST_CAUGHT_UP, Step, Watermark, steps
from machine.ports.backend import Backend
from machine.ports.moves import Message
from machine.ports.periodic import Lock, PeriodicStore, Tick, Ticked, Watermarks
from machine.runtime.loop import Loop, Loops
from machine.wire.limits import PERIODIC_LOCK_PREFIX
from machine.wire.signature import Signature, TaskState

_log = logging.getLogger("machine.worker")
#: Seconds between two runs of the loop, and the same where an entry is due more often than 1 s.
_PERIOD_S, _SHORT_PERIOD_S = 0.2, 0.05
#: Seconds between two reads of the store's clock and watermarks at most: the clock may step, and
#: somebody may change watermarks by hand.
_READ_S = 10.0
#: Seconds until an entry that could not be served is tried again.
_AGAIN_S = 1.0
#: A watermark so far ahead of the store's clock is logged, ms.
_AHEAD_MS = 60_000
_NS_PER_MS = 1_000_000
#: Signatures -> messages, and the states that the broker does not keep itself.
Write = Callable[[Sequence[Signature]], tuple[list[Message], list[TaskState]]]


class _Planned(NamedTuple):
    """A tick, and the text to log when the store did it; "" = none."""

    entry: Entry
    due_ms: int
    tick: Tick
    sends: bool
    text: str


class Scheduler(Loop):
    """
    Sends the entries that are due; any number of schedulers may run side by side.

    Args:
        store: Keeps the watermarks; not shared with another thread.
        backend: Has the states of earlier runs, for ``overlap``, and the groups' records.
        home: Queue whose keys hold the timetable: the default queue.
        entries: Returns the whole timetable as it is now; called at each run of the loop.
        write: Makes messages of signatures.
        lock: Machinery's, taken before each run, where Go's schedulers have the same entries;
            ``None`` = they do not.
        program: The name that Go's schedulers put into the lock's key.
        on_sent: Called when something was sent; eager mode runs it there.
        writes_ahead: Whether Go workers may look for members of a group that are not sent yet;
            then their PENDING states are recorded before.
    """

    def __init__(
        self,
        store: PeriodicStore,
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
        self._store, self._backend, self._home = store, backend, home
        self._entries, self._write = entries, write
        self._lock, self._program = lock, program
        self._on_sent, self._writes_ahead = on_sent, writes_ahead
        self._known: Sequence[Entry] = ()
        self._read_at_s = float("-inf")
        #: Entry -> the time for which we asked for its lock last, and whether we got it.
        self._locked: dict[str, tuple[int, bool]] = {}
        #: Entry -> what was logged last, and for which time: nothing is logged twice in a row.
        self._logged: dict[str, tuple[str, int]] = {}
        #: Entries that were logged as canceled, and not as resumed since.
        self._canceled: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- one turn --------------------------------------------------------------------------
    def run_once(self, now_s: float) -> None:
        """Send what is due, unless the next time is known and has not come."""
        entries = list(self._entries())
        if entries != self._known:
            self._known, self._read_at_s = entries, float("-inf")
            is_fast = any(_is_fast(entry.schedule) for entry in entries)
            self.period_s = _SHORT_PERIOD_S if is_fast else _PERIOD_S
        if not entries or now_s < self._read_at_s:
            return
        self._read_at_s = now_s + _AGAIN_S  # counts if an error ends this run
        watermarks = self._store.read_watermarks(self._home)
        planned: list[_Planned] = []
        waits = [_READ_S, *(self._plan_entry(entry, watermarks, planned) for entry in entries)]
        outcomes = self._store.tick([one.tick for one in planned])
        waits += [
            self._log_outcome(one, outcome) for one, outcome in zip(planned, outcomes, strict=True)
        ]
        self._read_at_s = now_s + min(waits)
        if any(one.sends for one in planned):
            self._on_sent()

    def _plan_entry(self, entry: Entry, watermarks: Watermarks, planned: list[_Planned]) -> float:
        """Add the ticks of an entry to ``planned``; return the seconds until its next time."""
        self._log_canceled(entry.name, is_canceled=entry.name in watermarks.canceled)
        try:
            found = self._make_ticks(entry, watermarks)
        except BrokerUnavailable:
            raise
        except Exception:  # noqa: BLE001 - a bug in one entry must not keep the others waiting
            if self._is_news(entry, "broken", 0):
                _log.exception("schedule %r cannot be sent; it is tried again", entry.name)
            return _AGAIN_S
        planned += found
        watermark = Watermark.of(watermarks.texts.get(entry.name, ""))
        from_ms = max(watermarks.now_ms, watermark.last_ms if watermark else 0)
        next_ms = entry.schedule.next_after(found[-1].due_ms if found else from_ms)
        return _READ_S if next_ms is None else max(0.0, (next_ms - watermarks.now_ms) / 1000)

    def _make_ticks(self, entry: Entry, watermarks: Watermarks) -> list[_Planned]:
        """Return the ticks that serve the times of an entry that are due now."""
        before = watermarks.texts.get(entry.name, "")
        watermark = Watermark.of(before)
        if watermark is None:
            # A new entry counts from now; nothing is sent for earlier times.
            start = Watermark(entry.schedule.start(watermarks.now_ms), 0)
            tick = Tick(self._home, entry.name, before, start.text, ())
            return [
                _Planned(entry, start.last_ms, tick, sends=False, text="is new; counting from %s")
            ]
        if watermark.last_ms > watermarks.now_ms + _AHEAD_MS and self._is_news(
            entry, "ahead", watermark.last_ms
        ):
            _log.warning(
                "schedule %r was served for %s, which is ahead of Redis's clock; it waits until "
                "then. To begin anew: HDEL '%s' '%s'",
                entry.name,
                _moment(watermark.last_ms),
                self._store.key_of(self._home),
                entry.name,
            )
        if entry.name in watermarks.canceled:
            return self._skip_canceled(entry, watermark, watermarks.now_ms, before)
        planned: list[_Planned] = []
        # Go's schedulers send no missed times, and Machinery's lock is for one time only.
        most = MOST_CAUGHT_UP if self._lock is None else 1
        for step in steps(entry, watermark.last_ms, watermarks.now_ms, most=most):
            one = self._make_tick(
                entry, step, watermark, watermarks.now_ms, before, is_first=not planned
            )
            if one is None:
                break
            planned.append(one)
            before = one.tick.after
            watermark = Watermark(step.due_ms, step.due_ms if one.sends else watermark.ran_ms)
        return planned

    def _skip_canceled(
        self, entry: Entry, watermark: Watermark, now_ms: int, before: str
    ) -> list[_Planned]:
        """Return the tick that moves a canceled entry's watermark on, if a time is due."""
        return [
            _Planned(entry, due_ms, tick, sends=False, text="")
            for due_ms in entry.schedule.times(watermark.last_ms, now_ms, 1)
            for tick in [
                Tick(self._home, entry.name, before, Watermark(due_ms, watermark.ran_ms).text, ())
            ]
        ]

    def _make_tick(
        self,
        entry: Entry,
        step: Step,
        watermark: Watermark,
        now_ms: int,
        before: str,
        *,
        is_first: bool,
    ) -> _Planned | None:
        """Return the tick for one time; ``None`` = another scheduler has the lock for it."""
        sends, text = step.sends, "sent for %s"
        if not sends:
            text = "not sent for %s, which was missed"
        elif not entry.overlap and self._still_runs(
            entry, watermark.ran_ms, was_planned=not is_first
        ):
            sends, text = False, "not sent for %s, because the run before has not ended"
        elif self._lock is not None and not self._get_lock(entry, step.due_ms, now_ms):
            return None
        messages = self._make_messages(run_of(entry, self._home, step.due_ms)) if sends else []
        after = Watermark(step.due_ms, step.due_ms if sends else watermark.ran_ms).text
        tick = Tick(self._home, entry.name, before, after, messages)
        return _Planned(entry, step.due_ms, tick, sends, text)

    def _still_runs(self, entry: Entry, ran_ms: int, *, was_planned: bool) -> bool:
        """Say whether a task of the run for that time has not ended."""
        if was_planned or not ran_ms:
            return was_planned
        states = self._backend.read(run_of(entry, self._home, ran_ms).uuids)
        return any(state is not None and not state.is_completed for state in states)

    def _get_lock(self, entry: Entry, due_ms: int, now_ms: int) -> bool:
        """Ask once for Machinery's lock for a time; say whether we got it."""
        tried_ms, is_ours = self._locked.get(entry.name, (0, False))
        if tried_ms != due_ms and self._lock is not None:
            next_ms = entry.schedule.next_after(due_ms) or now_ms + _AHEAD_MS
            key = lock_name(self._program, entry.name, entry.spec)
            until_ns, now_ns = next_ms * _NS_PER_MS - 1, now_ms * _NS_PER_MS
            is_ours = lock_with_retries(self._lock, key, until_ns, now_ns)
            self._locked[entry.name] = (due_ms, is_ours)
        return is_ours

    def _make_messages(self, run: PeriodicRun) -> list[Message]:
        """Return a run's messages; record the groups and states that the tick does not write."""
        messages, states = self._write(run.signatures)
        sent = {signature.uuid for signature in run.signatures}
        for meta in run.metas:
            later = [u for u in meta.task_uuids if u not in sent] if self._writes_ahead else []
            ahead = [TaskState.pending_id(uuid, meta.created_at) for uuid in later]
            self._backend.record_group(meta, ahead=ahead)
        for state in states:
            # Another scheduler may have sent it, and a worker may have begun: keep that state.
            if self._backend.read([state.task_uuid])[0] is None:
                self._backend.record(state)
        return messages

    def _log_outcome(self, one: _Planned, outcome: Ticked) -> float:
        """Log what became of a tick; return the seconds after which to serve its entry again."""
        name, moment = one.entry.name, _moment(one.due_ms)
        if outcome is Ticked.QUEUED:
            if one.text:
                _log.info(f"schedule %r {one.text}", name, moment)
            return _READ_S
        if outcome is Ticked.CANCELED:
            self._log_canceled(name, is_canceled=True)
            return _READ_S
        if outcome is Ticked.DUPLICATE:
            return 0.0  # another scheduler was faster, maybe for an earlier time than ours
        if self._is_news(one.entry, outcome.name, one.due_ms):
            why = (
                "a queue is full; it is sent when there is room"
                if outcome is Ticked.FULL
                else "a queue or an id names a key that holds something else"
            )
            _log.warning("schedule %r is not sent for %s: %s", name, moment, why)
        return _AGAIN_S

    def _log_canceled(self, name: str, *, is_canceled: bool) -> None:
        """Log once that an entry is canceled, and once that it is resumed."""
        if is_canceled and name not in self._canceled:
            self._canceled.add(name)
            _log.info("schedule %r is canceled; nothing is sent for it until it is resumed", name)
        elif not is_canceled and name in self._canceled:
            self._canceled.remove(name)
            _log.info("schedule %r is no longer canceled; it goes on", name)

    def _is_news(self, entry: Entry, what: str, due_ms: int) -> bool:
        """Say whether this was not what was logged last for the entry, and note it."""
        is_first = self._logged.get(entry.name) != (what, due_ms)
        self._logged[entry.name] = (what, due_ms)
        return is_first

    # -- a thread of its own ---------------------------------------------------------------
    def start(self) -> Self:
        """Run in a thread until `stop`, in a process that is no worker."""
        self._thread = threading.Thread(
            target=self._run_until_stopped, name="scheduler", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send nothing more; does not wait for a call that waits for an absent server."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_AGAIN_S)
        self.close()

    def _run_until_stopped(self) -> None:
        loops = Loops([self])
        while not self._stopping.is_set():
            next_s = loops.run_due(time.monotonic())
            self._stopping.wait(max(0.0, next_s - time.monotonic()))

    def close(self) -> None:
        self._store.close()
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
