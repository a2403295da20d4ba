"""
A program that sends and waits, in either language, behind one face.

The two callers take the same `Job` and give the same `Answer`; what each makes
of it is its own language's business.
"""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from machine import build
from machine.config import Config
from machine.errors import MachineError, TaskFailed
from machine.registry import Registry
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupResult, TaskGraph
from machine.results.task import AsyncResult
from machine.wire.signature import Arg, Signature
from machine.workflow.pieces import Chain, Chord, Group

PATIENCE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A signature, before it is known which language sends it. Values are Python's."""

    name: str
    args: Sequence[tuple[str, Any]] = ()
    queue: str = ""
    uuid: str = ""
    eta_ns: int | None = None
    retry_count: int = 0
    retry_timeout: int = 0
    immutable: bool = False
    ignore_when_task_not_registered: bool = False
    headers: dict[str, Any] | None = None
    on_success: Sequence[Job] = ()
    on_error: Sequence[Job] = ()


def fresh(name: str) -> str:
    """Return a name that nobody has used."""
    return f"{name}_{uuid.uuid4().hex[:12]}"


def ints(*values: int) -> list[tuple[str, Any]]:
    """Return int64 arguments."""
    return [("int64", value) for value in values]


def texts(*values: str) -> list[tuple[str, Any]]:
    """Return string arguments."""
    return [("string", value) for value in values]


class Answer(NamedTuple):
    """What a caller's own `get` gave: values, and the Go names of their types, or an error."""

    values: list[Any] = []  # noqa: RUF012 - never changed
    types: list[str] = []  # noqa: RUF012
    error: str = ""


@dataclass(frozen=True)
class Sent:
    """What was sent: the tasks' ids in order (a callback's last), and the group's."""

    uuids: list[str]
    group: str = ""
    members: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A task or a workflow that is sent by itself at certain times."""

    kind: Literal["task", "chain", "group", "chord"]
    spec: str
    name: str
    jobs: Sequence[Job]
    callback: Job | None = None


class Caller(Protocol):
    """A program that sends and waits, in either language."""

    def send(self, *jobs: Job) -> list[str]: ...
    def chain(self, *jobs: Job) -> Sent: ...
    def group(self, *jobs: Job) -> Sent: ...
    def chord(self, callback: Job, *jobs: Job) -> Sent: ...
    def schedule(self, plan: Plan) -> None: ...
    def close(self) -> None: ...
    def get(self, uuids: Iterable[str], timeout_s: float = PATIENCE_S) -> list[Answer]: ...
    def get_chain(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer: ...
    def get_chord(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer: ...


class PyCaller:
    """The machine's own server, in this process."""

    def __init__(self, url: str, program: str = "") -> None:
        config = Config(
            broker=url,
            default_queue="machinery_tasks",
            periodic_program=program,
            interop_groups=True,
        )
        self.server = build.server(config, Registry())

    def send(self, *jobs: Job) -> list[str]:
        return [self.server.send_task(_signature(job)).uuid for job in jobs]

    def chain(self, *jobs: Job) -> Sent:
        result = self.server.send_chain(Chain[Any](map(_signature, jobs)))
        return Sent([member.uuid for member in result.members])

    def group(self, *jobs: Job) -> Sent:
        result = self.server.send_group(Group[Any](map(_signature, jobs)))
        uuids = [member.uuid for member in result]
        return Sent(uuids, result.group_uuid, uuids)

    def chord(self, callback: Job, *jobs: Job) -> Sent:
        chord = Chord[Any](Group[Any](map(_signature, jobs)), _signature(callback))
        result = self.server.send_chord(chord)
        members = [member.uuid for member in result.group]
        return Sent([*members, result.uuid], result.group.group_uuid, members)

    def schedule(self, plan: Plan) -> None:
        jobs = [_signature(job) for job in plan.jobs]
        if plan.kind == "task":
            self.server.register_periodic_task(plan.spec, plan.name, jobs[0])
        elif plan.kind == "chain":
            self.server.register_periodic_chain(plan.spec, plan.name, *jobs)
        elif plan.kind == "group":
            self.server.register_periodic_group(plan.spec, plan.name, 0, *jobs)
        else:
            assert plan.callback is not None
            callback = _signature(plan.callback)
            self.server.register_periodic_chord(plan.spec, plan.name, 0, callback, *jobs)

    def close(self) -> None:
        self.server.close()

    def get(self, uuids: Iterable[str], timeout_s: float = PATIENCE_S) -> list[Answer]:
        return [self._answer(self.server.result(uuid), timeout_s) for uuid in uuids]

    def get_chain(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer:
        graph = TaskGraph.of_chain(sent.uuids)
        result = ChainResult[Any](sent.uuids[-1], self._backend, graph)
        return self._answer(result, timeout_s)

    def get_chord(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer:
        group = GroupResult[Any](sent.group, self._backend, sent.members)
        graph = TaskGraph.of_group(sent.members, sent.uuids[-1])
        result = ChordResult[Any](sent.uuids[-1], self._backend, group, graph)
        return self._answer(result, timeout_s)

    @property
    def _backend(self) -> Any:
        return self.server.backend

    def _answer(self, result: AsyncResult[Any], timeout_s: float) -> Answer:
        try:
            values = result.results(timeout_s)
        except TaskFailed as error:
            return Answer(error=str(error))
        except MachineError as error:
            return Answer(error=f"{type(error).__name__}: {error}")
        state = result.state
        assert state is not None
        return Answer(values, [one.type for one in state.results or ()])


class GoCaller:
    """A Machinery server in a process of its own, asked one line at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Return the program's answer; an error of Machinery's is raised as an AssertionError."""
        answer = self.ask_for_error(op, **fields)
        assert not answer.get("Error"), answer["Error"]
        return answer

    def ask_for_error(self, op: str, **fields: Any) -> dict[str, Any]:
        """Return the program's answer, which may have an ``Error``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"Op": op, **fields}) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def send(self, *jobs: Job) -> list[str]:
        uuids: list[str] = self.ask("send", Signatures=[_document(job) for job in jobs])["UUIDs"]
        return uuids

    def chain(self, *jobs: Job) -> Sent:
        answer = self.ask("chain", Signatures=[_document(job) for job in jobs])
        return Sent(answer["UUIDs"])

    def group(self, *jobs: Job) -> Sent:
        answer = self.ask("group", Signatures=[_document(job) for job in jobs])
        return Sent(answer["UUIDs"], answer["Group"], answer["UUIDs"])

    def chord(self, callback: Job, *jobs: Job) -> Sent:
        members = [_document(job) for job in jobs]
        answer = self.ask("chord", Signatures=members, Callback=_document(callback))
        return Sent(answer["UUIDs"], answer["Group"], answer["UUIDs"][:-1])

    def schedule(self, plan: Plan) -> None:
        self.ask(
            "periodic",
            Kind=plan.kind,
            Spec=plan.spec,
            Name=plan.name,
            Signatures=[_document(job) for job in plan.jobs],
            Callback=None if plan.callback is None else _document(plan.callback),
        )

    def signal(self, number: int) -> None:
        """Send the program a signal: to stop and to go on, for instance."""
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, uuids: Iterable[str], timeout_s: float = PATIENCE_S) -> list[Answer]:
        return self._get("get", list(uuids), timeout_s)

    def get_chain(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer:
        return self._get("get_chain", sent.uuids, timeout_s)[0]

    def get_chord(self, sent: Sent, timeout_s: float = PATIENCE_S) -> Answer:
        return self._get("get_chord", sent.uuids, timeout_s)[0]

    def states(self, *uuids: str) -> list[dict[str, Any]]:
        """Return each TaskState, as Machinery read it and writes it again."""
        found: list[dict[str, Any]] = self.ask("state", UUIDs=list(uuids))["States"]
        return found

    def is_completed(self, sent: Sent) -> bool:
        """Return what GroupCompleted says."""
        count = len(sent.members)
        return bool(self.ask("completed", Group=sent.group, Count=count).get("Completed"))

    def _get(self, op: str, uuids: list[str], timeout_s: float) -> list[Answer]:
        answers = self.ask(op, UUIDs=uuids, TimeoutMS=round(timeout_s * 1000))["Answers"]
        return [
            Answer(
                [_from_go(*pair) for pair in zip(a["Types"] or (), a["Values"] or (), strict=True)],
                a["Types"] or [],
                a["Error"],
            )
            for a in answers
        ]


def _signature(job: Job) -> Signature:
    """Return the job as a Python caller makes it."""
    return Signature(
        name=job.name,
        args=[Arg(*arg) for arg in job.args],
        routing_key=job.queue,
        uuid=job.uuid,
        eta_ns=job.eta_ns,
        retry_count=job.retry_count,
        retry_timeout=job.retry_timeout,
        immutable=job.immutable,
        ignore_when_task_not_registered=job.ignore_when_task_not_registered,
        headers=job.headers,
        on_success=[_signature(one) for one in job.on_success],
        on_error=[_signature(one) for one in job.on_error],
    )


def _document(job: Job) -> dict[str, Any]:
    """Return the job as the Go caller is told of it."""
    return {
        "Name": job.name,
        "Args": [{"Type": kind, "Value": _to_go(value)} for kind, value in job.args],
        "RoutingKey": job.queue,
        "UUID": job.uuid,
        "ETA": None if job.eta_ns is None else _rfc3339(job.eta_ns),
        "RetryCount": job.retry_count,
        "RetryTimeout": job.retry_timeout,
        "Immutable": job.immutable,
        "IgnoreWhenTaskNotRegistered": job.ignore_when_task_not_registered,
        "Headers": job.headers,
        "OnSuccess": [_document(one) for one in job.on_success],
        "OnError": [_document(one) for one in job.on_error],
    }


def _rfc3339(ns: int) -> str:
    seconds = datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{seconds}.{ns % 10**9:09d}Z"


def _to_go(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _from_go(kind: str, value: Any) -> Any:
    """Return the Python value of one that Go printed as JSON."""
    if kind == "[]uint8":
        return base64.b64decode(value or "")
    if kind == "float32":
        return narrow(value)
    if kind == "[]float32":
        return [narrow(item) for item in value]
    return value


def narrow(value: float) -> float:
    """Return the float32 next to a number."""
    found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return found
