"""The broker contract: dead letters are listed, sent again, or deleted; never by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machine.ports.moves import Claim, DeadLetter, Finish

if TYPE_CHECKING:
    from tests.contract.conftest import Bench


def bury(bench: Bench, name: str, reason: str = "it was bad", crash_count: int = 0) -> str:
    """Send, claim, fail and bury a message; return its letter's id."""
    return bury_claim(bench, bench.take_one(name), reason, crash_count)


def bury_claim(bench: Bench, claim: Claim, reason: str = "it was bad", crash_count: int = 0) -> str:
    """Fail and bury what is held; return its letter's id."""
    letter = bench.letter(claim, reason, crash_count)
    bench.make(bench.finish(claim, "FAILURE", letter=letter))
    return letter[0]


def test_without_dead_letters_none_are_shown(bench: Bench) -> None:
    assert bench.broker.dead(bench.queue) == []


def test_a_buried_message_is_shown_with_all_that_is_known(bench: Bench) -> None:
    from_ms = bench.broker.roster(bench.queue).now_ms
    one = bury(bench, "a", "killed 3 workers", 3)
    until_ms = bench.broker.roster(bench.queue).now_ms

    (letter,) = bench.broker.dead(bench.queue)

    expected = DeadLetter(
        one, "killed 3 workers", bench.message("a").payload, 3, "w1", letter.buried_ms
    )
    assert letter == expected
    assert from_ms <= letter.buried_ms <= until_ms
    assert bench.state_of("a") == "FAILURE"
    assert bench.broker.held(bench.queue, "w1") == []
    assert bench.pending() == []


def test_any_bytes_can_be_buried(bench: Bench) -> None:
    worker = bench.worker()
    payload = bytes(range(256))
    bench.broker.enqueue([bench.message("a")._replace(payload=payload)])
    (claim,) = bench.take(worker)

    bench.make(Finish(claim=claim, letter=bench.letter(claim, "not a message")))

    assert [dead.payload for dead in bench.broker.dead(bench.queue)] == [payload]


def test_no_more_letters_are_shown_than_asked(bench: Bench) -> None:
    ids = {bury(bench, name) for name in ("a", "b", "c")}

    some = [letter.id for letter in bench.broker.dead(bench.queue, 2)]

    assert len(some) == 2
    assert set(some) < ids
    assert {letter.id for letter in bench.broker.dead(bench.queue)} == ids


def test_a_replayed_letter_goes_to_the_tail_and_is_gone(bench: Bench) -> None:
    one = bury(bench, "a")
    bench.send("b")

    assert bench.broker.replay(bench.queue, [one]) == 1

    assert bench.pending() == ["b", "a"]
    assert bench.broker.dead(bench.queue) == []


def test_a_letter_is_replayed_once(bench: Bench) -> None:
    one = bury(bench, "a")
    bench.broker.replay(bench.queue, [one])
    before = bench.dump()

    assert bench.broker.replay(bench.queue, [one]) == 0
    assert bench.dump() == before


def test_letters_are_replayed_in_the_order_asked(bench: Bench) -> None:
    a, b, c = (bury(bench, name) for name in ("a", "b", "c"))

    assert bench.broker.replay(bench.queue, [c, "no such letter", a]) == 2

    assert bench.pending() == ["c", "a"]
    assert [letter.id for letter in bench.broker.dead(bench.queue)] == [b]


def test_the_same_letter_asked_for_twice_is_replayed_once(bench: Bench) -> None:
    one = bury(bench, "a")

    assert bench.broker.replay(bench.queue, [one, one]) == 1
    assert bench.pending() == ["a"]


def test_a_replayed_message_starts_with_no_crashes(bench: Bench) -> None:
    bench.send("poison")
    bench.worker("heir")
    convicted: list[Claim] = []
    for worker in ("v1", "v2", "v3"):
        bench.take(bench.worker(worker))
        convicted = bench.reap(worker).convicted
    one = bury_claim(bench, convicted[0], "killed 3 workers", 3)

    bench.broker.replay(bench.queue, [one])

    (claim,) = bench.take("heir")
    assert claim.crash_count == 0
    assert bench.make(bench.finish(claim)) == [1]
    assert bench.state_of("poison") == "SUCCESS"


def test_replaying_forgets_crashes_counted_since_the_burial(bench: Bench) -> None:
    one = bury(bench, "a")
    bench.broker.enqueue([bench.message("a")._replace(pending=b"")])
    bench.worker("heir")
    bench.take(bench.worker("victim"))
    bench.reap("victim")

    bench.broker.replay(bench.queue, [one])

    assert [claim.crash_count for claim in bench.take("heir", 2)] == [0, 0]


def test_a_purged_letter_is_gone_for_good(bench: Bench) -> None:
    a, b = bury(bench, "a"), bury(bench, "b")

    assert bench.broker.purge_dead(bench.queue, [a, "no such letter"]) == 1

    assert [letter.id for letter in bench.broker.dead(bench.queue)] == [b]
    assert bench.broker.purge_dead(bench.queue, [a]) == 0
    assert bench.broker.replay(bench.queue, [a]) == 0
    assert bench.pending() == []


def test_replaying_and_purging_nothing_do_nothing(bench: Bench) -> None:
    one = bury(bench, "a")

    assert bench.broker.replay(bench.queue, []) == 0
    assert bench.broker.purge_dead(bench.queue, []) == 0
    assert [letter.id for letter in bench.broker.dead(bench.queue)] == [one]


def test_letters_of_another_queue_are_not_touched(bench: Bench) -> None:
    one = bury(bench, "a")
    other = f"{bench.queue}.other"

    assert bench.broker.dead(other) == []
    assert bench.broker.replay(other, [one]) == 0
    assert bench.broker.purge_dead(other, [one]) == 0
    assert len(bench.broker.dead(bench.queue)) == 1
