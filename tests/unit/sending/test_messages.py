"""`MessageMaker`: the same messages and PENDING states, whoever sends them."""

from __future__ import annotations

import pytest

from machine.errors import SignatureError
from machine.sending.messages import MessageMaker
from machine.wire.messages import decode_signature
from machine.wire.signature import Arg, Signature, State, TaskState
from machine.wire.states import encode_state
from machine.wire.text import format_time
from tests.conftest import message_rules

NOW_NS = 1_700_000_000_123_456_789


def signature(**fields: object) -> Signature:
    return Signature(name="a", uuid="task_1").replace(**fields)


def test_a_message_carries_the_state_that_the_codec_writes() -> None:
    own = signature(routing_key="q")

    [message], states = MessageMaker(message_rules()).make([own], NOW_NS)

    assert message.pending == encode_state(TaskState.pending(own, format_time(NOW_NS)))
    assert states == []


def test_states_that_do_not_travel_are_returned_one_for_each_message() -> None:
    maker = MessageMaker(message_rules(keeps_states=False))

    messages, states = maker.make([signature(), signature(uuid="task_2")], NOW_NS)

    assert [message.pending for message in messages] == [b"", b""]
    assert [(state.task_uuid, state.task_name, state.state) for state in states] == [
        ("task_1", "a", State.PENDING),
        ("task_2", "a", State.PENDING),
    ]
    assert {state.created_at for state in states} == {format_time(NOW_NS)}


@pytest.mark.parametrize(("eta_ns", "due_ns"), [(NOW_NS + 1, NOW_NS + 1), (NOW_NS, 0), (None, 0)])
def test_only_what_is_due_later_is_delayed(eta_ns: int | None, due_ns: int) -> None:
    [message], _ = MessageMaker(message_rules()).make([signature(eta_ns=eta_ns)], NOW_NS)

    assert message.due_ns == due_ns


def test_follow_ups_are_made_as_everything_else_is() -> None:
    maker = MessageMaker(message_rules(default_queue="home"))
    headers = {"x-expires-in": "60", "x-sent-at": "1"}
    follow_up, sent = signature(headers=dict(headers)), signature(routing_key="home")
    sent.headers = dict(headers)

    assert maker.make_follow_ups([follow_up], NOW_NS) == maker.make([sent], NOW_NS)
    assert follow_up.routing_key == "home"
    assert follow_up.header("x-expires-at") == format_time(NOW_NS + 60_000_000_000)
    assert follow_up.header("x-sent-at") == str(NOW_NS // 1_000_000)


def test_a_follow_up_goes_only_to_a_queue_that_is_allowed() -> None:
    maker = MessageMaker(message_rules(default_queue="a", allowed_queues=frozenset({"b", "a"})))

    maker.make_follow_ups([signature(), signature(routing_key="b")], NOW_NS)

    with pytest.raises(
        SignatureError,
        match=r"^Callback 'a' names queue 'c', which is not one of allowed_queues: a, b\.$",
    ):
        maker.make_follow_ups([signature(routing_key="c")], NOW_NS)


def test_a_follow_up_is_no_larger_than_what_a_caller_sends() -> None:
    maker = MessageMaker(message_rules(max_message_bytes=500))

    with pytest.raises(SignatureError, match=r"^Task 'a' makes a message of \d+ bytes; max_messa"):
        maker.make_follow_ups([signature(args=[Arg("string", "x" * 500)])], NOW_NS)


def test_no_message_has_the_id_of_the_delayed_set_that_is_configured() -> None:
    maker = MessageMaker(message_rules(delayed_key="later"))

    maker.make_follow_ups([signature(uuid="delayed")], NOW_NS)
    with pytest.raises(SignatureError, match="later"):
        maker.make_follow_ups([signature(uuid="later")], NOW_NS)


def test_tasks_that_a_registry_adds_later_are_known() -> None:
    at_most_once: set[str] = set()
    maker = MessageMaker(message_rules(), at_most_once=at_most_once)
    before = maker.complete(signature()).headers

    at_most_once.add("a")

    assert (before, maker.complete(signature()).headers) == ({}, {"x-on-crash": "fail"})


def test_ids_hold_their_queues_slot_on_a_cluster_only() -> None:
    rules = message_rules(default_queue="home")

    assert MessageMaker(rules, cluster_mode=True).new_id("task", "q").startswith("task_{q}_")
    assert MessageMaker(rules, cluster_mode=True).new_id("group").startswith("group_{home}_")
    assert MessageMaker(rules).new_id("task", "q").startswith("task_")


def test_what_no_worker_could_read_is_left_out_of_what_is_shown() -> None:
    maker = MessageMaker(message_rules())
    [message], _ = maker.make([signature(routing_key="q")], NOW_NS)

    shown = maker.decode_readable([b"no JSON", message.payload])

    assert shown == [decode_signature(message.payload)]
