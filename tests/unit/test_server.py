from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from machine.config import Config, RedisConfig
from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    QueueFull,
    ResultNotFound,
    SignatureError,
    TaskNotRegistered,
)
from machine.ports.backend import NullBackend
from machine.ports.moves import Enqueued, Message
from machine.redis.backend import RedisBackend
from machine.redis.broker import RedisBroker
from machine.registry import Registry
from machine.registry.task import Task, task
from machine.server import Server
from machine.wire.headers import ON_CRASH_HEADER
from machine.wire.messages import encode_signature
from machine.wire.signature import Arg, Signature, State
from machine.workflow.builders import chain, chord, group, new_chain, new_group, new_signature
from machine.workflow.pieces import Chord, Group
from tests.conftest import own_broker, own_links, own_settings

UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
QUEUE = "machinery_tasks"


def add(*args: int) -> int:
    return sum(args)


def once() -> None:
    """Stand for a task that must not run twice."""


class Log(RedisBroker):
    """A broker that writes down what is asked of it, and in which order."""

    def __init__(self, log: list[object], backend: RedisBackend | None, **options: Any) -> None:
        links = own_links() if backend is None else backend._connections
        super().__init__(links, own_settings(keeps_states=backend is not None, **options))
        self.log = log

    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        self.log.append([message.uuid for message in messages])
        return super().enqueue(messages)

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return self.enqueue(messages)

    def close(self) -> None:
        self.log.append("broker closed")
        super().close()


class Memory(RedisBackend):
    """A backend that writes down what is recorded."""

    def __init__(self, log: list[object]) -> None:
        super().__init__(own_links(), results_expire_s=3600)
        self.log = log
        self.dues: list[int] = []

    def record_group(self, meta: Any, *, due_ns: int = 0, ahead: Any = ()) -> None:
        self.log.append(meta.group_uuid)
        self.dues.append(due_ns)
        super().record_group(meta, due_ns=due_ns, ahead=ahead)

    async def arecord_group(self, meta: Any, *, due_ns: int = 0, ahead: Any = ()) -> None:
        self.record_group(meta, due_ns=due_ns, ahead=ahead)

    def record(self, state: Any) -> None:
        self.log.append((state.task_uuid, state.state))
        super().record(state)

    def close(self) -> None:
        self.log.append("backend closed")


@pytest.fixture
def log() -> list[object]:
    return []


@pytest.fixture
def backend(log: list[object]) -> Memory:
    return Memory(log)


@pytest.fixture
def facade(log: list[object], backend: Memory) -> Server:
    """Return a server whose broker keeps the states, and which runs nothing."""
    made = Server(Config(broker="eager"), Log(log, backend), backend)
    made.register_task("add", add)
    made.register_task("once", task(on_crash="fail")(once))
    return made


Way = Callable[[Server, str, Any], Any]


@pytest.fixture(params=["", "a"])
def send(request: pytest.FixtureRequest) -> Way:
    """Return ``send(server, "task", …)``, which is ``server.send_task(…)`` or its async twin."""

    def sent(facade: Server, kind: str, *args: Any) -> Any:
        result = getattr(facade, f"{request.param}send_{kind}")(*args)
        return asyncio.run(result) if request.param else result

    return sent


def sent(facade: Server, queue: str = "") -> Signature:
    """Return the one message in a queue."""
    [signature] = facade.pending_tasks(queue)
    return signature


# -- one task ----------------------------------------------------------------------------------


def test_a_task_is_sent_pending_and_complete(facade: Server, send: Way) -> None:
    signature = Signature(name="add", args=[Arg("int64", 1), Arg("int64", 2)])

    result = send(facade, "task", signature)

    found = sent(facade)
    assert re.fullmatch(f"task_{UUID4}", result.uuid)
    assert (found.uuid, found.name, found.routing_key) == (result.uuid, "add", QUEUE)
    assert (found.args, found.headers) == (signature.args, {})
    state = facade.get_state(result.uuid)
    assert state is not None
    assert (state.state, state.task_name, state.results) == (State.PENDING, "add", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", state.created_at)
    assert repr(result) == f"<AsyncResult {result.uuid}: not looked at yet>"


def test_the_signature_given_is_not_written_into(facade: Server, send: Way) -> None:
    callback = Signature(name="add")
    signature = Signature(name="once", on_success=[callback])

    send(facade, "task", signature)

    assert signature == Signature(name="once", on_success=[Signature(name="add")])


def test_id_queue_and_headers_that_are_given_are_kept(facade: Server, send: Way) -> None:
    signature = Signature(name="add", uuid="mine", routing_key="other", headers={"trace": "1"})

    result = send(facade, "task", signature)

    found = sent(facade, "other")
    assert (result.uuid, found.uuid, found.headers) == ("mine", "mine", {"trace": "1"})
    assert facade.pending_tasks() == []


def test_two_sends_of_one_signature_are_two_tasks(facade: Server) -> None:
    signature = new_signature("add").replace(uuid="")

    uuids = {facade.send_task(signature).uuid, facade.send_task(signature).uuid}

    assert {s.uuid for s in facade.pending_tasks()} == uuids
    assert len(uuids) == 2


def test_sending_an_id_again_sends_nothing(facade: Server, send: Way) -> None:
    signature = new_signature("add")

    uuids = [send(facade, "task", signature).uuid for _ in range(2)]

    assert uuids == [signature.uuid] * 2
    assert len(facade.pending_tasks()) == 1


def test_callbacks_are_sent_with_ids_and_queues_but_without_headers(facade: Server) -> None:
    signature = Signature(
        name="a",
        on_success=[Signature(name="b", on_error=[Signature(name="c", routing_key="errors")])],
        chord_callback=Signature(name="d"),
    )

    facade.send_task(signature)

    first = sent(facade)
    [second] = first.on_success
    [third] = second.on_error
    fourth = first.chord_callback
    assert fourth is not None
    assert [s.routing_key for s in (second, third, fourth)] == [QUEUE, "errors", QUEUE]
    assert [s.headers for s in (second, third, fourth)] == [None, None, None]
    assert all(re.fullmatch(f"task_{UUID4}", s.uuid) for s in (second, third))
    assert re.fullmatch(f"chord_{UUID4}", fourth.uuid)


def test_a_task_that_must_not_run_twice_says_so_in_a_header(facade: Server) -> None:
    facade.send_task(Signature(name="add", on_success=[Signature(name="once")]))

    found = sent(facade)
    assert found.headers == {}
    assert found.on_success[0].headers == {ON_CRASH_HEADER: "fail"}


def test_an_eta_in_the_future_delays_and_one_in_the_past_does_not(facade: Server) -> None:
    past_ns, future_ns = (
        int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 10**9 for year in (2001, 2100)
    )

    facade.send_task(Signature(name="add", uuid="past", eta_ns=past_ns))
    facade.send_task(Signature(name="add", uuid="future", eta_ns=future_ns))

    assert [(s.uuid, s.eta_ns) for s in facade.pending_tasks()] == [("past", past_ns)]
    assert [(s.uuid, s.eta_ns) for s in facade.delayed_tasks()] == [("future", future_ns)]


def test_values_of_python_are_written_as_their_type(facade: Server) -> None:
    args = [Arg("[]byte", b"hi"), Arg("[]byte", "aGk="), Arg("float64", 1), Arg("[]int64", None)]

    facade.send_task(Signature(name="add", args=args))

    assert [arg.value for arg in sent(facade).args] == ["aGk=", "aGk=", 1, None]


def test_the_hook_before_publishing_sees_each_message_complete(facade: Server, send: Way) -> None:
    def trace(signature: Signature) -> None:
        assert signature.headers is not None
        signature.headers["uber-trace-id"] = signature.uuid

    facade.before_publish = trace

    send(facade, "task", Signature(name="add", uuid="task_1"))
    send(facade, "group", Group([Signature(name="add", uuid="task_2")]))

    assert [s.headers for s in facade.pending_tasks()] == [
        {"uber-trace-id": "task_1"},
        {"uber-trace-id": "task_2"},
    ]


def test_what_is_to_happen_after_each_send_happens(facade: Server, send: Way) -> None:
    seen: list[int] = []
    facade.after_enqueue = lambda: seen.append(len(facade.pending_tasks()))

    send(facade, "task", Signature(name="add"))
    send(facade, "group", Group([Signature(name="add"), Signature(name="add")]))

    assert seen == [1, 3]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (Signature(name=""), "task '': Name is ''; expected 1 to 256 printable characters"),
        (
            Signature(name="a", args=[Arg("int8", 300)]),
            (
                "argument 0 of task 'a' is 300, out of range for int8 (-128 to 127); "
                "name a type that holds it, or send a string"
            ),
        ),
        (
            Signature(name="a", args=[Arg("int64", 1), Arg("int64", True)]),
            "argument 1 of task 'a' is a bool; int64 takes int",
        ),
        (
            Signature(name="a", args=[Arg("float64", float("nan"))]),
            "argument 0 of task 'a' is nan; JSON has no such number, send a finite one",
        ),
        (
            Signature(name="a", args=[Arg("[]int64", True)]),
            "argument 0 of task 'a' is a bool; []int64 takes a list of int",
        ),
        (
            Signature(name="a", on_success=[Signature(name="b", args=[Arg("int64", "x")])]),
            "argument 0 of task 'b' is a str; int64 takes int",
        ),
        (
            Signature(name="a", uuid=QUEUE),
            (
                f"Task 'a' has the name of its queue, '{QUEUE}', as its id; leave it empty, or "
                "choose another."
            ),
        ),
        (
            Signature(name="a", args=[Arg("string", "x" * 2000)]),
            (
                "Task 'a' makes a message of 2467 bytes; max_message_bytes is 2000. Send where the "
                "data is, not the data."
            ),
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_written(
    log: list[object], backend: Memory, signature: Signature, text: str, send: Way
) -> None:
    config = Config(broker="eager", max_message_bytes=2000)
    facade = Server(config, Log(log, backend), backend)

    for kind, given in (
        ("task", signature),
        ("group", Group([Signature(name="good"), signature])),
        ("chord", Chord(Group([Signature(name="good"), signature]), Signature(name="cb"))),
    ):
        with pytest.raises(SignatureError) as caught:
            send(facade, kind, given)
        # A group's id makes its members' messages longer.
        assert re.sub("of [0-9]+ bytes", "", str(caught.value)) == re.sub(
            "of [0-9]+ bytes", "", text
        )
    assert log == []


@pytest.mark.parametrize(
    ("signature", "start"),
    [
        (Signature(name="a", uuid="delayed_tasks"), "task 'a': UUID is 'delayed_tasks'; expected"),
        (Signature(name="a", uuid="mine.delayed"), "task 'a': UUID is 'mine.delayed'; expected"),
        (Signature(name="a", routing_key="task_1"), "task 'a': RoutingKey is 'task_1'; expected"),
    ],
)
def test_names_of_other_keys_are_refused(
    log: list[object], backend: Memory, signature: Signature, start: str
) -> None:
    # The default name of the delayed set stays forbidden where another one is set.
    key = "delayed_tasks" if signature.uuid == "delayed_tasks" else "mine.delayed"
    config = Config(broker="eager", redis=RedisConfig(delayed_tasks_key=key))
    facade = Server(config, Log(log, backend), backend)

    with pytest.raises(SignatureError) as caught:
        facade.send_task(signature)

    assert str(caught.value).startswith(start)
    assert log == []


def test_a_full_queue_is_an_error_that_names_it(
    log: list[object], backend: Memory, send: Way
) -> None:
    config = Config(broker="eager", max_queue_length=1)
    facade = Server(config, Log(log, backend, max_queue_length=1), backend)
    text = (
        f"Queue '{QUEUE}' takes no more: it holds max_queue_length = 1 messages, or the server "
        "is out of memory{}. Send again later, or start more workers."
    )

    with pytest.raises(QueueFull) as caught:
        send(facade, "group", Group([Signature(name="add") for _ in range(3)]))
    assert str(caught.value) == text.format(" (2 of 3 did not go)")

    with pytest.raises(QueueFull) as caught:
        send(facade, "task", Signature(name="add"))
    assert str(caught.value) == text.format("")


def test_an_id_that_names_something_else_is_an_error_that_names_it(
    facade: Server, send: Way
) -> None:
    facade.send_task(Signature(name="add", routing_key="other"))

    with pytest.raises(BrokerRefused) as caught:
        send(facade, "task", Signature(name="add", uuid="other"))

    assert str(caught.value) == (
        f"Task id 'other' or queue '{QUEUE}' names a key that holds something else; nothing was "
        "written there. Use another id, or look at the key."
    )


def test_without_a_backend_nothing_is_sent(log: list[object], send: Way) -> None:
    facade = Server(Config(broker="eager"), Log(log, None), None)
    a = Signature(name="a")

    for kind, given in (
        ("task", a),
        ("chain", [a]),
        ("group", Group([a])),
        ("chord", Chord(Group([a]), a)),
    ):
        with pytest.raises(ConfigError) as caught:
            send(facade, kind, given)
        assert str(caught.value) == (
            "Result backend required: set result_backend to a Redis URL, or to null to keep no "
            "results."
        )
    assert log == []


class Absent(RedisBroker):
    """A broker whose server is away."""

    def enqueue(self, messages: Sequence[Message]) -> list[Enqueued]:  # noqa: ARG002
        raise BrokerUnavailable("127.0.0.1:6379 did not answer for 30 s.") from OSError("refused")

    async def aenqueue(self, messages: Sequence[Message]) -> list[Enqueued]:
        return self.enqueue(messages)


def test_a_broker_that_is_away_leaves_the_ids_to_ask_with(backend: Memory, send: Way) -> None:
    facade = Server(Config(broker="eager"), Absent(backend._connections, own_settings()), backend)

    with pytest.raises(BrokerUnavailable) as caught:
        send(facade, "group", Group([Signature(name="a", uuid=uuid) for uuid in ("t_1", "t_2")]))

    assert str(caught.value) == (
        "127.0.0.1:6379 did not answer for 30 s. Task t_1 and 1 more may have been sent or not; "
        "sending again under the same id cannot send it twice."
    )
    assert isinstance(caught.value.__cause__, OSError)


# -- states kept elsewhere ---------------------------------------------------------------------


def test_states_kept_elsewhere_are_written_before_the_message(
    log: list[object], backend: Memory, send: Way
) -> None:
    facade = Server(Config(broker="eager"), Log(log, None), backend)

    send(facade, "group", Group([Signature(name="a", uuid=u) for u in ("t_1", "t_2")], "group_1"))

    assert log == ["group_1", ("t_1", "PENDING"), ("t_2", "PENDING"), ["t_1", "t_2"]]


def test_with_the_null_backend_tasks_are_sent_and_no_result_is_found(send: Way) -> None:
    facade = Server(Config(broker="eager"), own_broker(None), NullBackend())

    result = send(facade, "task", Signature(name="a"))

    assert [s.uuid for s in facade.pending_tasks()] == [result.uuid]
    assert result.state is None
    with pytest.raises(
        ResultNotFound, match=rf"^No result for '{result.uuid}': results are switched"
    ):
        result.get()


# -- workflows ---------------------------------------------------------------------------------


def test_a_chain_sends_its_first_task_with_the_others_inside(facade: Server, send: Way) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")

    result = send(facade, "chain", plus.s(1, 1) | plus.partial(5) | plus.partial(4))

    first = sent(facade)
    [second] = first.on_success
    [third] = second.on_success
    assert [m.uuid for m in result.members] == [first.uuid, second.uuid, third.uuid]
    assert result.uuid == third.uuid
    assert (first.headers, second.headers, third.headers) == ({}, None, None)
    assert facade.get_state(second.uuid) is None


def test_a_chain_can_be_a_list_of_signatures(facade: Server, send: Way) -> None:
    a, b = Signature(name="add"), Signature(name="add")
    new_chain(a, b)

    result = send(facade, "chain", [a, b])

    assert [m.uuid for m in result.members] == [a.uuid, b.uuid]
    assert sent(facade).on_success[0].uuid == b.uuid


@pytest.mark.parametrize("send_concurrency", [0, 2])
def test_a_group_is_written_down_before_its_members_are_sent(
    facade: Server, log: list[object], send: Way, send_concurrency: int
) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")

    result = send(facade, "group", group(plus.s(i, i) for i in range(3)), send_concurrency)

    members = facade.pending_tasks()
    uuids = [m.uuid for m in members]
    assert re.fullmatch(f"group_{UUID4}", result.group_uuid)
    assert [(m.group_uuid, m.group_task_count) for m in members] == [(result.group_uuid, 3)] * 3
    assert log == [result.group_uuid, uuids]
    assert [r.uuid for r in result] == uuids
    assert [state.state for state in result.states() if state] == ["PENDING"] * 3


def test_ids_of_a_group_made_as_in_machinery_are_kept(facade: Server) -> None:
    members = [Signature(name="add"), Signature(name="add")]
    made = new_group(*members)

    result = facade.send_group(made)

    assert result.group_uuid == made.group_uuid
    assert [r.uuid for r in result] == [m.uuid for m in members]


def test_an_empty_group_writes_nothing(facade: Server, log: list[object], send: Way) -> None:
    result = send(facade, "group", Group([]))

    assert result.get() == []
    assert log == []


def test_an_argument_without_its_type_is_refused_with_the_cure(facade: Server) -> None:
    bare: Any = [1, 2]

    with pytest.raises(SignatureError) as caught:
        facade.send_task(Signature(name="add", args=bare))

    assert str(caught.value) == (
        "argument 0 of task 'add' is 1, which is no Arg; write Arg('int64', 1), or let the task "
        "make the signature: task.s(…)."
    )


def test_two_members_with_one_id_are_refused(facade: Server, log: list[object]) -> None:
    with pytest.raises(SignatureError) as caught:
        facade.send_group(Group([Signature(name="add", uuid="task_1")] * 2))

    assert str(caught.value) == (
        "Two tasks of the workflow have the id 'task_1'; leave it empty, or give each its own."
    )
    assert log == []


def test_a_negative_send_concurrency_is_refused(facade: Server, send: Way) -> None:
    with pytest.raises(
        SignatureError, match=r"^send_concurrency -1 is out of bounds; give 0 or more\.$"
    ):
        send(facade, "group", Group([Signature(name="add")]), -1)


def test_each_member_of_a_chord_carries_the_callback(facade: Server, send: Way) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")

    result = send(facade, "chord", chord([plus.s(1, 1), plus.s(5, 5)], plus.partial(3)))

    members = facade.pending_tasks()
    callbacks = [m.chord_callback for m in members]
    assert re.fullmatch(f"chord_{UUID4}", result.uuid)
    assert [(c.uuid, c.headers, c.routing_key) for c in callbacks if c] == [
        (result.uuid, {}, QUEUE)
    ] * 2
    assert [r.uuid for r in result.group] == [m.uuid for m in members]
    assert facade.get_state(result.uuid) is None


def test_all_groups_of_a_workflow_are_written_down_before_anything_is_sent(
    facade: Server, backend: Memory, log: list[object], send: Way
) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    one, two = group(plus.s(1), plus.s(2) | plus.s(3)), group(plus.s(4), plus.s(5))

    result = send(facade, "chain", one | two)

    first, second = result.steps
    assert log == [
        *[step.group_uuid for step in (first, second)],
        [head.uuid for head in facade.pending_tasks()],
    ]
    metas = [backend.read_group(step.group_uuid) for step in (first, second)]
    assert [meta and meta.task_uuids for meta in metas] == [
        [member.uuid for member in step.members] for step in (first, second)
    ]
    assert [meta and meta.nested for meta in metas] == [True, True]
    assert [member.uuid for member in result.members] == [m.uuid for m in second.members]
    assert result.group_uuid == second.group_uuid


def test_a_workflow_that_cannot_be_sent_writes_nothing(
    facade: Server, log: list[object], send: Way
) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    bad = plus.partial().replace(routing_key="no queue")

    with pytest.raises(SignatureError):
        send(facade, "group", group(plus.s(1) | plus.s(2), plus.s(1) | (group(plus.s(1)) | bad)))
    assert log == []


def test_every_group_of_a_workflow_lives_until_its_last_task_is_due(
    facade: Server, backend: Memory, send: Way
) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    later = datetime(2100, 1, 1, tzinfo=UTC)

    send(facade, "chain", group(plus.s(1)) | group(plus.s(2) | plus.s(3).options(eta=later)))

    assert backend.dues == [int(later.timestamp()) * 10**9] * 2


def test_a_list_of_steps_may_hold_workflows(facade: Server, send: Way) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")

    ends_with_a_task = send(facade, "chain", [plus.s(1), group(plus.s(1)), plus.s(2)])
    ends_with_a_group = send(facade, "chain", [plus.s(1) | plus.s(2), group(plus.s(1))])

    assert len(ends_with_a_task.members) == 3
    assert ends_with_a_task.uuid == ends_with_a_task.members[-1].uuid
    assert len(ends_with_a_group.members) == 1


def test_a_group_is_found_by_its_id_alone_without_blocking_too(facade: Server) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    sent_group = facade.send_group(group(plus.s(1), plus.s(2)))

    found = asyncio.run(facade.agroup_result(sent_group.group_uuid))

    assert [member.uuid for member in found] == [member.uuid for member in sent_group]


def test_on_a_cluster_ids_lie_in_their_queues_slot(log: list[object], backend: Memory) -> None:
    config = Config(broker="eager", redis=RedisConfig(cluster_mode=True))
    facade = Server(config, Log(log, backend), backend)

    result = facade.send_chord(
        Chord(Group([Signature(name="a", routing_key="q")]), Signature(name="b"))
    )

    assert re.fullmatch(rf"chord_\{{{QUEUE}\}}_{UUID4}", result.uuid)
    assert re.fullmatch(rf"group_\{{{QUEUE}\}}_{UUID4}", result.group.group_uuid)
    assert re.fullmatch(rf"task_\{{q\}}_{UUID4}", next(iter(result.group)).uuid)


# -- looking -----------------------------------------------------------------------------------


def test_a_result_can_be_had_from_the_id_alone(facade: Server) -> None:
    sent_result = facade.send_task(Signature(name="add"))
    group_result = facade.send_group(Group([Signature(name="add")]))

    assert facade.result(sent_result.uuid).state == sent_result.state
    found = facade.group_result(group_result.group_uuid)
    assert [r.uuid for r in found] == [r.uuid for r in group_result]


def test_a_group_that_was_never_sent_is_not_found(facade: Server) -> None:
    with pytest.raises(ResultNotFound) as caught:
        facade.group_result("group_1")

    assert str(caught.value) == (
        "No group is kept under 'group_1': it was never sent, or it expired."
    )


def test_a_state_that_was_purged_is_gone(facade: Server) -> None:
    result = facade.send_task(Signature(name="add"))

    facade.purge_state(result.uuid)

    assert facade.get_state(result.uuid) is None
    assert facade.get_state("task_unknown") is None


def test_pending_tasks_of_no_queue_are_those_of_the_default_queue(facade: Server) -> None:
    for uuid in ("task_1", "task_2"):
        facade.send_task(Signature(name="add", uuid=uuid))

    assert [s.uuid for s in facade.pending_tasks()] == ["task_1", "task_2"]
    assert facade.pending_tasks(QUEUE) == facade.pending_tasks("")
    assert facade.pending_tasks("nothing") == []


def test_what_is_not_a_message_does_not_hide_the_others(facade: Server) -> None:
    facade.broker.enqueue([Message("task_0", QUEUE, b"not json", b"")])
    facade.send_task(Signature(name="add", uuid="task_1"))

    assert [s.uuid for s in facade.pending_tasks()] == ["task_1"]


# -- tasks, workers, the end -------------------------------------------------------------------


def test_tasks_are_registered_and_found(facade: Server) -> None:
    assert facade.get_registered_task_names() == ["add", "once"]
    assert facade.is_task_registered("add")
    assert not facade.is_task_registered("ad")
    assert facade.get_registered_task("add")(1, 2) == 3
    with pytest.raises(TaskNotRegistered, match=r"^Task 'ad' is not registered. Known: add, once."):
        facade.get_registered_task("ad")


def test_registering_several_stores_all_or_none(facade: Server) -> None:
    with pytest.raises(SignatureError, match=r"^Task 'bad' is of type int, not a function"):
        facade.register_tasks({"good": add, "bad": 3})  # type: ignore[dict-item]

    assert facade.get_registered_task_names() == ["add", "once"]


@pytest.mark.parametrize("way", ["send", "delay", "asend", "s", "chain", "group", "chord"])
def test_registered_tasks_send_themselves_through_the_server(facade: Server, way: str) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    built: dict[str, Callable[[], Any]] = {
        "send": lambda: plus.send(1, 2),
        "delay": lambda: plus.delay(1, 2),
        "asend": lambda: asyncio.run(plus.asend(1, 2)),
        "s": lambda: plus.s(1, 2).send(),
        "chain": lambda: chain(plus.s(1, 2), plus.partial()).send(),
        "group": lambda: plus.map([(1, 2)]).send(),
        "chord": (group(plus.s(1, 2)) | plus.partial()).send,
    }

    built[way]()

    assert sent(facade).args == [Arg("int64", 1), Arg("int64", 2)]


@pytest.mark.parametrize("way", ["s", "chain", "group", "chord"])
def test_workflows_send_themselves_without_blocking_too(facade: Server, way: str) -> None:
    plus: Task[..., int] = facade.get_registered_task("add")
    built: dict[str, Any] = {
        "s": plus.s(1, 2),
        "chain": chain(plus.s(1, 2), plus.partial()),
        "group": plus.map([(1, 2)]),
        "chord": group(plus.s(1, 2)) | plus.partial(),
    }

    asyncio.run(built[way].asend())

    assert sent(facade).args == [Arg("int64", 1), Arg("int64", 2)]


def test_a_server_without_a_factory_makes_no_workers(facade: Server) -> None:
    with pytest.raises(ConfigError) as caught:
        facade.new_worker("w", 1)

    assert str(caught.value) == (
        "This server cannot make workers; make it by machine.connect(), which can."
    )


def test_a_factory_is_asked_for_workers(facade: Server) -> None:
    facade.worker_factory = lambda *given: given

    assert facade.new_worker("w", 3) == (facade, "w", 3)


def test_closing_closes_both_stores_and_lets_the_tasks_go(
    log: list[object], backend: Memory
) -> None:
    registry = Registry()
    plus = registry.register("add", add)

    with Server(Config(broker="eager"), Log(log, backend), backend, registry):
        plus.send(1)
        log.clear()

    assert log == ["broker closed", "backend closed"]
    assert plus._sender is None


def test_messages_are_what_wire_writes(facade: Server) -> None:
    facade.send_task(Signature(name="add", uuid="task_1", args=[Arg("int64", 1)]))

    [raw] = facade.broker.pending(QUEUE)

    assert raw == encode_signature(sent(facade))
    assert raw.startswith(
        b'{"UUID":"task_1","Name":"add","RoutingKey":"machinery_tasks","ETA":null,'
    )
