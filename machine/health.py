"""
Is the worker alive? ``python -m machine health``, for a container's or an orchestrator's probe.

The worker keeps a file (``WORKER_HEALTH_FILE``): it touches it a few times a
second, and writes into it what is wrong. Only the standard library is loaded
here: a probe runs every few seconds, for ever.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
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
