"""
Chords whose members are finished by both languages: the callback fires once, whoever is last.

Python looks for what Go has finished only with `interop_groups`; all workers here have it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.interop.callers import Job, Sent, fresh, ints, texts
from tests.interop.crossing import BOTH_QUEUE, GO_QUEUE, PY_QUEUE, Crossing

QUEUES = {"go": GO_QUEUE, "py": PY_QUEUE}
OTHER = {"go": "py", "py": "go"}
MUTEX = "TriggerChordMutex"
#: How long a chord that nobody fires is waited for.
SOON_S = 4.0


def gated(gate: str, queue: str, numbers: Sequence[int]) -> list[Job]:
    """Return members that end when the gate opens."""
    return [Job(name="gated", args=[*texts(gate), *ints(n)], queue=queue) for n in numbers]


def fired_once(crossing: Crossing, *sent: Sent) -> bool:
    """Say whether all is as after one firing of each chord, once nobody looks after them."""
    crossing.wait_until(lambda: not armed(crossing, *sent), "nobody has a chord to fire", SOON_S)
    triggered = all(crossing.document(one.group)["ChordTriggered"] for one in sent)
    runs = crossing.runs(*(one.uuids[-1] for one in sent))
    return triggered and runs == [1] * len(sent) and not crossing.raw.exists(MUTEX)


def armed(crossing: Crossing, *sent: Sent) -> list[str]:
    """Return the groups that Python still has a chord of."""
    homes = list(crossing.raw.scan_iter("{*}:chords"))
    return [one.group for one in sent for home in homes if crossing.raw.hexists(home, one.group)]


class Halves:
    """A chord with one half of its members in each language, each behind a gate."""

    def __init__(self, mixing: Crossing, sender: str, back: str) -> None:
        self.mixing, self.caller = mixing, mixing.caller(sender)
        self.gates = {"go": fresh("go"), "py": fresh("py")}
        go = gated(self.gates["go"], GO_QUEUE, [1, 2])
        py = gated(self.gates["py"], PY_QUEUE, [10, 20])
        callback = Job(name="count_sum", args=ints(100), queue=back)
        self.sent = self.caller.chord(callback, go[0], py[0], go[1], py[1])
        self.members = {"go": self.sent.members[::2], "py": self.sent.members[1::2]}

    def end(self, language: str) -> None:
        """Let one half end, and wait until it has."""
        self.mixing.open(self.gates[language])
        self.mixing.wait_for_state("SUCCESS", *self.members[language])


def four_halves(mixing: Crossing) -> list[Halves]:
    """Return a chord for each sender and each place of the callback."""
    return [Halves(mixing, sender, back) for sender in ("go", "py") for back in QUEUES.values()]


# -- who is last -------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["go", "py"])
def test_the_callback_fires_once_whoever_is_last(mixing: Crossing, last: str) -> None:
    chords = four_halves(mixing)

    for halves in chords:
        halves.end(OTHER[last])
        halves.end(last)

    answers = [halves.caller.get_chord(halves.sent, SOON_S) for halves in chords]
    assert [answer.values for answer in answers] == [[133]] * 4
    assert fired_once(mixing, *(halves.sent for halves in chords))


def test_both_end_at_the_same_moment(mixing: Crossing) -> None:
    sent: list[Sent] = []
    for _ in range(20):
        gate = fresh("gate")
        members = gated(gate, GO_QUEUE, [1]) + gated(gate, PY_QUEUE, [2])
        callback = Job(name="count_sum", args=ints(100), queue=GO_QUEUE)
        one = mixing.go.chord(callback, *members)
        mixing.wait_until(
            lambda one=one: mixing.runs(*one.members) == [1, 1], "both stand at the gate"
        )
        mixing.open(gate)
        sent.append(one)

    answers = [mixing.go.get_chord(one, SOON_S) for one in sent]

    assert [answer.values for answer in answers] == [[103]] * 20
    assert fired_once(mixing, *sent)


def test_many_at_once(mixing: Crossing) -> None:
    size = 20
    sent = [
        mixing.caller(("go", "py")[n % 2]).chord(
            Job(name="count_sum", args=ints(n), queue=(PY_QUEUE, GO_QUEUE)[n % 4 // 2]),
            *(
                Job(name="add", args=ints(i), queue=(GO_QUEUE, PY_QUEUE)[i % 2])
                for i in range(size)
            ),
        )
        for n in range(100)
    ]

    answers = [mixing.go.get_chord(one, SOON_S) for one in sent]

    assert [answer.values for answer in answers] == [[n + sum(range(size))] for n in range(100)]
    assert fired_once(mixing, *sent)


def test_one_list_for_all_members(crossing: Crossing) -> None:
    crossing.both_workers(go=BOTH_QUEUE, py=BOTH_QUEUE, INTEROP_GROUPS="true")
    sent = [
        caller.chord(
            Job(name="count_sum", args=ints(n), queue=BOTH_QUEUE),
            *(Job(name="add", args=ints(i), queue=BOTH_QUEUE) for i in range(10)),
        )
        for n in range(25)
        for caller in (crossing.go, crossing.py)
    ]

    answers = [crossing.go.get_chord(one, SOON_S) for one in sent]

    assert [answer.values for answer in answers] == [[n + 45] for n in range(25) for _ in "gp"]
    assert fired_once(crossing, *sent)


def test_all_in_python_with_mixed_groups_allowed(mixing: Crossing) -> None:
    sent = [
        caller.chord(
            Job(name="count_sum", args=ints(n), queue=GO_QUEUE),
            *(Job(name="add", args=ints(i), queue=PY_QUEUE) for i in range(10)),
        )
        for n in range(25)
        for caller in (mixing.go, mixing.py)
    ]

    answers = [mixing.go.get_chord(one) for one in sent]

    assert [answer.values for answer in answers] == [[n + 45] for n in range(25) for _ in "gp"]
    assert fired_once(mixing, *sent)


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["go", "py"])
@pytest.mark.parametrize("failing", ["go", "py"])
def test_a_failed_member_fails_the_callback(mixing: Crossing, failing: str, last: str) -> None:
    gates = {"go": fresh("go"), "py": fresh("py")}
    well, told = OTHER[failing], fresh("task")
    on_error = [Job(name="joined", uuid=told, queue=PY_QUEUE)]
    sent = mixing.go.chord(
        Job(name="count_sum", queue=PY_QUEUE, on_error=on_error),
        Job(name="gated_fail", args=texts(gates[failing], "no luck"), queue=QUEUES[failing]),
        *gated(gates[well], QUEUES[well], [1]),
    )
    ends = {failing: ("FAILURE", sent.members[0]), well: ("SUCCESS", sent.members[1])}

    for language in (OTHER[last], last):
        mixing.open(gates[language])
        mixing.wait_for_state(*ends[language])

    assert mixing.go.get_chord(sent).error == "no luck"
    assert mixing.py.get_chord(sent).error == "no luck"
    text = f"chord member {sent.members[0]} failed: no luck"
    assert mixing.go.get(sent.uuids[-1:])[0].error == text
    mixing.wait_for_state("SUCCESS", told)
    assert mixing.py.get([told])[0].values == [text]
    assert mixing.runs(sent.uuids[-1]) == [0]


# -- the lock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [PY_QUEUE, GO_QUEUE])
def test_python_waits_for_whoever_holds_the_lock(mixing: Crossing, back: str) -> None:
    halves = Halves(mixing, "go", back)
    halves.end("go")
    mixing.raw.set(MUTEX, "somebody", px=60_000)

    halves.end("py")

    # Whoever got past the lock would have done so with its last member's end.
    assert mixing.go.get(halves.sent.uuids[-1:], 0.5)[0].error == "Timeout reached"
    assert not mixing.document(halves.sent.group)["ChordTriggered"]
    mixing.raw.delete(MUTEX)
    assert mixing.go.get_chord(halves.sent, SOON_S).values == [133]
    assert mixing.runs(halves.sent.uuids[-1]) == [1]


def test_python_does_not_fire_what_go_has_triggered(mixing: Crossing) -> None:
    halves = Halves(mixing, "go", PY_QUEUE)
    halves.end("go")
    meta = mixing.document(halves.sent.group) | {"ChordTriggered": True}
    text = json.dumps(meta, separators=(",", ":"))
    mixing.raw.set(halves.sent.group, text, ex=3600)

    halves.end("py")

    mixing.wait_until(lambda: not armed(mixing, halves.sent), "it is let go")
    assert mixing.state(halves.sent.uuids[-1]) == ""
