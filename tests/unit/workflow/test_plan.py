"""What a workflow of workflows comes to on the wire, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError
from machine.execution import Succeeded, TaskContext, running_task
from machine.registry import Registry
from machine.registry.task import task
from machine.wire.signature import Arg, GroupMeta, Signature, TaskResult
from machine.wire.states import decode_group, encode_group
from machine.workflow.builders import chain, chord, group, new_group
from machine.workflow.pieces import Chain, Chord, Group, GroupChain, TypedSignature, steps_of
from machine.workflow.plan import GATHER, WorkflowPlan, gather, make_plan


@task
def job(*_args: int) -> int:
    return 0


def named(name: str) -> TypedSignature[int]:
    """Return a task whose id will be its name."""
    return job.partial().options(uuid=name)


a, b, c, d, e, f = (named(name) for name in "abcdef")


def planned(piece: Any) -> WorkflowPlan:
    """Return the plan, with ids that can be told apart: names, ``+1`` for collectors, ``g1`` …."""
    collectors, groups = count(1), count(1)

    def complete(own: Signature, _kind: str) -> Signature:
        own.uuid = own.uuid or f"+{next(collectors)}"
        return own

    return make_plan(steps_of(piece), complete, lambda: f"g{next(groups)}")


def shape(signature: Signature) -> str:
    """Return ``id[group/count>callback](what follows)``."""
    text = signature.uuid
    if signature.group_uuid:
        text += f"[{signature.group_uuid}/{signature.group_task_count}"
        text += f">{shape(signature.chord_callback)}]" if signature.chord_callback else "]"
    if signature.on_success:
        text += f"({' '.join(map(shape, signature.on_success))})"
    return text


def shapes(piece: Any) -> list[str]:
    return [shape(head) for head in planned(piece).heads]


# -- on the wire -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "heads"),
    [
        (a | b | c, ["a(b(c))"]),
        (chain(a, chain(b, chain(c))), ["a(b(c))"]),
        (a | group(b, c), ["a(b[g1/2] c[g1/2])"]),
        (group(a, b) | c, ["a[g1/2>c]", "b[g1/2>c]"]),
        (group(a, b) | (c | d), ["a[g1/2>c(d)]", "b[g1/2>c(d)]"]),
        (a | group(b, c) | d | e, ["a(b[g1/2>d(e)] c[g1/2>d(e)])"]),
        (a | chord([b, c], d), ["a(b[g1/2>d] c[g1/2>d])"]),
        (group(a | b, c), ["a(b[g1/2])", "c[g1/2]"]),
        (group(a | b, c) | d, ["a(b[g1/2>d])", "c[g1/2>d]"]),
        (group(group(a, b), c), ["a[g1/3]", "b[g1/3]", "c[g1/3]"]),
        (group(a | group(b, c), d) | e, ["a(b[g1/3>e] c[g1/3>e])", "d[g1/3>e]"]),
        (
            group(chord([a, b], c), d) | e,
            ["a[g2/2>c[g1/2>e]]", "b[g2/2>c[g1/2>e]]", "d[g1/2>e]"],
        ),
        (
            group(a, b) | group(c, d),
            ["a[g2/2>+1(c[g1/2] d[g1/2])]", "b[g2/2>+1(c[g1/2] d[g1/2])]"],
        ),
        (group(a) | group(b) | group(c), ["a[g3/1>+2(b[g2/1>+1(c[g1/1])])]"]),
        (a | group(b) | group(c) | d, ["a(b[g2/1>+1(c[g1/1>d])])"]),
        (group(group(a) | group(b), c) | d, ["a[g2/1>+1(b[g1/2>d])]", "c[g1/2>d]"]),
    ],
    ids=str,
)
def test_a_workflow_becomes(piece: Any, heads: list[str]) -> None:
    assert shapes(piece) == heads


def test_a_group_keeps_the_id_it_was_given_and_one_in_a_group_loses_it() -> None:
    inner, outer = Group([a, b], "group_inner"), Group([c], "group_outer")

    assert shapes(outer | d) == ["c[group_outer/1>d]"]
    assert shapes(Group([inner, outer], "group_all")) == [f"{name}[group_all/3]" for name in "abc"]


def test_what_was_linked_to_a_task_is_kept_at_the_end_and_replaced_before() -> None:
    linked = a.link(f)

    assert shapes(group(linked | b)) == ["a(b[g1/1])"]
    assert shapes(group(b | linked)) == ["b(a[g1/1](f))"]


def test_a_hand_made_members_callback_is_kept_where_there_is_no_other() -> None:
    member = a.replace(chord_callback=Signature(name="own", uuid="own"))

    assert shapes(group(member)) == ["a[g1/1>own]"]
    assert shapes(group(member) | b) == ["a[g1/1>b]"]


def test_nothing_that_was_given_is_written_into() -> None:
    before = [s.replace() for s in (a, b, c, d)]

    planned(group(a | b, c) | group(d))

    assert [a, b, c, d] == before


def test_headers_are_null_in_what_is_nested_as_machinery_writes_them() -> None:
    [head] = planned(a | b | group(c)).heads

    assert head.headers == {}
    assert head.on_success[0].headers is None
    assert head.on_success[0].on_success[0].headers is None


# -- the graph --------------------------------------------------------------------------------


def test_every_group_is_known_with_the_ids_of_the_tasks_that_end_its_members() -> None:
    made = planned(group(a | b, chord([c, d], e)) | group(f))

    found = {tuple(g.uuids): g.at_once for g in made.groups}
    assert found == {("b", "e"): False, ("c", "d"): True, ("f",): False}


def test_the_course_has_each_task_behind_its_causes() -> None:
    made = planned(a | group(b | c, d) | group(e) | f)

    assert made.graph.uuids == ["a", "b", "c", "d", "+1", "e", "f"]
    assert made.graph.first == ["a"]
    assert made.graph.causes == {
        "b": ["a"], "c": ["b"], "d": ["a"], "+1": ["c", "d"], "e": ["+1"], "f": ["e"],
    }  # fmt: skip


def test_the_planned_steps_are_the_steps_as_they_were_written() -> None:
    made = planned(a | group(b | c, d) | e)

    assert [(s.task_name, list(s.uuids), s.at_once) for s in made.steps] == [
        ("job", ["a"], True), ("", ["c", "d"], False), ("job", ["e"], False),
    ]  # fmt: skip


def test_the_latest_eta_counts_wherever_it_stands() -> None:
    made = planned(group(a | b.replace(eta_ns=7), c.replace(eta_ns=5)) | d.replace(eta_ns=6))

    assert made.due_ns == 7


# -- flattening, for any shape -----------------------------------------------------------------


def pieces() -> st.SearchStrategy[Any]:
    """Return workflows of up to a few levels; every task has another id."""
    leaf = st.builds(job.partial)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda many: chain(*many)),
            st.lists(inner, min_size=1, max_size=3).map(Group),
            st.tuples(st.lists(inner, min_size=1, max_size=2), leaf).map(
                lambda both: chord(both[0], both[1])
            ),
        ),
        max_leaves=8,
    )


def everything(heads: list[Signature]) -> Iterator[Signature]:
    """Yield each signature once, however many messages carry it."""
    todo, seen = list(heads), set()
    for one in todo:
        if one.uuid not in seen:
            seen.add(one.uuid)
            yield one
            todo += [*one.on_success, *([one.chord_callback] if one.chord_callback else [])]


@given(pieces())
def test_any_workflow_reaches_all_its_tasks_and_counts_its_groups(piece: Any) -> None:
    made = planned(piece)
    found = list(everything(made.heads))

    assert sorted(one.uuid for one in found) == sorted(made.graph.uuids)
    place = {uuid: index for index, uuid in enumerate(made.graph.uuids)}
    for uuid, causes in made.graph.causes.items():
        assert all(place[cause] < place[uuid] for cause in causes)
    for known in made.groups:
        members = [one for one in found if one.group_uuid == known.group_uuid]
        assert {one.uuid for one in members} == set(known.uuids)
        assert {one.group_task_count for one in members} == {len(known.uuids)}
        assert len({id(one.chord_callback) for one in members}) == 1
        assert not any(one.on_success for one in members)
    assert set(made.graph.first) == set(made.graph.uuids) - set(made.graph.causes)


# -- the collector -----------------------------------------------------------------------------


def test_gather_hands_everything_on_with_its_types_unchanged() -> None:
    args = [Arg("int32", 1), Arg("[]string", None), Arg("float64", 2)]
    token = running_task.set(TaskContext(Signature(name=GATHER, args=args)))

    found = gather(1, [], 2.0)

    running_task.reset(token)
    assert found == Succeeded([TaskResult(arg.type, arg.value) for arg in args])


def test_every_registry_knows_the_collector_and_lists_it_nowhere() -> None:
    registry = Registry()

    assert GATHER in registry
    assert registry.get(GATHER).fn is gather
    assert (registry.names(), list(registry), len(registry)) == ([], [], 0)


def test_the_collectors_name_is_not_to_be_had() -> None:
    with pytest.raises(SignatureError, match=r"^Two tasks are called 'machine\.gather'"):
        Registry().register_tasks({GATHER: lambda: None})


@pytest.mark.parametrize("nested", [False, True])
def test_a_groups_record_says_whether_members_are_sent_later(nested: bool) -> None:
    meta = GroupMeta(group_uuid="group_1", task_uuids=["task_1"], nested=nested)

    encoded = encode_group(meta)

    assert decode_group(encoded).nested is nested
    assert (b"Nested" in encoded) is nested


# -- what is refused ---------------------------------------------------------------------------


def deep(levels: int) -> Group[Any]:
    made: Group[Any] = group(a)
    for _ in range(levels - 1):
        made = group(made)
    return made


def test_groups_nest_only_so_deep() -> None:
    assert shapes(deep(64)) == ["a[g1/1]"]
    with pytest.raises(SignatureError, match=r"^Groups are in each other 65 deep; at most 64\.$"):
        deep(65)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: a | group(),
            "A group in a chain needs at least one member; what follows it would never run.",
        ),
        (
            lambda: group() | group(a),
            "A group in a chain needs at least one member; what follows it would never run.",
        ),
        (lambda: group(group(), a), "A group in a group needs at least one member."),
        (
            lambda: Chain([a, group(b)]),
            (
                "This chain ends with a group, so that it has several results; make it by "
                "chain(…), "
                "by | or as GroupChain(…)."
            ),
        ),
        (
            lambda: GroupChain([a]),
            "This chain does not end with a group; make it by chain(…) or |.",
        ),
        (chain, "A chain needs at least one signature."),
        (
            lambda: Chord(group(a), group(b)),  # type: ignore[arg-type]
            "Only tasks may stand in this chord's place for the callback, not <Group of 1>.",
        ),
        (
            (a | group(b) | c).linked,
            "Only tasks may stand in this chain, not <Group of 1>.",
        ),
        (
            lambda: group(a | b).members("g"),
            "Only tasks may stand in this group, not <Chain job | job>.",
        ),
        (
            lambda: new_group(a | b),  # type: ignore[arg-type]
            "Only tasks may stand in this group, not <Chain job | job>.",
        ),
        (
            lambda: planned(a | group(b, a)),
            "Two tasks of the workflow have the id 'a'; leave it empty, or give each its own.",
        ),
        (
            lambda: planned(Group([a], "x") | Group([b], "x")),
            "Two groups of the workflow have the id 'x'; leave it empty, or give each its own.",
        ),
        (
            lambda: planned(group(job.partial() for _ in range(30)) | big(30) | big(40)),
            (
                "The message of task 'job' would hold 1262 signatures; at most 1000. What follows "
                "a "
                "task travels in its message, and what follows a group in that of each member: let "
                "large groups stand first, or let a task send the rest."
            ),
        ),
        (
            lambda: planned(chain(*(job.partial() for _ in range(66)))),
            (
                "The message of task 'job' would hold 65 tasks one after another; at most 64. Let "
                "the "
                "last task of a shorter chain send the rest."
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(build: Any, text: str) -> None:
    with pytest.raises(SignatureError) as caught:
        build()

    assert str(caught.value) == text


def big(size: int) -> Group[int]:
    return group(job.partial() for _ in range(size))


def test_a_large_group_may_stand_first() -> None:
    made = planned(group(job.partial() for _ in range(2000)) | job.partial())

    assert len(made.heads) == 2000


def test_workflows_print_what_they_are_made_of() -> None:
    assert repr(a | group(b, c)) == "<GroupChain job | <Group of 2>>"
    assert repr(group(a | b) | c | d) == "<Chain <Group of 1> | job | job>"
