"""The parts of a server by themselves: what is entered around a write, and what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from machine import build
from machine.config import Config
from machine.errors import ConfigError, MachineError, SignatureError
from machine.registry import Registry
from machine.sending.canceling import Canceling
from machine.sending.messages import MessageMaker
from machine.sending.sending import Sending
from machine.sending.workflows import WorkflowSending
from machine.server import Server
from machine.wire.signature import Signature
from machine.workflow.builders import chain, group
from machine.workflow.pieces import GroupChain
from tests.conftest import message_rules

Send = Callable[[Sending, Signature], Any]


@pytest.fixture
def store() -> Iterator[Server]:
    """Return a server of which only the broker and the backend are used."""
    with build.server(Config(broker="eager"), Registry()) as made:
        made.after_enqueue = None  # nothing runs
        yield made


@pytest.fixture(params=["send", "asend"])
def send(request: pytest.FixtureRequest) -> Send:
    def call(sending: Sending, signature: Signature) -> Any:
        if request.param == "send":
            return sending.send_task(signature)
        return asyncio.run(sending.asend_task(signature))

    return call


class Instrument:
    """Writes down when it is entered and left, and adds a header."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    @contextmanager
    def sending(self, signatures: Sequence[Signature]) -> Iterator[None]:
        self._log.append(f"{self._name} in {[s.uuid for s in signatures]}")
        for signature in signatures:
            signature.headers = {**(signature.headers or {}), self._name: "1"}
        try:
            yield
        except MachineError as error:
            self._log.append(f"{self._name} failed: {type(error).__name__}")
            raise
        self._log.append(f"{self._name} out")


def sending_on(store: Server, log: list[str], **limits: Any) -> Sending:
    return Sending(
        MessageMaker(message_rules(**limits)),
        store.broker,
        store.backend,
        Canceling(store.broker, store.backend),
        instruments=[Instrument("a", log), Instrument("b", log)],
    )


@pytest.mark.parametrize("headers", [None, {"x-unique": "k"}])
def test_instruments_are_entered_around_the_write_the_first_one_outermost(
    store: Server, send: Send, headers: dict[str, Any] | None
) -> None:
    log: list[str] = []
    sending = sending_on(store, log)
    sending.before_publish = lambda signature: log.append(f"publish {signature.uuid}")
    sending.after_enqueue = lambda: log.append("queued")

    result = send(sending, Signature(name="n", uuid="task_1", headers=headers))

    assert result.uuid == "task_1"
    assert log == [
        *("a in ['task_1']", "b in ['task_1']"),
        *("publish task_1", "queued", "b out", "a out"),
    ]
    [queued] = store.pending_tasks()
    assert (queued.header("a"), queued.header("b")) == ("1", "1")


@pytest.mark.parametrize("headers", [None, {"x-unique": "k"}])
def test_instruments_see_what_is_refused(
    store: Server, send: Send, headers: dict[str, Any] | None
) -> None:
    log: list[str] = []
    sending = sending_on(store, log, max_message_bytes=10)

    with pytest.raises(SignatureError):
        send(sending, Signature(name="n", uuid="task_1", headers=headers))

    assert log[2:] == ["b failed: SignatureError", "a failed: SignatureError"]
    assert store.pending_tasks() == []


def test_instruments_are_entered_once_for_all_that_a_workflow_sends(store: Server) -> None:
    log: list[str] = []
    sending = sending_on(store, log)
    workflows = WorkflowSending(
        sending, MessageMaker(message_rules()), Canceling(store.broker, store.backend)
    )

    workflows.send(group(Signature(name="n", uuid=uuid) for uuid in ("task_1", "task_2")))
    workflows.send(group([]))
    workflows.send(GroupChain([group([])]))

    assert [line for line in log if " in " in line] == [
        "a in ['task_1', 'task_2']",
        "b in ['task_1', 'task_2']",
    ]


def test_nothing_is_written_where_no_result_could_be_read(store: Server, send: Send) -> None:
    sending = Sending(
        MessageMaker(message_rules()), store.broker, None, Canceling(store.broker, None)
    )

    with pytest.raises(ConfigError, match=r"^Result backend required"):
        send(sending, Signature(name="n"))

    assert store.pending_tasks() == []


def test_handles_cancel_by_the_canceler_they_were_given(store: Server) -> None:
    canceler = Canceling(store.broker, store.backend)
    messages = MessageMaker(message_rules())
    sending = Sending(messages, store.broker, store.backend, canceler)

    one = sending.send_task(Signature(name="n"))
    two = WorkflowSending(sending, messages, canceler).send(
        chain(Signature(name="n"), Signature(name="m"))
    )

    assert (one.cancel(), two.cancel()) == (True, True)
