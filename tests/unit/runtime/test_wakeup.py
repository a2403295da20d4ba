"""
Rings: heard while somebody listens, and never written to somebody else's file.
"""

from __future__ import annotations

import os

from machine.runtime.wakeup import Doorbell


def no_waker() -> None:
    message = "no queue is asked to wake us here"
    raise AssertionError(message)


def test_a_ring_before_the_sleep_ends_it() -> None:
    bell = Doorbell(no_waker)  # type: ignore[arg-type]

    bell.ring()
    bell.sleep(3600)

    bell.close()


def test_a_closed_bell_writes_to_nobody_who_has_its_number_now() -> None:
    bell = Doorbell(no_waker)  # type: ignore[arg-type]
    bell.close()
    taken = [os.pipe() for _ in range(2)]
    for reader, _ in taken:
        os.set_blocking(reader, False)

    bell.ring()

    heard = []
    for reader, writer in taken:
        os.close(writer)
        heard.append(os.read(reader, 1))
        os.close(reader)
    assert heard == [b"", b""]


def test_closing_twice_closes_nothing_else() -> None:
    bell = Doorbell(no_waker)  # type: ignore[arg-type]
    bell.close()
    reader, writer = os.pipe()

    bell.close()

    os.write(writer, b"x")
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
