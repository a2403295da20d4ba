"""What Go Machinery wrote, byte for byte, run here; and what Go reads of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from machine import TaskFailed, current_task

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


def give(yard: Yard, golden: Callable[[str], bytes], name: str) -> dict[str, Any]:
    """Put a message of Go's into the yard's queue, unchanged but for its routing; return it."""
    message: dict[str, Any] = json.loads(golden(name))
    payload = golden(name)
    for key in ("RoutingKey", "UUID", "GroupUUID"):
        old = message[key]
        new = yard.queue if key == "RoutingKey" else f"{old}{yard.queue}" if old else old
        payload = payload.replace(
            f'"{key}":"{old}"'.encode(), f'"{key}":"{new}"'.encode(), -1 if old else 0
        )
    yard.push(payload)
    found: dict[str, Any] = json.loads(payload)
    return found


@pytest.mark.parametrize("name", ["signature_add", "signature_add_v1", "signature_copied"])
def test_a_task_sent_by_go_runs(yard: Yard, golden: Callable[[str], bytes], name: str) -> None:
    yard.task(lambda a, b: a + b, name="add")
    message = give(yard, golden, name)

    yard.run()

    expected = sum(arg["Value"] for arg in message["Args"])
    assert yard.server.result(message["UUID"]).get(timeout=5) == expected


def test_every_type_of_go_arrives_as_its_value(yard: Yard, golden: Callable[[str], bytes]) -> None:
    got: list[Any] = []
    yard.task(lambda *args: got.extend(args), name="all_types")
    give(yard, golden, "signature_types_high")

    yard.run()

    sent = json.loads(golden("signature_types_high"))["Args"]
    by_type = dict(zip([arg["Type"] for arg in sent], got, strict=True))
    assert by_type["uint64"] == 2**64 - 1
    assert by_type["int64"] == 2**63 - 1
    assert by_type["float64"] == 1.7976931348623157e308
    assert by_type["[]byte"] == b"hi\xff\x00~"
    assert by_type["[]string"] == ["", "ü", "<a&b>"]
    assert by_type["string"] == next(arg["Value"] for arg in sent if arg["Type"] == "string")


def test_nothings_of_go_arrive_as_empty(yard: Yard, golden: Callable[[str], bytes]) -> None:
    got: list[Any] = []
    yard.task(lambda *args: got.extend(args), name="all_types")
    message = give(yard, golden, "signature_types_low")

    yard.run()

    slices = [
        value
        for arg, value in zip(message["Args"], got, strict=True)
        if arg["Type"].startswith("[]")
    ]
    assert all(value in ([], b"") for value in slices)


def test_a_chain_of_go_runs_to_its_end(yard: Yard, golden: Callable[[str], bytes]) -> None:
    calls: list[tuple[int, ...]] = []

    def add(*numbers: int) -> int:
        calls.append(numbers)
        return sum(numbers)

    yard.task(add)
    yard.task(lambda a, b: a * b, name="multiply")
    message = give(yard, golden, "signature_chain")
    last = message["OnSuccess"][0]["OnSuccess"][0]["UUID"]

    child = yard.child(queues=[yard.queue, "slow"])
    yard.drain(child)
    yard.leave(child)

    assert calls == [(2, 2), (5, 4)]
    assert yard.server.result(last).get(timeout=5) == 36


def test_members_of_a_chord_of_go_call_back_once(
    yard: Yard, golden: Callable[[str], bytes]
) -> None:
    yard.task(lambda *numbers: sum(numbers), name="add")
    calls: list[tuple[int, ...]] = []
    yard.task(lambda *numbers: calls.append(numbers), name="multiply")
    message = json.loads(golden("signature_chord_member"))
    group_uuid, callback = f"group_{yard.queue}", f"chord_{yard.queue}"
    members = [f"task_{yard.queue}_{number}" for number in range(2)]
    meta = json.loads(golden("group_meta")) | {"GroupUUID": group_uuid, "TaskUUIDs": members}
    yard.raw.set(group_uuid, json.dumps(meta, separators=(",", ":")), ex=3600)
    message |= {"GroupUUID": group_uuid, "RoutingKey": yard.queue}
    message["ChordCallback"] |= {"UUID": callback}

    for number, uuid in enumerate(members):
        args = [{"Name": "", "Type": "int64", "Value": 10 * number}]
        yard.push(message | {"UUID": uuid, "Args": args})
    yard.run()

    assert calls == [(3, 0, 10)]
    assert yard.document(group_uuid)["ChordTriggered"] is True


def test_a_task_of_go_that_is_retried_keeps_every_field(
    yard: Yard, golden: Callable[[str], bytes]
) -> None:
    def fail(_text: str) -> None:
        raise RuntimeError("again")

    yard.task(fail, name="text")
    before = json.loads(golden("signature_every_field")) | {"RoutingKey": yard.queue}
    yard.push(golden("signature_every_field").replace(b'"other"', f'"{yard.queue}"'.encode()))

    yard.run()

    [(after, _)] = yard.delayed()
    changed = {"ETA", "Headers", "RetryCount", "RetryTimeout"}
    assert {key for key in before if after.get(key) != before[key]} == changed
    assert after["Headers"] == before["Headers"] | {"x-attempt": "2"}
    yard.raw.delete(yard.delayed_key)


def test_unknown_fields_survive_a_retry(yard: Yard) -> None:
    def fail() -> None:
        raise RuntimeError("again")

    yard.task(fail)
    yard.push(
        {
            "uuid": f"task_{yard.queue}",
            "name": "fail",
            "retrycount": 1,
            "routingkey": yard.queue,
            "x-new": {"deep": [1.5, 2**70, None]},
        }
    )

    yard.run()

    [(after, _)] = yard.delayed()
    assert after["x-new"] == {"deep": [1.5, 2**70, None]}
    yard.raw.delete(yard.delayed_key)


def test_a_message_of_2016_runs_with_defaults(yard: Yard) -> None:
    yard.task(lambda a: a + 1, name="increase")
    uuid = f"task_{yard.queue}"
    yard.push(
        {
            "UUID": uuid,
            "Name": "increase",
            "RoutingKey": "",
            "GroupUUID": "",
            "GroupTaskCount": 0,
            "Args": [{"Type": "int64", "Value": 1}],
            "Headers": None,
            "Immutable": False,
            "OnSuccess": None,
            "OnError": None,
            "ChordCallback": None,
        }
    )

    yard.run()

    assert yard.server.result(uuid).get(timeout=5) == 2


def test_a_task_whose_state_expired_still_gets_one_with_a_time_go_reads(yard: Yard) -> None:
    result = yard.task(lambda: 1, name="one").send()
    yard.raw.delete(result.uuid)

    yard.run()

    document = yard.document(result.uuid)
    assert (document["State"], document["TaskName"]) == ("SUCCESS", "one")
    assert document["CreatedAt"].endswith("Z")
    assert document["CreatedAt"] > "2026"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("state_success_add", [2]),
        ("state_success_zero_time", [2]),
        ("state_success_bytes", [b"hi\xff"]),
        ("state_success_nil", [[]]),
        ("state_success_nothing", []),
        ("state_success_several", ["foo<", -7, 1e21]),
    ],
)
def test_states_written_by_go_are_read(
    yard: Yard, golden: Callable[[str], bytes], name: str, values: list[Any]
) -> None:
    uuid = f"task_{yard.queue}"
    yard.raw.set(uuid, golden(name), ex=60)

    results = yard.server.result(uuid).results(timeout=5)

    assert results[:3] == values


def test_a_failure_written_by_go_is_raised(yard: Yard, golden: Callable[[str], bytes]) -> None:
    uuid = f"task_{yard.queue}"
    yard.raw.set(uuid, golden("state_failure"), ex=60)

    with pytest.raises(TaskFailed) as caught:
        yard.server.result(uuid).get(timeout=5)

    assert str(caught.value) == 'Test error <&> "q" \u2028'


def test_a_result_written_by_go_while_waiting_ends_the_wait(
    yard: Yard, golden: Callable[[str], bytes]
) -> None:
    result = yard.task(lambda: 0, name="zero").send()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(result.get(timeout=10)))
    waiting.start()

    uuid = json.loads(golden("state_success_add"))["TaskUUID"].encode()
    final = golden("state_success_add").replace(uuid, result.uuid.encode())
    yard.raw.set(result.uuid, final, ex=60)
    waiting.join(10)

    assert got == [2]
    yard.raw.delete(yard.queue)


def test_headers_of_go_are_seen_by_the_task(yard: Yard, golden: Callable[[str], bytes]) -> None:
    seen: list[str] = []
    yard.task(lambda *_: seen.append(current_task().signature.header("uber-trace-id")), name="text")
    yard.push(golden("signature_every_field").replace(b'"other"', f'"{yard.queue}"'.encode()))

    yard.run()

    assert seen == ["1:2:3:1"]
