"""
Following a task: what a stream tells, and what it leaves behind.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from caller.web import events
from caller.web.events import Following
from caller.web.responses import content_of, digest, state_document
from machine.redis.backend import RedisBackend
from machine.wire.signature import State, TaskResult, TaskState
from tests.conftest import own_backend


@pytest.fixture
def backend() -> RedisBackend:
    return own_backend()


def state_of(name: str, **more: Any) -> TaskState:
    return TaskState(task_uuid="task_a", task_name="a", state=name, created_at="", **more)


def name_of(state: TaskState) -> bytes:
    return digest(content_of(state_document(state))).encode()


def test_a_stream_tells_the_present_the_end_and_no_more(backend: RedisBackend) -> None:
    async def follow() -> list[bytes]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        stream = following.events("task_a", now, "")
        told = [await anext(stream), await anext(stream)]
        backend.record(state_of(State.SUCCESS, results=[TaskResult("int64", 3)]))
        told += [event async for event in stream]
        await following.close()
        return told

    first, started, end = asyncio.run(follow())

    assert first == b"retry: 1000\n\n"
    assert started.startswith(b"event: state\nid: ")
    assert end.startswith(b"event: end\nid: ")
    assert b'"result":3' in end


def test_a_stream_does_not_tell_what_the_client_has_seen(backend: RedisBackend) -> None:
    async def follow() -> list[bytes]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        assert now is not None
        stream = following.events("task_a", now, name_of(now).decode())
        told = [await anext(stream)]
        backend.record(state_of(State.FAILURE, error="no"))
        told += [event async for event in stream]
        await following.close()
        return told

    _, end = asyncio.run(follow())

    assert end.startswith(b"event: end\n")


def test_a_state_that_is_gone_ends_its_stream(backend: RedisBackend) -> None:
    async def follow() -> list[bytes]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        stream = following.events("task_a", now, "")
        told = [await anext(stream), await anext(stream)]
        backend.purge_state("task_a")
        told += [event async for event in stream]
        await following.close()
        return told

    assert asyncio.run(follow())[-1] == b"event: gone\ndata: {}\n\n"


def test_a_client_that_leaves_leaves_nothing_behind(backend: RedisBackend) -> None:
    async def follow() -> tuple[int, int]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        one, other = (following.events("task_a", now, "") for _ in range(2))
        for stream in (one, other):
            await anext(stream)
            await anext(stream)
        with_two = len(following._boxes["task_a"])
        await one.aclose()
        await other.aclose()
        left = len(following._boxes)
        await following.close()
        await backend.aclose()
        return with_two, left + len(asyncio.all_tasks()) - 1

    assert asyncio.run(follow()) == (2, 0)


def test_closing_ends_every_stream_and_every_wait(backend: RedisBackend) -> None:
    async def follow() -> list[bytes]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        stream = following.events("task_a", now, "")
        told = [await anext(stream), await anext(stream)]
        waiting = asyncio.create_task(following.wait("task_a", 3600))
        await following.close()
        await waiting
        return told + [event async for event in stream]

    assert len(asyncio.run(follow())) == 2


def test_a_silent_stream_says_that_it_lives(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)

    async def follow() -> list[bytes]:
        following = Following(backend)
        backend.record(state_of(State.STARTED))
        [now] = backend.read(["task_a"])
        stream = following.events("task_a", now, "")
        told = [await anext(stream) for _ in range(4)]
        await stream.aclose()
        await following.close()
        return told

    assert asyncio.run(follow())[2:] == [b": still here\n\n"] * 2
