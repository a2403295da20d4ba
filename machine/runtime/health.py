"""
The worker's health file, and ``python -m machine health``, the probe that reads it.

A child marks each turn of its main loop in memory that it shares with its
supervisor. The supervisor looks at these marks a few times a second and touches
the file; where something is wrong, it writes the reason into it. A mark costs
no system call, and a child that hangs blocks nobody. A task may take any time:
while one runs, a child counts as hung only if its process was stopped.

Only the standard library is imported here, because a probe runs every few seconds.
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

#: Seconds since a healthy worker touched its file: a duty may wait that long for Redis.
MAX_AGE_S = 30.0
_UNHEALTHY, _USAGE = 1, 2


def find_problem(file: Path, max_age_s: float, now_s: float) -> str:
    """
    Return what is wrong with a worker by its health file; "" = nothing.

    Args:
        file: The health file.
        max_age_s: The worker must have touched it in the last seconds, > 0.
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
    """Print what is wrong to stderr; return 0 = healthy, 1 = unhealthy, 2 = wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m machine health", description="Say whether the worker here is alive."
    )
    parser.add_argument(
        "-f",
        "--file",
        default=os.environ.get("WORKER_HEALTH_FILE", ""),
        help="what the worker keeps (default: WORKER_HEALTH_FILE)",
    )
    parser.add_argument(
        "-a",
        "--max-age",
        type=float,
        default=MAX_AGE_S,
        metavar="S",
        help="seconds it may be old (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    if not given.file:
        print("error: which file? Set WORKER_HEALTH_FILE, or give --file", file=sys.stderr)  # noqa: T201
        return _USAGE
    wrong = find_problem(Path(given.file), given.max_age, time.time())
    if wrong:
        print(f"unhealthy: {wrong}", file=sys.stderr)  # noqa: T201
    return _UNHEALTHY if wrong else 0


_log = logging.getLogger("machine.worker")
#: A turn takes less than this beyond its wait, seconds: all its time limits on Redis together.
PATIENCE_S = 20.0
#: Until its first turn a child has so many times the patience: it imports your tasks.
_START_FACTOR = 5
_MARK = struct.Struct("d?")
_BUSY_AT = 8


class Liveness:
    """
    The mark of one child: when its main loop last turned, and whether it runs tasks.

    Make it before the fork, so that both processes see the same memory.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.mark_turn()

    def mark_turn(self, *, busy: bool = False) -> None:
        """Mark a turn; ``busy`` = a task runs, so that the next turn may take any time."""
        _MARK.pack_into(self._memory, 0, time.monotonic(), busy)

    def mark_idle(self) -> None:
        """Mark that no task runs any more; on any thread."""
        self._memory[_BUSY_AT] = 0

    def read(self) -> tuple[float, bool]:
        """Return the monotonic second of the last turn, and whether tasks run."""
        turned_s, busy = _MARK.unpack_from(self._memory)
        return turned_s, busy


class HealthFile:
    """
    Keeps the health file: touched and empty while all is well, else with the reason in it.

    Args:
        file: Its path; "" = there is none.
        patience_s: A child that runs no task and has not turned for longer hangs. May be
            changed later.
    """

    def __init__(self, file: str, patience_s: float) -> None:
        self._file = Path(file) if file else None
        self.patience_s = patience_s
        self._children: dict[int, tuple[Liveness, float]] = {}
        self._problem = ""

    def watch_child(self, pid: int, liveness: Liveness) -> None:
        """Look at a child from now on; until its first turn it has several times the patience."""
        turned_s, _ = liveness.read()
        self._children[pid] = (liveness, turned_s)

    def update(self, pids: Iterable[int]) -> None:
        """Look at these children, and touch the file. An error of the file is only logged."""
        if self._file is None:
            return
        now_s = time.monotonic()
        self._children = {pid: self._children[pid] for pid in pids if pid in self._children}
        found = (self._find_problem(pid, now_s) for pid in self._children)
        reason = "; ".join(text for text in found if text)
        try:
            if reason or self._problem:
                self._file.write_text(reason, encoding="utf-8")
            else:
                self._file.touch()
        except OSError as error:
            reason = f"the health file cannot be written: {error}"
        if bool(reason) != bool(self._problem):
            _log.warning("health: %s", reason or "all is well again")
        self._problem = reason

    def _find_problem(self, pid: int, now_s: float) -> str:
        liveness, born_s = self._children[pid]
        turned_s, busy = liveness.read()
        patience_s = self.patience_s * (_START_FACTOR if turned_s == born_s else 1)
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
    # Behind the last ")": the name of the process stands before it and may contain anything.
    return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")
