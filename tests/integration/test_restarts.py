"""A server that dies, comes back, forgets everything, or runs out of memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import BrokerUnavailable, QueueFull, build
from machine.embedded import EmbeddedServer
from machine.redis import keys
from machine.runtime.supervisor.heartbeat import Heartbeat

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def patient(yard: Yard, child: Any) -> None:
    """Drain as a worker's own loop does: what does not answer is asked again."""
    for _ in range(10):
        try:
            yard.drain(child)
        except BrokerUnavailable:
            continue
        return
    pytest.fail("the server did not answer ten times")


forgets = pytest.mark.parametrize("own_server", [()], indirect=True, ids=["forgets"])


def test_a_caller_that_waits_gets_its_result_after_a_restart(
    own: Yard, own_server: EmbeddedServer
) -> None:
    result = own.task(lambda: "there", name="there").send()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(result.get(timeout=15)))
    waiting.start()

    own_server.kill()
    own_server.restart()
    own.run()
    waiting.join(15)

    assert got == ["there"]


def test_a_caller_on_an_event_loop_gets_its_result_after_a_restart(
    own: Yard, own_server: EmbeddedServer
) -> None:
    there = own.task(lambda: "there", name="there")

    async def work() -> Any:
        result = await there.asend()
        waiting = asyncio.create_task(result.aget(timeout=15))
        await asyncio.sleep(0)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.restart)
        await asyncio.to_thread(own.run)
        try:
            return await waiting
        finally:
            await own.server.backend.aclose()  # type: ignore[union-attr]

    assert asyncio.run(work()) == "there"


def test_a_task_that_runs_during_a_restart_ends_once(own: Yard, own_server: EmbeddedServer) -> None:
    ran: list[int] = []

    def survive() -> str:
        ran.append(1)
        own_server.kill()
        own_server.restart()
        return "done"

    result = own.task(survive).send()
    child = own.child()

    patient(own, child)

    assert result.get(timeout=5) == "done"
    assert ran == [1]


def test_a_worker_waits_for_a_server_that_is_away_and_works_on(
    own: Yard, own_server: EmbeddedServer
) -> None:
    echo = own.task(lambda text: text, name="echo")
    child = own.new_child()
    working = threading.Thread(target=child.run)
    working.start()
    before = echo.send("before").get(timeout=10)

    own_server.kill()
    own_server.restart()
    after = echo.send("after").get(timeout=10)
    child.stop()
    working.join(10)
    del own.children[child]

    assert (before, after) == ("before", "after")
    assert not working.is_alive()
    assert own.raw.exists(keys.workers(own.queue)) == 0


def test_what_is_sent_while_the_server_is_away_arrives_once(
    own: Yard, own_server: EmbeddedServer
) -> None:
    echo = own.task(lambda text: text, name="echo")
    results: list[Any] = []
    own_server.kill()
    sending = threading.Thread(target=lambda: results.append(echo.send("late")))

    sending.start()
    own_server.restart()
    sending.join(15)

    assert len(own.ready()) == 1
    own.run()
    assert results[0].get(timeout=5) == "late"


def test_an_absent_server_is_told_at_once_to_whoever_asks(
    make_config: Callable[..., Any], own_server: EmbeddedServer
) -> None:
    config = make_config(broker=own_server.url)
    own_server.kill()

    with pytest.raises(
        BrokerUnavailable, match=rf"^Redis at 127\.0\.0\.1:{own_server.port} did not answer: "
    ):
        build.ping(config)


@forgets
def test_a_result_is_kept_though_the_server_forgot_its_task(
    own: Yard, own_server: EmbeddedServer
) -> None:
    def survive() -> str:
        own_server.kill()
        own_server.restart()
        return "done"

    result = own.task(survive).send()
    child = own.child()

    patient(own, child)
    patient(own, child)

    assert result.get(timeout=5) == "done"
    assert own.document(result.uuid)["TaskName"] == "survive"


@forgets
def test_a_worker_that_the_server_forgot_works_on(own: Yard, own_server: EmbeddedServer) -> None:
    echo = own.task(lambda text: text, name="echo")
    child = own.child()
    own_server.kill()
    own_server.restart()

    result = echo.send("after")
    patient(own, child)

    assert result.get(timeout=5) == "after"


@forgets
def test_a_supervisor_that_the_server_forgot_registers_again(
    own: Yard, own_server: EmbeddedServer
) -> None:
    own.broker.register("me", [own.queue])
    own_server.kill()
    own_server.restart()
    beat = Heartbeat(own.broker, [own.queue], list, 1.0, "me")

    with pytest.raises(BrokerUnavailable):
        beat.run_once(0.0)
    beat.run_once(1.0)

    assert own.raw.zrange(keys.workers(own.queue), 0, -1) == [b"me"]


@forgets
def test_a_server_without_memory_refuses_senders_and_lets_workers_drain_it(
    own: Yard, own_raw: redis.Redis
) -> None:
    echo = own.task(lambda text: text, name="echo")
    results = [echo.send(f"text {number}") for number in range(200)]
    own_raw.config_set("maxmemory", 1)

    with pytest.raises(QueueFull, match=r"out of memory"):
        echo.send("too much")
    own.drain(own.child())
    own_raw.config_set("maxmemory", 0)

    assert [result.get(timeout=5) for result in results] == [f"text {n}" for n in range(200)]
    assert echo.send("again").uuid
    own.run()


def test_a_full_queue_refuses_what_does_not_fit(make_yard: Callable[..., Yard]) -> None:
    yard = make_yard(max_queue_length=3)
    echo = yard.task(lambda text: text, name="echo")
    sent = [echo.send("fits") for _ in range(3)]

    with pytest.raises(
        QueueFull, match=rf"^Queue '{yard.queue}' takes no more: it holds max_queue_length = 3 "
    ):
        echo.send("too much")

    yard.run()
    assert [result.get(timeout=5) for result in sent] == ["fits"] * 3
