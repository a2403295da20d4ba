"""
Lets one thread sleep until a queue has work, a job has ended, or a signal came.

The self-pipe trick: any thread or signal handler writes into a pipe, and the
sleeper polls that pipe together with the sockets of the broker's waker.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable

from machine.ports.broker import Waker


class Wakeup:
    """
    One thread's sleep, which others can end.

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

    def wake(self) -> None:
        """End the present sleep, or the next one. Safe in a signal handler."""
        self._sleeping = False
        if self._closed:  # another file may have the descriptor's number by now
            return
        # The pipe may be full, which wakes the sleeper just as well.
        with contextlib.suppress(OSError):
            os.write(self._out, b"\0")

    def wake_if_asleep(self) -> None:
        """
        Wake the thread if it sleeps.

        Called for each task that ends: under load nobody sleeps, and this costs one
        comparison and no system call.
        """
        if self._sleeping:
            self.wake()

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until `wake`."""
        self._poll([self._in], seconds)

    def wait(self, seconds: float, *, arm: bool, unless: Callable[[], bool]) -> bool:
        """
        Sleep until `wake`, a queue's wake-up, or the time.

        Args:
            seconds: How long at most.
            arm: Whether to ask the queues to wake us.
            unless: Called once `wake` takes effect, so that nothing is missed in
                between; if it returns true, there is no sleep.

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

    def pass_on(self) -> None:
        """Pass the wake-up of a queue on to another worker: we have no room for its work."""
        if self._waker is not None:
            self._waker.give_back()

    def close(self) -> None:
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
