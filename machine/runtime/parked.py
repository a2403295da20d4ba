"""A worker that has just come asks for what was put aside because nobody knew its task."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from machine.errors import MachineError
from machine.ports.broker import Broker
from machine.registry import Registry

_log = logging.getLogger("machine.worker")


def call_back(broker: Broker, queues: Sequence[str], registry: Registry) -> None:
    """
    Let messages of tasks registered here run now, instead of up to a minute later.

    Args:
        broker: The child's own.
        queues: What it consumes; messages of other queues are left alone.
        registry: The tasks it knows.
    """
    try:
        for queue in queues:
            count = broker.unpark(queue, lambda name: name in registry)
            if count:
                _log.info(
                    "%d messages on '%s' were put aside; their tasks are known now", count, queue
                )
    except MachineError as error:
        # They come back by themselves within a minute.
        _log.warning("cannot look for messages that were put aside: %s", error)
