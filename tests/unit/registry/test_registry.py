from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import (
    ConfigError,
    MachineError,
    SignatureError,
    TaskNotRegistered,
    WireError,
)
from machine.execution import TaskContext, current_task, running_task
from machine.registry import Registry
from machine.registry import task as registry_module
from machine.registry.options import TaskKeywords, TaskOptions
from machine.registry.task import AsyncTask, Task, task
from machine.wire.headers import ON_CRASH_HEADER
from machine.wire.signature import Arg, Signature


@task
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@task
def total(*xs: int) -> int:
    return sum(xs)


@task
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return f"{url} {timeout}".encode()


@task
def mail(to: str, copies: int = 1, *tags: str, subject: str, urgent: bool = False) -> str:
    return f"{to} {copies} {tags} {subject} {urgent}"


@task
def scale(factor: float, values: list[float]) -> list[float]:
    return [factor * value for value in values]


@task(
    name="custom.name",
    queue="slow",
    retry_count=2,
    retry_timeout=5,
    on_crash="fail",
    expires=60,
    unique=True,
    on_duplicate="refuse",
)
async def custom() -> None: ...


@task
def mean(*xs: float) -> float:
    return math.fsum(xs) / len(xs)


@task
def anything(value, other=None):
    return [value, other]


# -- a task is its function --------------------------------------------------------------------


def test_a_task_is_called_like_its_function() -> None:
    assert add(1, y=2) == 3
    assert asyncio.run(fetch("u", timeout=2)) == b"u 2"  # type: ignore[arg-type]


def test_a_task_looks_like_its_function() -> None:
    assert (add.__name__, add.__doc__, add.name) == ("add", "Add two numbers.", "add")
    assert str(inspect.signature(add)) == "(x: 'int', y: 'int') -> 'int'"
    assert repr(add) == f"<Task add: {__name__}.add>"


def test_a_coroutine_function_makes_an_async_task() -> None:
    class Caller:
        async def __call__(self) -> None: ...

    assert (type(add), add.is_async) == (Task, False)
    assert (type(fetch), fetch.is_async) == (AsyncTask, True)
    assert task(name="caller")(Caller()).is_async is True


def test_options_of_the_decorator_stand_in_each_signature() -> None:
    @task(name="mail.send", queue="mail", retry_count=3, retry_timeout=5, on_crash="fail")
    def send() -> None: ...

    signature = send.s()

    assert (signature.name, signature.routing_key) == ("mail.send", "mail")
    assert (signature.retry_count, signature.retry_timeout) == (3, 5)
    assert signature.headers == {ON_CRASH_HEADER: "fail"}
    assert add.s(1, 2).headers is None


def test_signatures_of_one_task_do_not_share_headers() -> None:
    @task(on_crash="fail")
    def once() -> None: ...

    assert once.s().headers is not once.s().headers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"name": "a b"},
            (
                "Task name 'a b' is not usable: give 1 to 128 letters, digits, or one of _ . : / - "
                "as in @task(name='mail.send')."
            ),
        ),
        ({"name": "x", "on_crash": "no"}, "Task 'x': on_crash is 'no'; give 'retry' or 'fail'."),
        (
            {"name": "x", "retry_count": -1},
            "Task 'x': retry_count -1 and retry_timeout 0 must be 0 or more.",
        ),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SignatureError) as caught:
        task(**options)(lambda: None)

    assert str(caught.value) == text


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^@task has no option 'speed'$"):
        task(speed=3)  # type: ignore[call-overload]


def test_type_checkers_know_the_options_there_are() -> None:
    assert get_type_hints(TaskKeywords) == get_type_hints(TaskOptions)


def test_each_option_is_an_attribute_of_the_task() -> None:
    assert {field.name: getattr(custom, field.name) for field in fields(TaskOptions)} == {
        "name": "custom.name",
        "queue": "slow",
        "retry_count": 2,
        "retry_timeout": 5,
        "on_crash": "fail",
        "expires": 60,
        "unique": True,
        "on_duplicate": "refuse",
    }


def test_a_function_with_attributes_of_its_own_keeps_them() -> None:
    def work() -> None: ...

    work.name, work.owner = "mine", "ann"  # type: ignore[attr-defined]

    made = task(name="work")(work)

    assert (made.name, made.owner) == ("work", "ann")  # type: ignore[attr-defined]


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(SignatureError, match=r"^Task name '<lambda>' is not usable:"):
        task(lambda: None)


# -- the caller's side -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "args"),
    [
        (lambda: add.s(1, 2), [Arg("int64", 1), Arg("int64", 2)]),
        (lambda: add.s(y=2, x=1), [Arg("int64", 1), Arg("int64", 2)]),
        (lambda: add.s(-(2**63), 2**63 - 1), [Arg("int64", -(2**63)), Arg("int64", 2**63 - 1)]),
        (total.s, []),
        (lambda: total.s(1, 2, 3), [Arg("int64", n) for n in (1, 2, 3)]),
        (lambda: fetch.s("u"), [Arg("string", "u")]),
        (lambda: fetch.s("u", timeout=2), [Arg("string", "u"), Arg("float64", 2.0, "timeout")]),
        (
            lambda: scale.s(2, [1, 2.5]),
            [Arg("float64", 2.0), Arg("[]float64", [1.0, 2.5])],
        ),
        (lambda: scale.s(2, []), [Arg("float64", 2.0), Arg("[]float64", [])]),
        (lambda: anything.s("x"), [Arg("string", "x")]),
        (lambda: anything.s(True), [Arg("bool", True)]),
        (lambda: anything.s(b"hi"), [Arg("[]byte", "aGk=")]),
        (
            lambda: mail.s("ann", 2, "a", "b", urgent=True, subject="s"),
            [
                Arg("string", "ann"),
                Arg("int64", 2),
                Arg("string", "a"),
                Arg("string", "b"),
                Arg("string", "s", "subject"),
                Arg("bool", True, "urgent"),
            ],
        ),
        (
            lambda: mail.s("ann", subject="s"),
            [Arg("string", "ann"), Arg("string", "s", "subject")],
        ),
    ],
)
def test_values_become_arguments_of_the_annotated_type(
    signature: Callable[[], Signature], args: list[Arg]
) -> None:
    found = signature().args

    assert found == args
    assert [type(arg.value) for arg in found] == [type(arg.value) for arg in args]


def test_a_gap_is_filled_with_the_default() -> None:
    @task
    def greet(name: str, greeting: str = "Hello", mark: str = "!") -> str:
        return f"{greeting} {name}{mark}"

    assert greet.s("Ann", mark="?").args == [
        Arg("string", "Ann"),
        Arg("string", "Hello"),
        Arg("string", "?"),
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: add.s(1), "add() missing a required argument: 'y'"),
        (lambda: add.s(1, 2, 3), "add() too many positional arguments"),
        (lambda: add.s(1, z=2), "add() missing a required argument: 'y'"),
        (lambda: add.partial(1, 2, 3), "add() too many positional arguments"),
        (lambda: fetch.s(timeout=3), "fetch() missing a required argument: 'url'"),
        (lambda: mail.s("ann"), "mail() missing a required argument: 'subject'"),
        (lambda: add.s(1, "x"), "add() argument 'y' is a str; int64 takes int: 'x'"),
        (lambda: add.s(1, y="x"), "add() argument 'y' is a str; int64 takes int: 'x'"),
        (lambda: add.s(True, 1), "add() argument 'x' is a bool; int64 takes int: True"),
        (lambda: add.s(1.5, 1), "add() argument 'x' is a float; int64 takes int: 1.5"),
        (lambda: total.s(1, None), "total() argument 'xs' is None; int64 takes int: None"),
        (
            lambda: scale.s(1, [1, "x"]),
            "scale() argument 'values'[1] is a str; float64 takes float: [1, 'x']",
        ),
        (
            lambda: scale.s(1, (1, 2)),
            "scale() argument 'values' is a tuple; []float64 takes a list of float: (1, 2)",
        ),
        (
            lambda: anything.s(1, other={}).args,
            (
                "anything() argument 'other' is a dict, which has no type on the wire; "
                "send json.dumps(value) as a string"
            ),
        ),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_sent(
    call: Callable[[], object], text: str
) -> None:
    with pytest.raises((TypeError, SignatureError)) as caught:
        call()

    assert str(caught.value) == text
    assert isinstance(caught.value, SignatureError) == text.startswith("anything")


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: add.s(2**63, 1), f"add() argument 'x' is {2**63}, out of range for int64"),
        (lambda: scale.s(math.nan, []), "scale() argument 'factor' is nan; JSON has no such"),
        (lambda: fetch.s("\ud800"), "fetch() argument 'url' has the lone surrogate"),
    ],
)
def test_a_value_of_the_right_type_that_cannot_be_sent_is_refused(
    call: Callable[[], object], start: str
) -> None:
    with pytest.raises(SignatureError) as caught:
        call()

    assert str(caught.value).startswith(start)


def test_a_gap_whose_default_cannot_be_sent_is_refused_with_the_cure() -> None:
    @task
    def greet(name: str, title: str | None = None, mark: str = "!") -> str:
        return f"{title} {name}{mark}"

    with pytest.raises(TypeError) as caught:
        greet.s("Ann", mark="?")

    assert str(caught.value) == (
        "greet() argument 'title' is left out before one that is given, and its default None "
        "cannot be sent: give it a value, or make the later ones keyword-only."
    )


def test_free_keywords_have_no_place_in_a_message() -> None:
    @task
    def free(x: int, **more: int) -> int:
        return x + len(more)

    with pytest.raises(TypeError) as caught:
        free.s(1, b=2, a=1)

    assert str(caught.value) == (
        "free() cannot be sent a, b: **keywords have no place in a message; name them as "
        "parameters."
    )


def test_a_partial_may_leave_out_the_last_arguments() -> None:
    assert add.partial().args == []
    assert add.partial(1).args == [Arg("int64", 1)]
    assert mail.partial(subject="s").args == [Arg("string", "s", "subject")]


def test_a_partial_may_not_leave_out_one_in_between() -> None:
    with pytest.raises(TypeError) as caught:
        add.partial(y=1)

    assert str(caught.value) == (
        "add() argument 'x' is left out before one that is given, and what is appended later "
        "comes last: give it too, or make the later ones keyword-only."
    )


def test_map_makes_a_call_for_each_item_and_spreads_tuples() -> None:
    singles, pairs = total.map([1, 2]), add.map([(1, 2), (3, 4)])

    assert [s.args for s in singles.signatures] == [total.s(1).args, total.s(2).args]
    assert [s.args for s in pairs.signatures] == [add.s(1, 2).args, add.s(3, 4).args]


def test_annotations_that_cannot_be_looked_up_leave_the_values_to_speak() -> None:
    def odd(x: NoSuchName, y: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert task(odd).s("text", 1).args == [Arg("string", "text"), Arg("int64", 1)]


def test_a_function_that_does_not_say_what_it_takes_takes_anything() -> None:
    assert task(name="max")(max).s(1, 2).args == [Arg("int64", 1), Arg("int64", 2)]


# -- the worker's side -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent_to", "args", "expected"),
    [
        (add, [Arg("int64", 1), Arg("int64", 2, "free text")], ([1, 2], {})),
        (total, [Arg("int64", n) for n in range(3)], ([0, 1, 2], {})),
        (scale, [Arg("int64", 2), Arg("[]int64", [1, 2])], ([2.0, [1.0, 2.0]], {})),
        (mean, [Arg("int64", 1), Arg("float64", 2.5)], ([1.0, 2.5], {})),
        (fetch, [Arg("string", "u"), Arg("int64", 2, "timeout")], (["u"], {"timeout": 2.0})),
        # A result that was appended after a keyword-only argument is still positional.
        (fetch, [Arg("float64", 2.0, "timeout"), Arg("string", "u")], (["u"], {"timeout": 2.0})),
        (fetch, [Arg("string", "u"), Arg("float64", 2.0)], (["u"], {"timeout": 2.0})),
        (fetch, [Arg("string", "u", "x"), Arg("int64", 2, "y")], (["u"], {"timeout": 2.0})),
        (
            mail,
            [
                Arg("string", "a"),
                Arg("int64", 2),
                Arg("string", "t"),
                Arg("string", "s", "subject"),
            ],
            (["a", 2, "t"], {"subject": "s"}),
        ),
        (anything, [Arg("[]byte", "aGk=")], ([b"hi"], {})),
        (add, [Arg("int64", 1)], ([1], {})),
        (add, [Arg("int64", n) for n in range(3)], ([0, 1, 2], {})),
        (fetch, [Arg("string", n) for n in "abc"], (["a", "c"], {"timeout": "b"})),
    ],
)
def test_arguments_find_their_parameters(
    sent_to: Task[..., Any], args: list[Arg], expected: tuple[list[Any], dict[str, Any]]
) -> None:
    found = sent_to.bind(args)

    assert found == expected
    assert list(map(type, found[0])) == list(map(type, expected[0]))


def test_a_value_that_is_not_of_its_type_is_refused_in_gos_words() -> None:
    with pytest.raises(WireError) as caught:
        add.bind([Arg("int64", 1.5), Arg("int64", 1)])

    assert str(caught.value) == 'strconv.ParseInt: parsing "1.5": invalid syntax'


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4),
    st.booleans(),
)
def test_whatever_is_sent_is_called_the_same(
    to: str, copies: int, tags: list[str], urgent: bool
) -> None:
    signature = mail.s(to, copies, *tags, subject="s", urgent=urgent)

    args, kwargs = mail.bind(signature.args)

    assert mail(*args, **kwargs) == mail(to, copies, *tags, subject="s", urgent=urgent)


def test_current_task_tells_about_the_run() -> None:
    context = TaskContext(Signature(name="add"), fence=7)
    token = running_task.set(context)
    try:
        assert current_task() is context
    finally:
        running_task.reset(token)


def test_current_task_outside_a_task_is_an_error() -> None:
    with pytest.raises(MachineError) as caught:
        current_task()

    assert str(caught.value) == (
        "No task is running here; current_task() answers only inside a task, and not in threads "
        "it starts itself."
    )


# -- senders -----------------------------------------------------------------------------------


def test_a_task_without_a_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "default_sender", None)

    with pytest.raises(SignatureError) as caught:
        add.send(1, 2)

    assert str(caught.value) == (
        "Task 'add' knows no server to send to; call machine.connect() first."
    )


# -- the registry ------------------------------------------------------------------------------


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """Return an importable module of tasks."""
    made = ModuleType("tasks_for_test_registry")
    vars(made).update(add=add, plus=add, total=total, number=3, function=len)
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_collect_finds_the_tasks_of_a_module(module: ModuleType) -> None:
    by_name, by_module = Registry(), Registry()

    found = by_name.collect(module.__name__)
    by_module.collect(module)

    assert found == [add, total]
    assert by_name.names() == by_module.names() == ["add", "total"]
    assert by_name.get("add") is add
    assert ("add" in by_name, "number" in by_name, len(by_name)) == (True, False, 2)


def test_collecting_twice_changes_nothing(module: ModuleType) -> None:
    registry = Registry()

    registry.collect(module, module)
    registry.collect(module)

    assert registry.names() == ["add", "total"]


def test_two_tasks_of_one_name_are_refused_with_both_named(module: ModuleType) -> None:
    def other(x: int, y: int) -> int:
        return x - y

    vars(module)["other"] = task(name="add")(other)
    registry = Registry()

    with pytest.raises(SignatureError) as caught:
        registry.collect(module)

    assert str(caught.value) == (
        f"Two tasks are called 'add': {__name__}.add and {__name__}.{other.__qualname__}. "
        "Give one another name, as in @task(name='other')."
    )
    assert registry.names() == []


def test_a_module_that_is_not_there_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        Registry().collect("no_such_package.tasks")

    assert str(caught.value) == (
        "tasks_modules: there is no module 'no_such_package.tasks'; is it spelled right, and "
        "importable from the folder the program was started in?"
    )


def test_a_module_that_imports_what_is_missing_says_so_itself(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks_that_import.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_dependency'$"):
        Registry().collect("tasks_that_import")


def test_register_makes_a_task_of_a_function() -> None:
    registry = Registry()

    made = registry.register("plus", lambda x: x)

    assert registry.get("plus") is made
    assert made.s(1).name == "plus"


def test_registering_a_task_under_another_name_keeps_its_options() -> None:
    made = Registry().register("other", custom)

    assert isinstance(made, AsyncTask)
    assert made.options == replace(custom.options, name="other")
    assert [f.name for f in fields(TaskOptions) if getattr(made.options, f.name) == f.default] == []


def test_register_tasks_stores_all_or_none() -> None:
    registry = Registry()

    with pytest.raises(SignatureError) as caught:
        registry.register_tasks({"good": len, "bad": 3})  # type: ignore[dict-item]

    assert str(caught.value) == "Task 'bad' is of type int, not a function; give something to call."
    assert registry.names() == []


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    registry = Registry()
    registry.register_tasks({"add": add, "multiply": total.fn})

    with pytest.raises(TaskNotRegistered) as caught:
        registry.get("ad")

    assert str(caught.value) == (
        "Task 'ad' is not registered. Known: add, multiply. Did you mean 'add'? "
        "Is its module in tasks_modules?"
    )


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(TaskNotRegistered) as caught:
        Registry().get("add")

    assert str(caught.value) == (
        "Task 'add' is not registered. Known: none. Is its module in tasks_modules?"
    )
