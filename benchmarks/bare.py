"""
The same work by hand: redis-py and a loop, no task queue around it.

What a queue costs is its ratio to these, measured in the same minute on the
same server. Run as a program, this is the other end of the bare round trip.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

REQUESTS, REPLIES, HELD = "bare.requests", "bare.replies", "bare.held"
#: Messages in one call of the batched loops.
BATCH = 100
_KEPT_S = 3600

#: Results in, next messages out: KEYS held, queue, results; ARGV texts of the results.
_TURN = """
for i = 1, #ARGV do
  redis.call("SET", KEYS[2 + i], ARGV[i], "EX", 3600)
end
redis.call("DEL", KEYS[1])
local messages = redis.call("LPOP", KEYS[2], 100) or {}
for i = 1, #messages do
  redis.call("RPUSH", KEYS[1], messages[i])
end
return messages
"""


def push_each(client: redis.Redis, queue: str, messages: Sequence[bytes]) -> float:
    """Send message by message; return the seconds it took."""
    started_s = time.perf_counter()
    for message in messages:
        client.rpush(queue, message)
    return time.perf_counter() - started_s


def push_batches(client: redis.Redis, queue: str, messages: Sequence[bytes]) -> float:
    """Send 100 messages a call; return the seconds it took."""
    started_s = time.perf_counter()
    for start in range(0, len(messages), BATCH):
        client.rpush(queue, *messages[start : start + BATCH])
    return time.perf_counter() - started_s


def _result(message: bytes) -> tuple[str, str]:
    """Run one task; return the key of its state and the state."""
    task = json.loads(message)
    total = sum(arg["Value"] for arg in task["Args"])
    state = {
        "TaskUUID": task["UUID"],
        "TaskName": task["Name"],
        "State": "SUCCESS",
        "Results": [{"Type": "int64", "Value": total}],
        "Error": "",
        "TTL": 0,
    }
    return task["UUID"], json.dumps(state)


def drain_each(client: redis.Redis, queue: str) -> float:
    """Take, run, store and acknowledge one by one: LMOVE, SET, LREM; return the seconds."""
    started_s = time.perf_counter()
    while message := client.lmove(queue, HELD, "LEFT", "RIGHT"):
        key, state = _result(message)
        client.set(key, state, ex=_KEPT_S)
        client.lrem(HELD, 1, message)
    return time.perf_counter() - started_s


def drain_batches(client: redis.Redis, queue: str) -> float:
    """Do the same by one script call for 100; return the seconds."""
    started_s = time.perf_counter()
    turn: Callable[..., Any] = client.register_script(_TURN)
    messages = turn(keys=[HELD, queue])
    while messages:
        done = [_result(message) for message in messages]
        messages = turn(
            keys=[HELD, queue, *(key for key, _ in done)], args=[state for _, state in done]
        )
    return time.perf_counter() - started_s


def ask(client: redis.Redis, message: bytes) -> float:
    """Send one message and wait for its reply; return the seconds."""
    started_s = time.perf_counter()
    client.rpush(REQUESTS, message)
    client.blpop([REPLIES])
    return time.perf_counter() - started_s


def answer_for_ever(client: redis.Redis) -> None:
    """Take, run and store each message, and say so: BLMOVE, SET, RPUSH."""
    while True:
        message = client.blmove(REQUESTS, HELD, 0, "LEFT", "RIGHT")
        key, state = _result(message)
        client.set(key, state, ex=_KEPT_S)
        client.rpush(REPLIES, key)
        client.lrem(HELD, 1, message)


if __name__ == "__main__":
    answer_for_ever(redis.Redis.from_url(os.environ["BROKER"]))
