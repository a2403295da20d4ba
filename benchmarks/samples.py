"""What was measured: values by name, with the CPU that they cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from environment import cpu_s


@dataclass
class Samples:
    """
    Measured values by name, one for each round.

    Attributes:
        values: ``"drain.1": [tasks/s, …]``.
        cpu: ``"drain.1": [µs a task, …]``, of the workers, or of the caller where it sends.
        server: The same of the server; both 0.0 where the system does not tell.
    """

    server_pid: int
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def rate(self, name: str, count: int, pids: Sequence[int] = ()) -> Iterator[None]:
        """Time the block as ``count`` tasks, with the CPU of these processes, or of this one."""
        server_s = cpu_s([self.server_pid])
        busy_s = cpu_s(pids) if pids else time.process_time()
        started_s = time.perf_counter()
        yield
        self.values[name].append(count / (time.perf_counter() - started_s))
        busy_s = (cpu_s(pids) if pids else time.process_time()) - busy_s
        self.cpu[name].append(busy_s / count * 1e6)
        self.server[name].append((cpu_s([self.server_pid]) - server_s) / count * 1e6)
