"""
The public names of the package, and nothing else.

Importing it opens no connection and loads no Redis client and no settings, so
that a module of tasks is cheap to import. `connect()` loads them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from machine.errors import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    DuplicateTask,
    LeaseLost,
    MachineError,
    QueueFull,
    ResultNotFound,
    ResultTimeout,
    RetryLater,
    SignatureError,
    TaskCanceled,
    TaskExpired,
    TaskFailed,
    TaskNotRegistered,
    WireError,
)
from machine.execution import Hooks, TaskContext, current_task
from machine.periodic.watermarks import PeriodicState
from machine.registry import Registry
from machine.registry import task as _registry
from machine.registry.periodic import periodic
from machine.registry.task import AsyncTask, Task, task
from machine.results.chain import ChainResult, ChordResult
from machine.results.group import GroupProgress, GroupResult
from machine.results.task import AsyncResult
from machine.wire.signature import Arg, Signature, State, TaskState
from machine.workflow.builders import (
    chain,
    chord,
    group,
    new_chain,
    new_chord,
    new_group,
    new_signature,
)
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, TypedSignature

if TYPE_CHECKING:
    from machine.config import Config
    from machine.server import Server

__all__ = [
    # writing tasks
    "task",
    "periodic",
    "current_task",
    "RetryLater",
    "Hooks",
    # sending them
    "connect",
    "chain",
    "group",
    "chord",
    # what comes back
    "AsyncResult",
    "ChainResult",
    "ChordResult",
    "GroupResult",
    "GroupProgress",
    "State",
    "TaskState",
    "PeriodicState",
    # Machinery's own layer
    "Config",
    "Server",
    "Registry",
    "Signature",
    "Arg",
    "new_signature",
    "new_chain",
    "new_group",
    "new_chord",
    # types, for annotations
    "Task",
    "AsyncTask",
    "TaskContext",
    "TypedSignature",
    "Chain",
    "Group",
    "GroupChain",
    "Chord",
    # errors
    "MachineError",
    "ConfigError",
    "SignatureError",
    "TaskNotRegistered",
    "WireError",
    "BrokerUnavailable",
    "BrokerRefused",
    "DuplicateTask",
    "QueueFull",
    "LeaseLost",
    "TaskFailed",
    "TaskCanceled",
    "TaskExpired",
    "ResultNotFound",
    "ResultTimeout",
]

_connecting = threading.Lock()


def connect(config: Config | None = None) -> Server:
    """
    Return a server made from the settings; tasks send through it from now on.

    Args:
        config: The settings; by default those of the environment and the files.

    Raises:
        ConfigError: A setting is wrong.
    """
    from machine.build import connect as built  # noqa: PLC0415 - loads the Redis client

    server = built(config)
    _registry.default_sender = lambda: server
    return server


def _connect_once() -> Server:
    """Connect by the settings for the first task that is sent before anybody called `connect`."""
    with _connecting:
        sender: Any = _registry.default_sender
        server: Server = connect() if sender is _connect_once else sender()
    return server


_registry.default_sender = _connect_once


def __getattr__(name: str) -> Any:
    if name == "Config":
        from machine.config import Config  # noqa: PLC0415 - loads YAML

        return Config
    if name == "Server":
        from machine.server import Server  # noqa: PLC0415 - as late as Config, which it needs

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
