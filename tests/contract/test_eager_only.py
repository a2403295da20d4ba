"""What only the adapters in memory can show: the passing of time, eager mode, nothing kept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from machine.backend.eager import EagerBackend
from machine.broker.eager import EagerBroker
from machine.errors import ResultNotFound
from machine.ports.backend import NullBackend
from machine.ports.broker import Broker
from machine.ports.moves import ChordShot, Finish, Member, Message, Park, Retry, Verdict
from machine.wire.signature import GroupMeta, TaskState

if TYPE_CHECKING:
    from machine.ports.backend import Backend
    from machine.ports.clock import Clock

DAY_S = 86_400
HOUR_NS = 3600 * 1_000_000_000


def state(word: str) -> TaskState:
    return TaskState(task_uuid="task_a", state=word, task_name="add")


def test_both_adapters_have_the_shape_of_their_ports(clock: Clock) -> None:
    backends: list[Backend] = [EagerBackend(clock=clock), NullBackend()]
    broker: Broker = EagerBroker(clock=clock)

    for backend in backends:
        backend.close()
    broker.ping()
    broker.close()


# -- time --------------------------------------------------------------------------------------
def test_a_final_state_expires_and_a_pending_one_lives_a_day(clock) -> None:
    backend = EagerBackend(clock=clock, results_expire_s=60)
    backend.record(state("PENDING"))
    clock.advance(DAY_S - 1)
    assert backend.read(["task_a"]) != [None]

    backend.record(state("SUCCESS"))
    clock.advance(59)
    assert backend.read(["task_a"]) != [None]
    clock.advance(1)

    assert backend.read(["task_a"]) == [None]


def test_an_expiry_of_nothing_is_an_hour(clock) -> None:
    backend = EagerBackend(clock=clock, results_expire_s=0)
    backend.record(state("SUCCESS"))

    clock.advance(3599)
    assert backend.read(["task_a"]) != [None]
    clock.advance(1)

    assert backend.read(["task_a"]) == [None]


def test_a_group_expires(clock) -> None:
    backend = EagerBackend(clock=clock, results_expire_s=60)
    backend.record_group(GroupMeta(group_uuid="group_a", task_uuids=[]))

    clock.advance(60)

    assert backend.read_group("group_a") is None


def test_what_has_expired_does_not_pile_up(clock) -> None:
    backend = EagerBackend(clock=clock, results_expire_s=60)
    for round_number in range(4):
        for i in range(1000):
            done = state("SUCCESS")
            done.task_uuid = f"task_{round_number}_{i}"
            backend.record(done)
        clock.advance(60)

    assert len(backend._kept) <= 2048


def test_a_delayed_message_keeps_its_state_until_it_is_due(clock) -> None:
    backend = EagerBackend(clock=clock, results_expire_s=60)
    broker = EagerBroker(clock=clock, backend=backend)
    due_ns = clock.now_ns() + 100 * HOUR_NS
    pending = b'{"TaskUUID":"task_a","TaskName":"add","State":"PENDING","Results":null,"Error":"",'
    broker.enqueue([Message("task_a", "q", b"raw", pending, due_ns)])

    clock.advance(101 * 3600)

    assert backend.read(["task_a"]) != [None]


def test_a_message_is_promoted_when_its_time_has_come_and_not_before(clock) -> None:
    broker = EagerBroker(clock=clock, default_queue="q")
    broker.enqueue([Message("task_a", "q", b'{"Name":"add"}', b"", clock.now_ns() + HOUR_NS)])

    clock.advance(3599)
    assert broker.promote(10) == 0
    clock.advance(1)
    assert broker.promote(10) == 1

    assert broker.pending("q") == [b'{"Name":"add"}']


def test_a_heartbeat_a_claim_and_registering_move_the_stamp(clock) -> None:
    broker = EagerBroker(clock=clock, lease_s=15)
    stamps = []
    for renew in (
        lambda: broker.register("w1", ["q"]),
        lambda: broker.heartbeat("q", ["w1"]),
        lambda: broker.exchange("w1", ["q"], [], 0),
    ):
        clock.advance(1)
        renew()
        stamps.append(broker.roster("q").stamps["w1"] - clock.now_ns() // 1_000_000)

    assert stamps == [15_000, 15_000, 15_000]


def test_fences_never_fall_behind_the_clock(clock) -> None:
    broker = EagerBroker(clock=clock)
    broker.register("w1", ["q"])
    broker.enqueue([Message("", "q", b"a", b"")])

    (claim,) = broker.exchange("w1", ["q"], [], 1).claims

    assert claim.fence > clock.now_ns() // 1000 - 1


def test_the_members_of_an_old_group_are_forgotten(clock) -> None:
    broker = EagerBroker(clock=clock)
    broker.register("w1", ["q"])
    for uuid in ("m1", "m2"):
        broker.enqueue([Message("", "q", uuid.encode(), b"")])
        (claim,) = broker.exchange("w1", ["q"], [], 1).claims
        move = Finish(claim=claim, members=[Member("q", "group_a", uuid, 2, b"callback")])
        assert broker.exchange("w1", [], [move], 0).verdicts == [Verdict.DONE]
        clock.advance(DAY_S)

    assert broker.armed("q", 0, 10) == (0, [])


# -- eager mode, and states elsewhere ----------------------------------------------------------
def test_in_eager_mode_what_is_due_later_is_ready(clock) -> None:
    broker = EagerBroker(clock=clock, ignore_eta=True)
    broker.register("w1", ["q"])
    later = clock.now_ns() + HOUR_NS
    broker.enqueue([Message("", "q", b"a", b"", later)])
    (claim,) = broker.exchange("w1", ["q"], [], 1).claims

    move = Retry(
        claim=claim, state_key="", state=b"", attempt=b"", payload=b"b", queue="q", due_ns=later
    )
    broker.exchange("w1", [], [move], 0)

    assert broker.pending("q") == [b"b"]
    assert broker.delayed() == []


def test_in_eager_mode_an_unknown_task_still_waits(clock) -> None:
    broker = EagerBroker(clock=clock, ignore_eta=True)
    broker.register("w1", ["q"])
    broker.enqueue([Message("", "q", b"a", b"")])
    (claim,) = broker.exchange("w1", ["q"], [], 1).claims

    broker.exchange("w1", [], [Park(claim=claim)], 0)

    assert broker.delayed() == [b"a"]


def test_the_queues_that_were_used_are_named(clock) -> None:
    broker = EagerBroker(clock=clock)
    broker.enqueue([Message("", "q1", b"a", b""), Message("", "q2", b"b", b"")])

    assert sorted(broker.queues()) == ["q1", "q2"]


def test_without_a_backend_no_state_is_kept(clock) -> None:
    broker = EagerBroker(clock=clock)
    broker.register("w1", ["q"])
    broker.enqueue([Message("task_a", "q", b"a", b""), Message("task_a", "q", b"a", b"")])

    claims = broker.exchange("w1", ["q"], [], 2).claims
    moves = [Finish(claim=claim, state_key="task_a", state=b"{") for claim in claims]

    assert broker.keeps_states is False
    assert broker.exchange("w1", [], moves, 0).verdicts == [Verdict.DONE, Verdict.DONE]


def test_without_a_backend_a_chord_fires_all_the_same(clock) -> None:
    broker = EagerBroker(clock=clock)
    broker.register("w1", ["q"])
    broker.enqueue([Message("", "q", b"a", b"")])
    (claim,) = broker.exchange("w1", ["q"], [], 1).claims
    member = Member("q", "group_a", "m1", 1, b"callback")
    assert broker.exchange("w1", [], [Finish(claim=claim, members=[member])], 0).verdicts == [
        Verdict.ARMED
    ]

    callback = Message("task_c", "q", b"callback", b"")
    shot = ChordShot("q", "group_a", [callback], b"{}", fallen=[("task_c", b"{")])

    assert broker.fire_chord(shot) is Verdict.DONE
    assert broker.pending("q") == [b"callback"]


# -- results switched off ----------------------------------------------------------------------
SWITCHED_OFF = "No result for 'task_a': results are switched off. Set result_backend to keep them."


def test_with_results_off_writing_does_nothing_and_reading_finds_nothing() -> None:
    backend = NullBackend()

    backend.record(state("SUCCESS"))
    backend.record_group(GroupMeta(group_uuid="group_a", task_uuids=["task_a"]))
    asyncio.run(backend.arecord_group(GroupMeta(group_uuid="group_a", task_uuids=["task_a"])))

    assert backend.read(["task_a", "task_b"]) == [None, None]
    assert asyncio.run(backend.aread(["task_a"])) == [None]
    assert backend.read_group("group_a") is None
    backend.purge_state("task_a")
    backend.purge_group("group_a")


@pytest.mark.parametrize("missing_ok", [False, True])
def test_with_results_off_waiting_says_so(missing_ok: bool) -> None:
    async def wait() -> list[TaskState]:
        backend = NullBackend()
        return [s async for s in backend.acompleted(["task_a"], None, missing_ok=missing_ok)]

    with pytest.raises(ResultNotFound) as sync_error:
        list(NullBackend().completed(["task_a"], None, missing_ok=missing_ok))
    with pytest.raises(ResultNotFound) as async_error:
        asyncio.run(wait())

    assert str(sync_error.value) == str(async_error.value) == SWITCHED_OFF


def test_with_results_off_waiting_for_nothing_ends_at_once() -> None:
    assert list(NullBackend().completed([], None)) == []
