"""Tasks for the tests in containers: each run is counted in Redis, and says where it was."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from machine import task

#: Beside the queue's own keys, as a worker's rights reach no further.
RUNS = "{machinery_tasks}:test:runs"

_url = Path(os.environ["BROKER_FILE"]).read_text(encoding="utf-8").strip()
# Patient: a test takes the server away, and the count is not what is tested.
_raw = redis.Redis.from_url(
    _url, retry=Retry(ConstantBackoff(0.1), 100), socket_timeout=5, driver_info=None
)


@task
def mark(name: str, seconds: float) -> str:
    """Count this run, take so long, and return the container's name."""
    _raw.hincrby(RUNS, name, 1)
    time.sleep(seconds)
    return socket.gethostname()
