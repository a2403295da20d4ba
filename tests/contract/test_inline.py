"""The broker of eager mode: nothing waits for its time, and nothing is shared with a fork."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from machine.config import Config
from machine.config.redis_url import parse_address
from machine.errors import BrokerRefused
from machine.ports.moves import ChordShot, Finish, Member, Message, Park, Retry, Verdict
from machine.redis import keys
from machine.redis.connections import Connections
from machine.redis.inline import InlineBroker
from machine.redis.roles import QueueSettings
from tests.contract.conftest import HOUR_NS, Bench, signature_bytes


@pytest.fixture
def inline(bench: Bench, redis_url: str) -> Iterator[InlineBroker]:
    """Return eager mode's broker on the bench's keys, with a worker of the bench's."""
    settings = replace(
        QueueSettings.of(Config()), default_queue=bench.queue, delayed_key=bench.delayed_key
    )
    made = InlineBroker(Connections(parse_address(redis_url)), settings)
    bench.worker()
    yield made
    made.close()


def test_what_is_due_later_is_ready(bench: Bench, inline: InlineBroker) -> None:
    inline.enqueue([bench.message("a", due_ns=bench.now_ns() + HOUR_NS)])

    assert bench.pending() == ["a"]
    assert inline.queues == (bench.queue,)


def test_what_is_unique_and_due_later_is_ready(bench: Bench, inline: InlineBroker) -> None:
    inline.enqueue_unique(bench.message("a", due_ns=bench.now_ns() + HOUR_NS), "key")

    assert bench.pending() == ["a"]


def test_a_retry_is_ready_at_once_in_the_queue_it_names(bench: Bench, inline: InlineBroker) -> None:
    claim = bench.take_one("a")
    other = f"{bench.queue}.other"
    move: Retry = bench.retry(claim, queue=other, due_ns=bench.now_ns() + HOUR_NS)

    assert inline.exchange("w1", [], [move], 0).verdicts == [Verdict.DONE]

    assert bench.pending(other) == ["a"]
    assert inline.queues == (other,)
    assert inline.delayed() == []


def test_what_follows_a_task_is_ready_at_once(bench: Bench, inline: InlineBroker) -> None:
    claim = bench.take_one("a")
    later = bench.message("b", due_ns=bench.now_ns() + HOUR_NS)

    inline.exchange("w1", [], [bench.finish(claim, follow_ups=[later])], 0)

    assert bench.pending() == ["b"]


def test_the_callback_of_a_chord_is_ready_at_once(bench: Bench, inline: InlineBroker) -> None:
    claim = bench.take_one("a")
    member = bench.member("a", 1)
    assert bench.make(bench.finish(claim, members=[member])) == [Verdict.ARMED]
    callback = bench.message("callback", due_ns=bench.now_ns() + HOUR_NS)

    fired = inline.fire_chord(ChordShot(bench.queue, member.group_uuid, [callback], b"{}"))

    assert fired is Verdict.DONE
    assert bench.pending() == ["callback"]


def test_a_message_that_was_put_aside_still_waits(bench: Bench, inline: InlineBroker) -> None:
    claim = bench.take_one("a")

    inline.exchange("w1", [], [Park(claim=claim)], 0)

    assert [bench.name_of(payload) for payload in inline.delayed()] == ["a"]


def test_a_forked_process_is_refused_with_the_cure(bench: Bench, inline: InlineBroker) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            inline.enqueue([bench.message("a")])
        except BrokerRefused as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)

    said = os.read(read, 1000).decode()
    os.close(read)

    assert said == (
        f"This eager server belongs to process {os.getpid()}, which forked this one; its "
        "connections cannot be shared. Call machine.connect(Config(broker='eager')) here."
    )
    assert bench.pending() == []


# -- states elsewhere --------------------------------------------------------------------------
def test_without_states_the_same_id_is_queued_twice_and_ends_twice(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(keeps_states=False)
    bench.worker()
    message = bench.message("a")._replace(pending=b"")
    bench.broker.enqueue([message, message])

    claims = bench.take("w1", 2)
    moves = [Finish(claim=claim) for claim in claims]

    assert bench.broker.keeps_states is False
    assert bench.make(*moves) == [Verdict.DONE, Verdict.DONE]


def test_without_states_a_chord_fires_all_the_same(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(keeps_states=False)
    claim = bench.take_one("a")
    member = bench.member("a", 1)
    assert bench.make(Finish(claim=claim, members=[member])) == [Verdict.ARMED]
    callback = Message("", bench.queue, signature_bytes(bench.uuid("c"), bench.queue), b"")

    fired = bench.broker.fire_chord(ChordShot(bench.queue, member.group_uuid, [callback], b"{}"))

    assert fired is Verdict.DONE
    assert bench.pending() == ["c"]


def test_the_members_of_a_group_are_forgotten_in_time(bench: Bench, raw: Any) -> None:
    claim = bench.take_one("a")
    member: Member = bench.member("a", 2)

    bench.make(bench.finish(claim, members=[member]))

    assert 0 < raw.ttl(keys.group_done(bench.queue, member.group_uuid)) <= 2 * 86_400
