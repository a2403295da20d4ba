"""
Rings: heard while somebody listens, and never written to somebody else's file.
"""

from __future__ import annotations

import os

from machine.runtime.wakeup import Wakeup


def no_waker() -> None:
    message = "no queue is asked to wake us here"
    raise AssertionError(message)


def test_a_ring_before_the_sleep_ends_it() -> None:
    wakeup = Wakeup(no_waker)  # type: ignore[arg-type]

    wakeup.wake()
    wakeup.sleep(3600)

    wakeup.close()


def test_a_closed_bell_writes_to_nobody_who_has_its_number_now() -> None:
    wakeup = Wakeup(no_waker)  # type: ignore[arg-type]
    wakeup.close()
    taken = [os.pipe() for _ in range(2)]
    for reader, _ in taken:
        os.set_blocking(reader, False)

    wakeup.wake()

    heard = []
    for reader, writer in taken:
        os.close(writer)
        heard.append(os.read(reader, 1))
        os.close(reader)
    assert heard == [b"", b""]


def test_closing_twice_closes_nothing_else() -> None:
    wakeup = Wakeup(no_waker)  # type: ignore[arg-type]
    wakeup.close()
    reader, writer = os.pipe()

    wakeup.close()

    os.write(writer, b"x")
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
