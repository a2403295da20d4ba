"""Expiry and unique tasks in eager mode: the whole way, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from machine import build
from machine.config import Config
from machine.errors import BrokerUnavailable, DuplicateTask, QueueFull, TaskFailed
from machine.periodic.runs import run_of
from machine.ports.broker import Admitted
from machine.redis.broker import RedisBroker
from machine.registry import Registry
from machine.server import Server
from machine.wire.headers import OWN_HEADERS
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Signature
from tests.conftest import own_backend, own_broker, own_settings

PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def eager() -> Iterator[Server]:
    """Return a server that runs what is sent at once."""
    with build.server(Config(broker="eager"), Registry()) as made:
        yield made


def waiting(**limits: Any) -> Server:
    """Return a server that nobody works for."""
    backend = own_backend()
    broker = own_broker(backend, **limits)
    return Server(Config(broker="eager", **limits), broker, backend)


def test_an_expired_task_does_not_run_in_eager_mode_either(eager: Server) -> None:
    ran: list[int] = []
    note = eager.register_task("note", ran.append)
    result = note.s(1).options(expires=PAST).send()
    note.s(2).options(expires=60).send()

    with pytest.raises(TaskFailed, match=r"^expired: it was to start before 2026-01-01T00:00:00Z$"):
        result.get(0)
    assert ran == [2]


def test_a_task_that_sends_itself_again_finds_itself(eager: Server) -> None:
    found: list[str] = []

    def run(depth: int) -> None:
        if depth < 3:
            again = eager.get_registered_task("once").s(depth + 1).options(unique="k")
            found.append(again.send().uuid)

    once = eager.register_task("once", run)
    result = once.s(0).options(unique="k").send()

    assert found == [result.uuid]


def test_a_key_is_free_again_after_the_task_has_run(eager: Server) -> None:
    ran: list[int] = []
    note = eager.register_task("note", ran.append)
    for number in (1, 2):
        note.s(number).options(unique="k", on_duplicate="refuse").send()

    async def send() -> Any:
        return await note.s(3).options(unique="k", on_duplicate="refuse").asend()

    assert asyncio.run(send()).get(0) is None
    assert ran == [1, 2, 3]


def test_what_is_joined_has_the_name_and_id_of_the_one_that_is_there() -> None:
    facade = waiting()
    first = Signature(name="first", headers={"x-unique": "k"})
    second = Signature(name="second", headers={"x-unique": "k"})

    results = [facade.send_task(one) for one in (first, second)]

    assert [result.uuid for result in results] == [results[0].uuid] * 2
    assert [result.task_name for result in results] == ["first", ""]
    assert (first.headers, first.uuid) == ({"x-unique": "k"}, "")


def test_a_hook_sees_a_unique_task_before_it_is_published() -> None:
    facade = waiting()
    seen: list[str] = []
    facade.before_publish = lambda signature: seen.append(signature.uuid)

    result = facade.send_task(Signature(name="a", headers={"x-unique": "k"}))

    assert seen == [result.uuid]


def test_a_full_queue_refuses_a_unique_task() -> None:
    facade = waiting(max_queue_length=1)
    facade.send_task(Signature(name="a"))

    with pytest.raises(QueueFull):
        facade.send_task(Signature(name="b", headers={"x-unique": "k"}))


def test_a_refusal_says_which_task_is_there_on_an_event_loop() -> None:
    facade = waiting()
    headers = {"x-unique": "k", "x-on-duplicate": "refuse"}
    first = facade.send_task(Signature(name="a", headers=headers))

    with pytest.raises(DuplicateTask) as caught:
        asyncio.run(facade.asend_task(Signature(name="b", headers=headers)))

    assert caught.value.uuid == first.uuid


class Absent(RedisBroker):
    """A broker that does not answer."""

    def enqueue_unique(self, *_: Any, **__: Any) -> Admitted:
        raise BrokerUnavailable("Redis did not answer.")

    async def aenqueue_unique(self, *_: Any, **__: Any) -> Admitted:
        raise BrokerUnavailable("Redis did not answer.")


def sent(facade: Server, signature: Signature) -> Any:
    return facade.send_task(signature)


def sent_on_a_loop(facade: Server, signature: Signature) -> Any:
    return asyncio.run(facade.asend_task(signature))


@pytest.mark.parametrize("send", [sent, sent_on_a_loop])
def test_a_sending_without_an_answer_names_the_id_to_send_again_under(
    send: Callable[[Server, Signature], Any],
) -> None:
    backend = own_backend()
    broker = Absent(backend._connections, own_settings())
    facade = Server(Config(broker="eager"), broker, backend)

    with pytest.raises(BrokerUnavailable) as caught:
        send(facade, Signature(name="a", uuid="task_mine", headers={"x-unique": "k"}))

    assert str(caught.value) == (
        "Redis did not answer. Task task_mine may have been sent or not; sending again under the "
        "same id cannot send it twice."
    )


def test_our_own_headers_do_not_count_against_the_bound() -> None:
    headers = {f"h{number}": "" for number in range(64)} | dict.fromkeys(OWN_HEADERS, "1")
    signature = Signature(name="note", headers=headers)

    assert decode_signature(encode_signature(signature)).headers == headers


def test_a_template_of_the_timetable_keeps_saying_how_long_each_run_may_wait() -> None:
    facade = waiting()
    template = Signature(name="note", headers={"x-expires-in": "60"})
    facade.register_periodic_task("@every 1h", "each", template)

    [entry] = facade.timetable()
    runs = [run_of(entry, home, 1) for home in ("first", "second")]
    texts = [facade._messages.make(run.signatures, 0)[0] for run in runs]

    assert all(b'"x-expires-at":"' in messages[0].payload for messages in texts)
    assert entry.signatures[0].headers == {"x-expires-in": "60"}
