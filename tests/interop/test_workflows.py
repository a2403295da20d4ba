"""Chains, groups, chords and callbacks whose parts are run by different languages."""

from __future__ import annotations

import pytest

from tests.interop.callers import Job, fresh, ints, texts
from tests.interop.crossing import GO_QUEUE, PY_QUEUE, Crossing

QUEUES = {"go": GO_QUEUE, "py": PY_QUEUE}
OTHER = {"go": "py", "py": "go"}
by_either = pytest.mark.parametrize("sender", ["go", "py"])
in_either = pytest.mark.parametrize("language", ["go", "py"])
MUTEX = "TriggerChordMutex"


def alternating(first: str, length: int) -> list[str]:
    """Return the queues of tasks that go to one language and the other in turn."""
    return [QUEUES[first if i % 2 == 0 else OTHER[first]] for i in range(length)]


# -- chains and callbacks ----------------------------------------------------------------------


@by_either
@in_either
def test_a_chain_goes_from_one_language_to_the_other(
    lively: Crossing, sender: str, language: str
) -> None:
    caller, queues = lively.caller(sender), alternating(language, 5)

    sent = [
        caller.chain(
            *(Job(name="add", args=ints(n * 10**i), queue=q) for i, q in enumerate(queues))
        )
        for n in range(200)
    ]

    assert [caller.get_chain(one).values for one in sent] == [[n * 11111] for n in range(200)]
    # What one language sent, the other can wait for by the ids.
    other = lively.caller(OTHER[sender])
    assert [other.get_chain(one).values for one in sent] == [[n * 11111] for n in range(200)]


@by_either
@in_either
def test_results_are_appended_whoever_runs_the_parent(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    names = "abcd"

    sent = caller.chain(
        *(
            Job(name="joined", args=texts(name), queue=queue)
            for name, queue in zip(names, alternating(language, 4), strict=True)
        )
    )

    assert caller.get_chain(sent).values == ["d|c|b|a"]


@by_either
@in_either
def test_several_results_of_several_types_cross(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    here, there = alternating(language, 2)

    sent = caller.chain(Job(name="several", queue=here), Job(name="relabel", queue=there))

    answer = caller.get_chain(sent)
    assert answer.types == ["string", "int64", "float64", "bool", "[]uint8", "[]string"]
    assert answer.values == ["two\nlines <&>", -7, 0.5, True, b"\x00\xff", ["a", ""]]


@by_either
def test_a_float_from_python_stays_a_float_in_go(lively: Crossing, sender: str) -> None:
    caller = lively.caller(sender)

    sent = caller.chain(
        Job(name="halve", args=[("float64", 4.0)], queue=PY_QUEUE),
        Job(name="halve", queue=GO_QUEUE),
        Job(name="halve", queue=PY_QUEUE),
    )

    assert caller.get_chain(sent).values == [0.5]


def test_a_whole_number_annotated_as_a_float_is_one_in_go(lively: Crossing) -> None:
    caller = lively.go

    sent = caller.chain(Job(name="whole_float", queue=PY_QUEUE), Job(name="halve", queue=GO_QUEUE))

    answer = caller.get_chain(sent)
    assert answer.error == ""
    assert answer.values == [1.0]


def test_an_empty_list_annotated_as_strings_is_one_in_go(lively: Crossing) -> None:
    caller = lively.go

    sent = caller.chain(
        Job(name="no_words", queue=PY_QUEUE), Job(name="echo_slice_string", queue=GO_QUEUE)
    )

    answer = caller.get_chain(sent)
    assert answer.error == ""
    assert answer.values == [[]]


@by_either
@in_either
def test_an_immutable_parent_keeps_its_results(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    here, there = alternating(language, 2)

    sent = caller.chain(
        Job(name="joined", args=texts("kept"), queue=here, immutable=True),
        Job(name="joined", args=texts("own"), queue=there),
    )

    assert caller.get_chain(sent).values == ["own"]


@by_either
@in_either
def test_an_error_is_prepended_to_an_error_callback_in_the_other_language(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    here, there = alternating(language, 2)
    names, prefix = ["fail", "panics"], fresh("task")
    jobs = [
        Job(
            name=names[n % 2],
            args=texts(f"boom {n} <é>"),
            queue=here,
            on_error=[
                Job(name="joined", uuid=f"{prefix}-error-{n}", args=texts("own"), queue=there),
                Job(name="joined", uuid=f"{prefix}-second-{n}", queue=here),
            ],
        )
        for n in range(200)
    ]

    uuids = caller.send(*jobs)

    assert [answer.error for answer in caller.get(uuids)] == [f"boom {n} <é>" for n in range(200)]
    told = [f"{prefix}-{which}-{n}" for which in ("error", "second") for n in range(200)]
    lively.wait_for_state("SUCCESS", *told)
    assert [a.values for a in caller.get(f"{prefix}-error-{n}" for n in range(200))] == [
        [f"boom {n} <é>|own"] for n in range(200)
    ]
    assert [a.values for a in caller.get(f"{prefix}-second-{n}" for n in range(200))] == [
        [f"boom {n} <é>"] for n in range(200)
    ]


@by_either
@in_either
def test_a_chain_ends_at_the_member_that_fails(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    first, second, third = alternating(language, 3)

    sent = caller.chain(
        Job(name="joined", args=texts("x"), queue=first),
        Job(name="fail", queue=second),
        Job(name="joined", queue=third),
    )

    assert caller.get_chain(sent).error == "x"
    assert lively.caller(OTHER[sender]).get_chain(sent).error == "x"
    if language == "py":  # Go ran the second, and tells the third nothing
        assert lively.state(sent.uuids[2]) == ""
    else:
        text = f"not run: fail {sent.uuids[1]} failed: x"
        assert lively.go.get(sent.uuids[2:])[0].error == text


# -- groups ------------------------------------------------------------------------------------


@by_either
def test_a_group_is_spread_over_both_languages(lively: Crossing, sender: str) -> None:
    caller = lively.caller(sender)
    queues = alternating("go", 1000)

    sent = caller.group(
        *(Job(name="count", args=ints(n), queue=queue) for n, queue in enumerate(queues))
    )

    expected = [["go" if n % 2 == 0 else "py", n] for n in range(1000)]
    assert [answer.values for answer in caller.get(sent.uuids)] == expected
    assert [answer.values for answer in lively.caller(OTHER[sender]).get(sent.uuids)] == expected
    assert lively.go.is_completed(sent)
    assert lively.py.server.group_result(sent.group).get(1) == [tuple(one) for one in expected]
    assert lively.runs(*sent.uuids) == [1] * 1000


# -- chords whose members are all in one language ----------------------------------------------


@by_either
@in_either
def test_a_chord_of_one_language_calls_back_in_the_other(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    size = 20

    sent = [
        caller.chord(
            Job(name="count_sum", args=ints(n), queue=QUEUES[OTHER[language]]),
            *(Job(name="add", args=ints(i), queue=QUEUES[language]) for i in range(size)),
        )
        for n in range(50)
    ]

    expected = [[n + sum(range(size))] for n in range(50)]
    assert [caller.get_chord(one).values for one in sent] == expected
    other = lively.caller(OTHER[sender])
    assert [other.get_chord(one).values for one in sent] == expected
    assert lively.runs(*(one.uuids[-1] for one in sent)) == [1] * 50
    assert [lively.document(one.group)["ChordTriggered"] for one in sent] == [True] * 50
    assert not lively.raw.exists(MUTEX)


@by_either
@in_either
def test_results_reach_a_callback_in_group_order(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    gate = fresh("gate")
    jobs = [
        Job(name="gated", args=[*texts(f"{gate}_{n}"), *ints(n)], queue=QUEUES[language])
        for n in range(8)
    ]

    sent = caller.chord(Job(name="collected", queue=QUEUES[OTHER[language]]), *jobs)

    for n in (5, 1, 7, 0, 2, 6, 3, 4):
        lively.open(f"{gate}_{n}")
        lively.wait_for_state("SUCCESS", sent.uuids[n])
    assert caller.get_chord(sent).values == [list(range(8))]


@by_either
@in_either
def test_an_immutable_callback_gets_only_its_own_arguments(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    callback = Job(name="add", args=ints(5), queue=QUEUES[OTHER[language]], immutable=True)

    sent = caller.chord(
        callback, *(Job(name="add", args=ints(n), queue=QUEUES[language]) for n in range(3))
    )

    assert caller.get_chord(sent).values == [5]


@by_either
@in_either
def test_a_failed_member_is_what_the_chord_comes_to(
    lively: Crossing, sender: str, language: str
) -> None:
    caller = lively.caller(sender)
    queue = QUEUES[language]

    sent = caller.chord(
        Job(name="count_sum", queue=QUEUES[OTHER[language]]),
        Job(name="add", args=ints(1), queue=queue),
        Job(name="fail", args=texts("no luck"), queue=queue),
        Job(name="add", args=ints(2), queue=queue),
    )

    assert caller.get_chord(sent).error == "no luck"
    assert lively.caller(OTHER[sender]).get_chord(sent).error == "no luck"
    lively.wait_for_state("SUCCESS", sent.uuids[0], sent.uuids[2])
    assert lively.runs(sent.uuids[-1]) == [0]


@by_either
def test_go_sees_that_a_callback_will_never_run(lively: Crossing, sender: str) -> None:
    caller, told = lively.caller(sender), fresh("task")
    callback = Job(
        name="count_sum",
        queue=GO_QUEUE,
        on_error=[Job(name="joined", uuid=told, args=texts("own"), queue=GO_QUEUE)],
    )

    sent = caller.chord(
        callback,
        Job(name="add", args=ints(1), queue=PY_QUEUE),
        Job(name="fail", args=texts("no luck"), queue=PY_QUEUE),
    )

    text = f"chord member {sent.members[1]} failed: no luck"
    assert lively.go.get(sent.uuids[-1:])[0].error == text
    lively.wait_for_state("SUCCESS", told)
    assert lively.go.get([told])[0].values == [f"{text}|own"]
    assert lively.go.is_completed(sent)
