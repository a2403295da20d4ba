"""
Is the worker alive? The file that a worker keeps, and ``python -m machine health``, which reads it.

A child marks each turn of its main loop in memory that it shares with its
supervisor, which touches the file a few times a second and writes into it what
is wrong. Marking costs no system call, and a child that hangs can hold nobody
up. A task may take as long as it likes: while one runs, only a process that was
stopped counts as hung. Only the standard library is imported here: a probe runs
every few seconds.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Seconds a healthy worker's file may be old: one of its duties may wait that long for Redis.
MAX_AGE_S = 30.0
_UNHEALTHY, _USAGE = 1, 2


def complaint(file: Path, max_age_s: float, now_s: float) -> str:
    """
    Return what is wrong, or "".

    Args:
        file: What the worker keeps.
        max_age_s: Seconds it may be old, > 0.
        now_s: Unix seconds.
    """
    try:
        age_s = now_s - file.stat().st_mtime
        reason = file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"{file}: {error.strerror}; no worker has been here with WORKER_HEALTH_FILE={file}"
    if age_s > max_age_s:
        return f"{file} was last touched {age_s:.0f} s ago; {max_age_s:g} s are allowed"
    return reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Say on stderr what is wrong; return 0 healthy, 1 not, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m machine health", description="Say whether the worker here is alive."
    )
    parser.add_argument(
        *("-f", "--file"),
        default=os.environ.get("WORKER_HEALTH_FILE", ""),
        help="what the worker keeps (default: WORKER_HEALTH_FILE)",
    )
    parser.add_argument(
        *("-a", "--max-age"),
        type=float,
        default=MAX_AGE_S,
        metavar="S",
        help="seconds it may be old (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    if not given.file:
        print("error: which file? Set WORKER_HEALTH_FILE, or give --file", file=sys.stderr)  # noqa: T201
        return _USAGE
    wrong = complaint(Path(given.file), given.max_age, time.time())
    if wrong:
        print(f"unhealthy: {wrong}", file=sys.stderr)  # noqa: T201
    return _UNHEALTHY if wrong else 0


_log = logging.getLogger("machine.worker")
#: A turn takes less than this beyond its wait, seconds: all its time limits on Redis together.
PATIENCE_S = 20.0
#: How many times as long a child may take to import its tasks.
_STARTS_AT_LEISURE = 5
_MARK = struct.Struct("d?")
_BUSY_AT = 8


class Pulse:
    """
    The mark of one child: when its loop last turned, and whether it runs tasks.

    Made before the fork; both sides then see the same memory.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.turn()

    def turn(self, *, busy: bool = False) -> None:
        """Mark a turn; ``busy`` when the next one may have to wait for a task."""
        _MARK.pack_into(self._memory, 0, time.monotonic(), busy)

    def rest(self) -> None:
        """Mark, from any thread, that no task runs any more."""
        self._memory[_BUSY_AT] = 0

    def read(self) -> tuple[float, bool]:
        """Return the monotonic second of the last turn, and whether tasks run."""
        turned_s, busy = _MARK.unpack_from(self._memory)
        return turned_s, busy


class Vitals:
    """
    Keeps the health file: young and empty while all is well, with a reason in it otherwise.

    Args:
        file: Its path; "" = there is none.
        patience_s: A child that has not turned for longer, and runs no task, hangs; may change.
    """

    def __init__(self, file: str, patience_s: float) -> None:
        self._file = Path(file) if file else None
        self.patience_s = patience_s
        self._pulses: dict[int, tuple[Pulse, float]] = {}
        self._said = ""

    def expect(self, pid: int, pulse: Pulse) -> None:
        """Watch a child from now on; until its first turn it has several times the patience."""
        turned_s, _ = pulse.read()
        self._pulses[pid] = (pulse, turned_s)

    def look(self, pids: Iterable[int]) -> None:
        """Look at the children that live, and touch the file."""
        if self._file is None:
            return
        now_s = time.monotonic()
        self._pulses = {pid: self._pulses[pid] for pid in pids if pid in self._pulses}
        found = (self._complaint(pid, now_s) for pid in self._pulses)
        reason = "; ".join(text for text in found if text)
        try:
            if reason or self._said:
                self._file.write_text(reason, encoding="utf-8")
            else:
                self._file.touch()
        except OSError as error:
            reason = f"the health file cannot be written: {error}"
        if bool(reason) != bool(self._said):
            _log.warning("health: %s", reason or "all is well again")
        self._said = reason

    def _complaint(self, pid: int, now_s: float) -> str:
        pulse, born_s = self._pulses[pid]
        turned_s, busy = pulse.read()
        patience_s = self.patience_s * (_STARTS_AT_LEISURE if turned_s == born_s else 1)
        quiet_s = now_s - turned_s
        if quiet_s <= patience_s:
            return ""
        if is_stopped(pid):
            return f"child {pid} is stopped and has not turned for {quiet_s:.0f} s"
        return "" if busy else f"child {pid} has not turned for {quiet_s:.0f} s, and runs no task"


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped by a signal or a debugger; False where nothing tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The name before it is in parentheses and may hold anything.
    return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")
