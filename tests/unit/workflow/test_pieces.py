from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError
from machine.execution import Again, Failed, Succeeded
from machine.registry.task import Task, task
from machine.wire.headers import ATTEMPT_HEADER, attempt_of
from machine.wire.signature import Arg, Signature, State, TaskResult, TaskState, copy_signature
from machine.workflow.builders import (
    chain,
    chord,
    group,
    new_chain,
    new_chord,
    new_group,
    new_signature,
)
from machine.workflow.callbacks import choose_follow_ups, make_chord_callback, make_retry
from machine.workflow.pieces import Chain

UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NOW_NS = 1_800_000_000 * 10**9


@task
def add(*args: int) -> int:
    return sum(args)


@task
def multiply(*args: int) -> int:
    product = 1
    for arg in args:
        product *= arg
    return product


@task
def sub(a: int, b: int) -> int:
    return a - b


TASKS: dict[str, Task[Any, Any]] = {"add": add, "multiply": multiply, "sub": sub}


def call(signature: Signature) -> Succeeded:
    """Run a signature as a worker would, without one."""
    args, kwargs = TASKS[signature.name].bind(signature.args)
    return Succeeded([TaskResult("int64", TASKS[signature.name](*args, **kwargs))])


def run_to_the_end(signature: Signature) -> int:
    """Run a signature and its first callback, and that one's, and return the last result."""
    outcome = call(signature)
    after = choose_follow_ups(signature, outcome)
    return run_to_the_end(after[0]) if after else outcome.results[0].value


def ints(*values: int) -> list[Arg]:
    return [Arg("int64", value) for value in values]


def success(uuid: str, *values: int) -> TaskState:
    results = [TaskResult("int64", value) for value in values]
    return TaskState(task_uuid=uuid, state=State.SUCCESS, results=results)


# -- Machinery's constructors ------------------------------------------------------------------


def test_new_signature_has_a_task_id() -> None:
    signature = new_signature("add", ints(1, 1))

    assert re.fullmatch(f"task_{UUID4}", signature.uuid)
    assert (signature.name, signature.args) == ("add", ints(1, 1))


def test_new_chain_links_each_signature_to_the_next() -> None:
    foo, bar, qux = Signature(name="foo"), Signature(name="bar", uuid="task_mine"), add.s(1)

    made = new_chain(foo, bar, qux)

    assert made.signatures == (foo, bar, qux)
    assert foo.on_success == [bar]
    assert bar.on_success == [qux]
    assert qux.on_success == []
    assert bar.uuid == "task_mine"
    assert re.fullmatch(f"task_{UUID4}", foo.uuid)


def test_new_chain_replaces_callbacks_that_were_there() -> None:
    foo, bar = Signature(name="foo", on_success=[Signature(name="old")]), Signature(name="bar")

    new_chain(foo, bar)

    assert foo.on_success == [bar]


def test_new_group_marks_its_members() -> None:
    one, two = Signature(name="one"), Signature(name="two", uuid="task_mine")

    made = new_group(one, two)

    assert re.fullmatch(f"group_{UUID4}", made.group_uuid)
    assert one.group_uuid == two.group_uuid == made.group_uuid
    assert (one.group_task_count, two.group_task_count) == (2, 2)
    assert re.fullmatch(f"task_{UUID4}", one.uuid)
    assert two.uuid == "task_mine"


@pytest.mark.parametrize(("given", "expected"), [("", f"chord_{UUID4}"), ("task_cb", "task_cb")])
def test_new_chord_puts_the_callback_into_every_member(given: str, expected: str) -> None:
    callback = Signature(name="multiply", uuid=given)
    members = new_group(Signature(name="one"), Signature(name="two"))

    made = new_chord(members, callback)

    assert re.fullmatch(expected, callback.uuid)
    assert [s.chord_callback for s in made.group.signatures] == [callback, callback]


# -- builders ----------------------------------------------------------------------------------


def test_copied_copies_every_field() -> None:
    every = {f.name: object() for f in fields(Signature)}
    every |= {"args": [1], "headers": {"a": "b"}}
    signature = Signature(**every)

    copy = copy_signature(signature)

    assert copy == signature
    assert copy.args is not signature.args
    assert copy.headers is not signature.headers


def test_a_chain_copies_the_signatures_it_links() -> None:
    first, second = add.s(1, 1), multiply.partial(4)

    links = chain(first, second).linked()

    assert links[0].on_success == [links[1]]
    assert first.on_success == second.on_success == []


def test_a_chain_written_with_bars_has_all_members_in_order() -> None:
    made = add.s(1, 1) | add.partial(5) | multiply.partial(4)

    assert [s.args for s in made.signatures] == [ints(1, 1), ints(5), ints(4)]
    assert repr(made) == "<Chain add | add | multiply>"


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"^A chain needs at least one signature\.$"):
        Chain([])


def test_a_chord_without_members_is_refused() -> None:
    text = r"^A chord needs at least one member; its callback would never run\.$"
    with pytest.raises(SignatureError, match=text):
        chord([], add.partial())


def test_a_task_in_place_of_a_signature_is_refused_with_the_cure() -> None:
    with pytest.raises(SignatureError) as caught:
        chain(add, add.s(1))  # type: ignore[call-overload]

    assert str(caught.value) == (
        f"<Task add: {__name__}.add> is not a signature; for a task it is task.s(…), or "
        "task.partial(…) when results are to be appended. Chains, groups and chords may stand "
        "there too."
    )


def test_a_group_takes_signatures_or_one_iterable_of_them() -> None:
    listed = group(add.s(1), add.s(2))
    generated = group(add.s(i) for i in (1, 2))

    assert listed.signatures == generated.signatures
    assert len(generated) == 2
    assert repr(listed) == "<Group of 2>"


def test_members_of_a_group_are_copies_that_share_id_count_and_callback() -> None:
    made = group(add.s(1), add.s(2))
    callback = Signature(name="cb")

    members = made.members("group_1", callback)

    assert [(m.group_uuid, m.group_task_count, m.chord_callback) for m in members] == [
        ("group_1", 2, callback)
    ] * 2
    assert made.signatures[0].group_uuid == ""


def test_a_group_with_a_bar_is_a_chord() -> None:
    made = group(add.s(1, 1), add.s(5, 5)) | multiply.partial(3)

    assert made.callback.name == "multiply"
    assert repr(made) == "<Chord of 2 | multiply>"


def test_hand_made_signatures_cannot_send_themselves() -> None:
    with pytest.raises(SignatureError) as caught:
        new_chain(Signature(name="a")).send()

    assert str(caught.value) == (
        "Nothing here knows a server to send to: these signatures were made by hand. "
        "Use server.send_task(), send_chain(), send_group() or send_chord()."
    )


# -- options -----------------------------------------------------------------------------------


def test_options_change_a_copy() -> None:
    signature = add.s(1)

    changed = signature.options(
        queue="slow", retry_count=3, retry_timeout=5, priority=9, immutable=True,
        headers={"a": "b"}, ignore_when_task_not_registered=True,
    )  # fmt: skip

    assert signature == add.s(1)
    assert (changed.routing_key, changed.retry_count, changed.retry_timeout) == ("slow", 3, 5)
    assert (changed.priority, changed.immutable, changed.headers) == (9, True, {"a": "b"})
    assert changed.ignore_when_task_not_registered is True
    assert changed.args == signature.args


def test_headers_given_as_an_option_are_added() -> None:
    signature = add.s(1).options(headers={"a": "1", "b": "1"}).options(headers={"b": "2"})

    assert signature.headers == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("eta", "ns"),
    [
        (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 10**9),
        (datetime(2026, 11, 20, 15, 15, 26, 418773, UTC), 1795187726_418773_000),
        (datetime(1970, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))), 0),
    ],
)
def test_an_eta_becomes_unix_nanoseconds_exactly(eta: datetime, ns: int) -> None:
    assert add.s(1).options(eta=eta).eta_ns == ns


@pytest.mark.parametrize("countdown", [90.5, timedelta(seconds=90.5)])
def test_a_countdown_is_an_eta_from_now(
    countdown: float | timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: NOW_NS)

    assert add.s(1).options(countdown=countdown).eta_ns == NOW_NS + 90_500_000_000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"eta": datetime(2026, 1, 2)},  # noqa: DTZ001
            "eta 2026-01-02T00:00:00 has no time zone; say which, as in datetime.now(UTC).",
        ),
        (
            {"eta": datetime(2026, 1, 2, tzinfo=UTC), "countdown": 1},
            "Both eta and countdown are given; they say the same, so give one.",
        ),
        ({"countdown": float("nan")}, "countdown nan is not a number of seconds."),
        ({"priority": 256}, "priority 256 is out of bounds; give between 0 and 255."),
        ({"retry_count": -1}, "retry_count -1 is out of bounds; give 0 or more."),
        ({"retry_timeout": -1}, "retry_timeout -1 is out of bounds; give 0 or more."),
    ],
)
def test_an_option_out_of_bounds_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SignatureError) as caught:
        add.s(1).options(**options)

    assert str(caught.value) == text


def test_callbacks_are_linked_to_a_copy() -> None:
    signature, then, otherwise = add.s(1), multiply.partial(2), add.partial()

    linked = signature.link(then).link_error(otherwise)

    assert (linked.on_success, linked.on_error) == ([then], [otherwise])
    assert (signature.on_success, signature.on_error) == ([], [])


# -- what follows an outcome -------------------------------------------------------------------


def test_results_are_appended_to_the_arguments_of_a_callback() -> None:
    parent = Signature(
        name="add", uuid="task_1", on_success=[Signature(name="sub", args=ints(100))]
    )

    [callback] = choose_follow_ups(parent, Succeeded([TaskResult("int64", 2)]))

    assert callback.args == ints(100, 2)
    assert callback.headers == {"x-correlation-id": "task_1"}
    assert parent.on_success[0].args == ints(100)


def test_all_results_are_passed_on_in_order_to_every_callback() -> None:
    parent = Signature(name="a", uuid="task_1", on_success=[Signature(name=n) for n in "bc"])

    after = choose_follow_ups(
        parent, Succeeded([TaskResult("string", "x"), TaskResult("[]uint8", "aGk=")])
    )

    expected = [Arg("string", "x"), Arg("[]uint8", "aGk=")]
    assert [(s.name, s.args) for s in after] == [("b", expected), ("c", expected)]


def test_an_immutable_parent_passes_nothing_on() -> None:
    parent = Signature(
        name="a",
        uuid="task_1",
        immutable=True,
        on_success=[Signature(name="b", args=ints(7), immutable=False)],
    )

    [callback] = choose_follow_ups(parent, Succeeded([TaskResult("int64", 2)]))

    assert callback.args == ints(7)


def test_an_immutable_callback_still_gets_its_parents_results() -> None:
    parent = Signature(name="a", uuid="t", on_success=[Signature(name="b", immutable=True)])

    [callback] = choose_follow_ups(parent, Succeeded([TaskResult("int64", 2)]))

    assert callback.args == ints(2)


def test_an_error_is_the_first_argument_of_an_error_callback() -> None:
    parent = Signature(
        name="a",
        uuid="task_1",
        on_success=[Signature(name="never")],
        on_error=[Signature(name="onerr", args=[Arg("string", "extra")])],
    )

    [callback] = choose_follow_ups(parent, Failed("boom"))

    assert (callback.name, callback.args) == (
        "onerr",
        [Arg("string", "boom"), Arg("string", "extra")],
    )


def test_a_retry_is_followed_by_nothing() -> None:
    parent = Signature(name="a", on_success=[Signature(name="b")], on_error=[Signature(name="c")])

    assert choose_follow_ups(parent, Again(1.0, "again", counted=True)) == []


def test_callbacks_without_an_id_get_the_same_one_each_time() -> None:
    parent = Signature(
        name="a",
        uuid="task_1",
        on_success=[Signature(name="b"), Signature(name="b"), Signature(name="b", uuid="task_own")],
        on_error=[Signature(name="b")],
    )

    once = [s.uuid for o in (Succeeded([]), Failed("x")) for s in choose_follow_ups(parent, o)]
    again = [s.uuid for o in (Succeeded([]), Failed("x")) for s in choose_follow_ups(parent, o)]

    assert once == again
    assert len(set(once)) == 4
    assert once[2] == "task_own"
    assert all(re.fullmatch(r"task_[0-9a-f-]{36}", uuid) for uuid in (*once[:2], once[3]))


def test_callbacks_of_different_parents_get_different_ids() -> None:
    uuids = {
        choose_follow_ups(
            Signature(name="a", uuid=u, on_success=[Signature(name="b")]), Succeeded([])
        )[0].uuid
        for u in ("task_1", "task_2")
    }

    assert len(uuids) == 2


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: add.s(1, 1) | add.s(5, 5) | multiply.s(4), 48),
        (lambda: add.s(2, 2) | add.s(5, 6) | multiply.s(4), 60),
        (lambda: add.s(1, 1) | sub.partial(100), 98),
    ],
)
def test_chains_come_to_what_machinery_says(build: Callable[[], Chain[int]], expected: int) -> None:
    assert run_to_the_end(build().linked()[0]) == expected


# -- retries -----------------------------------------------------------------------------------


def test_a_counted_retry_waits_fibonacci_seconds_and_uses_up_one() -> None:
    signature = Signature(
        name="a", uuid="task_1", routing_key="q", group_uuid="group_1", retry_count=3,
        on_success=[Signature(name="b")], on_error=[Signature(name="c")],
    )  # fmt: skip
    seen = []

    for _ in range(3):
        signature = make_retry(signature, Again(99.0, "x", counted=True), NOW_NS)
        seen.append((signature.retry_count, signature.retry_timeout, signature.eta_ns))

    assert seen == [
        (2, 1, NOW_NS + 1 * 10**9),
        (1, 2, NOW_NS + 2 * 10**9),
        (0, 3, NOW_NS + 3 * 10**9),
    ]
    assert (signature.uuid, signature.routing_key, signature.group_uuid) == (
        "task_1",
        "q",
        "group_1",
    )
    assert [s.name for s in signature.on_success + signature.on_error] == ["b", "c"]


def test_retry_later_waits_its_own_delay_and_uses_up_nothing() -> None:
    signature = Signature(name="a", retry_count=3, retry_timeout=5)

    again = make_retry(signature, Again(1.5, "later", counted=False), NOW_NS)

    assert (again.retry_count, again.retry_timeout) == (3, 5)
    assert again.eta_ns == NOW_NS + 1_500_000_000


def test_attempts_are_counted_in_a_header_of_the_copy() -> None:
    first = Signature(name="a", headers={"uber-trace-id": "1"})

    second = make_retry(first, Again(0, "x", counted=False), NOW_NS)
    third = make_retry(second, Again(0, "x", counted=True), NOW_NS)

    assert [attempt_of(s) for s in (first, second, third)] == [1, 2, 3]
    assert third.headers == {"uber-trace-id": "1", ATTEMPT_HEADER: "3"}
    assert first.headers == {"uber-trace-id": "1"}


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1.5", "²", "9" * 50, 3, None])
def test_an_attempt_header_that_makes_no_sense_counts_as_the_first(text: object) -> None:
    assert attempt_of(Signature(name="a", headers={ATTEMPT_HEADER: text})) == 1


# -- chords ------------------------------------------------------------------------------------


def test_a_chord_callback_gets_its_own_arguments_then_all_results_in_group_order() -> None:
    callback = Signature(name="multiply", uuid="chord_1", args=ints(3))

    ready = make_chord_callback(callback, [success("task_1", 2), success("task_2", 10)])

    assert isinstance(ready, Signature)
    assert ready.args == ints(3, 2, 10)
    assert call(ready).results[0].value == 60
    assert callback.args == ints(3)


def test_a_chord_over_three_sums_comes_to_88() -> None:
    members = [add.s(1, 1), add.s(2, 2), add.s(5, 6)]
    states = [success(f"task_{i}", call(s).results[0].value) for i, s in enumerate(members)]

    ready = make_chord_callback(multiply.partial(), states)

    assert isinstance(ready, Signature)
    assert call(ready).results[0].value == 88


def test_an_immutable_chord_callback_gets_its_own_arguments_only() -> None:
    callback = Signature(name="multiply", uuid="chord_1", args=ints(3), immutable=True)

    ready = make_chord_callback(callback, [success("task_1", 2)])

    assert isinstance(ready, Signature)
    assert ready.args == ints(3)


def test_the_failures_of_many_members_fit_into_one_error() -> None:
    states = [
        TaskState(task_uuid=f"task_{n}", state=State.FAILURE, error="x" * 10_000)
        for n in range(100)
    ]

    failed = make_chord_callback(Signature(name="a", uuid="chord_1"), states)

    assert isinstance(failed, Failed)
    assert failed.error.startswith("100 of 100 chord members failed: task_0: x")
    assert all(f"; task_{n}: x" in failed.error for n in range(1, 100))
    assert len(failed.error) < 8192


def test_members_without_results_add_no_arguments() -> None:
    ready = make_chord_callback(
        Signature(name="a", uuid="chord_1"), [success("task_1"), success("t", 1)]
    )

    assert isinstance(ready, Signature)
    assert ready.args == ints(1)


def test_a_chord_callback_without_an_id_gets_the_same_one_each_time() -> None:
    states = [success("task_1"), success("task_2")]

    first, second = (make_chord_callback(Signature(name="a"), states) for _ in range(2))

    assert isinstance(first, Signature)
    assert re.fullmatch(r"chord_[0-9a-f-]{36}", first.uuid)
    assert first == second


FAILED = TaskState(task_uuid="task_f", state=State.FAILURE, error="oops")


@pytest.mark.parametrize(
    ("states", "uuids", "text"),
    [
        ([success("a"), FAILED, None], (), "chord member task_f failed: oops"),
        ([None, FAILED], ("a", "task_f"), "chord member task_f failed: oops"),
        ([success("a"), None], ("a", "b"), "chord member b has no result any more"),
        ([success("a"), None], (), "chord member 2 of 2 has no result any more"),
        (
            [TaskState(task_uuid="a", state=State.STARTED)],
            (),
            "chord member a has not ended: it is STARTED",
        ),
    ],
)
def test_a_chord_cannot_run_over_a_member_that_did_not_succeed(
    states: list[TaskState | None], uuids: tuple[str, ...], text: str
) -> None:
    assert make_chord_callback(Signature(name="cb"), states, uuids) == Failed(text)


# -- algebra -----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3), min_size=1, max_size=8))
def test_any_chain_passes_on_each_result_exactly_once(args: list[list[int]]) -> None:
    links = Chain([add.s(*each) for each in args]).linked()

    for before, after in pairwise(links):
        [sent] = choose_follow_ups(before, Succeeded([TaskResult("int64", 1)]))
        assert sent.args == [*after.args, Arg("int64", 1)]


@given(st.integers(0, 12), st.integers(0, 100))
def test_retries_always_end_and_never_wait_less_than_before(count: int, start: int) -> None:
    signature = Signature(name="a", retry_count=count, retry_timeout=start)
    delays = []

    while signature.retry_count:
        signature = make_retry(signature, Again(0.0, "x", counted=True), 0)
        delays.append(signature.retry_timeout)

    assert len(delays) == count
    assert all(a < b for a, b in pairwise([start, *delays]))
    assert attempt_of(signature) == count + 1
