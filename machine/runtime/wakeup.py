"""
Waiting on several things at once: wake-ups of the queues, jobs that ended, signals.

One pipe to write to from any thread or signal handler, and one poll on it and
on whatever sockets the broker's waker listens on.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable

from machine.ports.broker import Waker


class Doorbell:
    """
    Lets one thread sleep until something is to be done.

    Args:
        make_waker: Makes the broker's waker when it is first needed.
    """

    def __init__(self, make_waker: Callable[[], Waker]) -> None:
        self._make_waker = make_waker
        self._waker: Waker | None = None
        self._sleeping = self._closed = False
        self._in, self._out = os.pipe()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def ring(self) -> None:
        """End the sleep that is under way, or the next one. Safe in a signal handler."""
        self._sleeping = False
        if self._closed:  # its number may be another file by now
            return
        # Enough rings may be in the pipe already, or nobody left to hear.
        with contextlib.suppress(OSError):
            os.write(self._out, b"\0")

    def ring_if_asleep(self) -> None:
        """Ring if anybody sleeps: one comparison for each task that ends under load."""
        if self._sleeping:
            self.ring()

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until a ring."""
        self._poll([self._in], seconds)

    def listen(self, seconds: float, *, arm: bool, unless: Callable[[], bool]) -> bool:
        """
        Sleep until a ring, a queue's wake-up, or the time.

        Args:
            seconds: How long at most.
            arm: Whether to ask the queues to wake us.
            unless: Asked once when rings are heard: true means do not sleep after all.

        Returns:
            Whether a queue woke us.
        """
        if arm:
            self._waker = self._waker or self._make_waker()
            self._waker.arm()
        self._sleeping = True
        if not unless():
            self._poll([self._in, *(self._waker.filenos() if self._waker else ())], seconds)
        self._sleeping = False
        return self._waker is not None and self._waker.collect()

    def give_back(self) -> None:
        """Hand what woke us to another worker."""
        if self._waker is not None:
            self._waker.give_back()

    def close(self) -> None:
        """Close the waker and the pipe."""
        if self._waker is not None:
            self._waker.close()
        if not self._closed:
            self._closed = True
            os.close(self._in)
            os.close(self._out)

    def _poll(self, descriptors: Iterable[int], seconds: float) -> None:
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(max(0.0, seconds) * 1000):
            if descriptor == self._in:
                os.read(self._in, 4096)
