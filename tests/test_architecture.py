"""
The shape of the code, as tests.

`LINES` is the import table, of rooms: a module may import from the lines above
its room's, and freely inside its own room. A new file needs no entry; a new
room does.

No rule here judges what is the user's: `machine/tasks.py`, and packages beside
`machine/`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Rooms and the modules of the root, lowest first.
LINES = [
    "errors embedded",
    "wire",
    "config ports execution",
    "redis results telemetry",
    "workflow",
    "periodic",
    "registry",
    "sending",
    "server runtime",
    "build __main__",
]
#: Above the table, in this order. The two services never import each other.
ROOT_LINE, TASKS_LINE, SERVICE_LINE = len(LINES), len(LINES) + 1, len(LINES) + 2

#: The folders of this project that hold Python; any other one is the user's.
OUR_FOLDERS = {"benchmarks", "caller", "examples", "machine", "tests", "tools", "worker"}
#: The dependencies, and the type checker's own stubs, which never run.
THIRD_PARTY = frozenset({"redis", "hiredis", "yaml", "dotenv", "_typeshed"})
#: What an extra brings, and the one module that may ask for it, late.
EXTRAS = {
    "machine.periodic.cron": {"cronsim"},
    "machine.runtime.supervisor.metrics": {"prometheus_client"},
    "machine.telemetry.metrics": {"prometheus_client"},
    "machine.telemetry.queues": {"prometheus_client"},
    "machine.telemetry.tracing": {"opentelemetry"},
    "caller.api": {"starlette", "uvicorn"},
    "caller.web.bodies": {"msgspec"},
    "caller.web.metrics": {"starlette"},
    "caller.web.middleware": {"starlette"},
    "caller.web.openapi": {"msgspec"},
    "caller.web.page": {"starlette"},
    "caller.web.problems": {"starlette"},
    "caller.web.requests": {"starlette"},
    "caller.web.responses": {"msgspec", "starlette"},
    "caller.web.routes": {"starlette"},
    "caller.web.workflows": {"msgspec"},
}
FORBIDDEN_FILES = frozenset({"utils.py", "common.py", "helpers.py", "types.py"})
FORBIDDEN_MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"})
FORBIDDEN_CALLS = frozenset({"eval", "exec", "__import__"})
UNSAFE_YAML = frozenset(
    {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
)
#: 400 lines are the aim; a class is not cut to fit.
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_CLASS_LINES = 500, 60, 300

Function = ast.FunctionDef | ast.AsyncFunctionDef


def all_modules() -> dict[str, Path]:
    found = {}
    for path in sorted(
        p for room in ("machine", "worker", "caller") for p in (ROOT / room).rglob("*.py")
    ):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] == ("machine", "tasks"):
            continue  # the user's
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def own_packages() -> set[str]:
    """Return the user's packages and modules, which the two services may import."""
    return {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/*.py") if path.parent.name not in OUR_FOLDERS
    }


MODULES = all_modules()
every_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def is_package(module: str) -> bool:
    return module in MODULES and MODULES[module].name == "__init__.py"


def package_of(module: str) -> str:
    return module if is_package(module) else module.rpartition(".")[0]


def room_of(module: str) -> str:
    """Return what stands in the listing of `machine/`: the room, or the module of the root."""
    top, _, inner = module.partition(".")
    return inner.partition(".")[0] if top == "machine" else top


def line_of(module: str) -> int:
    """Return the line of a module; `LookupError` for a room that the table does not know."""
    room = room_of(module)
    if room in {"worker", "caller"}:
        return SERVICE_LINE
    if not room:
        return ROOT_LINE
    if room == "tasks":
        return TASKS_LINE
    for number, line in enumerate(LINES):
        if room in line.split():
            return number
    msg = f"{module} is not in the import table of {__file__}: add its room to a line of LINES"
    raise LookupError(msg)


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Yield (full name, line number) of everything imported, also under TYPE_CHECKING."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = package_of(module).split(".")
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule if submodule in MODULES else base), node.lineno


def our_imports_of(module: str) -> list[tuple[str, int]]:
    return [
        (name, line)
        for name, line in imports_of(module)
        if name.partition(".")[0] in {"machine", "worker", "caller"}
    ]


def may_import(module: str, imported: str) -> bool:
    if room_of(module) == room_of(imported):
        return True
    return line_of(imported) < line_of(module)


# -- the table ---------------------------------------------------------------------------------


@every_module
def test_imports_point_down(module: str) -> None:
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for name, line in our_imports_of(module)
        if not may_import(module, name)
    ]

    assert wrong == []


def test_the_table_refuses_a_module_it_does_not_know() -> None:
    with pytest.raises(LookupError, match=r"^machine\.novelty is not in the import table"):
        line_of("machine.novelty")


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("machine.ports.broker", "machine.wire.signature", True),
        ("machine.wire.messages", "machine.wire.text", True),
        ("machine.wire.messages", "machine.ports.broker", False),
        ("machine.errors", "machine.wire.text", False),
        ("machine.redis.broker", "machine.ports.broker", True),
        ("machine.redis.broker", "machine.results.task", False),
        ("machine.ports.broker", "machine.redis.broker", False),
        ("machine.runtime.child.child", "machine.runtime.settle", True),
        ("machine.runtime.child.child", "machine.build", False),
        ("machine.server", "machine.runtime.settle", False),
        ("machine.wire.text", "machine", False),
        ("machine.build", "machine", False),
        ("machine.tasks", "machine", True),
        ("machine", "machine.tasks", False),
        ("worker.worker", "machine.build", True),
        ("worker.worker", "caller.caller", False),
        ("worker.worker", "worker.other", True),
    ],
)
def test_the_table_says_who_may_import_whom(
    module: str, imported: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, imported):
        file = ROOT / (
            "machine/__init__.py" if name == "machine" else f"{name.replace('.', '/')}.py"
        )
        monkeypatch.setitem(MODULES, name, file)

    assert may_import(module, imported) is allowed


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {m: sorted({n for n, _ in our_imports_of(m)} & MODULES.keys() - {m}) for m in MODULES}
    done: set[str] = set()

    def circle_from(module: str, path: tuple[str, ...]) -> tuple[str, ...]:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return ()
        for imported in graph[module]:
            if found := circle_from(imported, (*path, module)):
                return found
        done.add(module)
        return ()

    circles = [found for module in graph if (found := circle_from(module, ()))]

    assert circles == []


FRESH = """
import importlib, os, sys, types
import asyncio, argparse, dotenv, logging, redis, redis.asyncio, redis.sentinel, yaml

def load(name):
    if name.startswith("machine."):
        # Without its root, which would import everything else first.
        root = sys.modules["machine"] = types.ModuleType("machine")
        root.__path__ = ["machine"]
    importlib.import_module(name)

failed = 0
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            load(name)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_module_can_be_the_first_one_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *MODULES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == []


# -- what only some rooms may know -------------------------------------------------------------


@every_module
def test_only_the_store_imports_its_client(module: str) -> None:
    tops = {name.partition(".")[0] for name, _ in imports_of(module)}

    assert room_of(module) == "redis" or tops.isdisjoint({"redis", "hiredis"})


@every_module
def test_the_runtime_takes_of_sending_only_how_messages_are_made(module: str) -> None:
    parts = {name for name, _ in imports_of(module) if room_of(name) == "sending"}

    assert room_of(module) != "runtime" or parts <= {"machine.sending.messages"}


@every_module
def test_only_wire_knows_json(module: str) -> None:
    tops = {name.partition(".")[0] for name, _ in imports_of(module)}

    # A log line is no message: what it holds is never read back.
    exempt = room_of(module) == "wire" or module == "machine.telemetry.logs"
    assert exempt or tops.isdisjoint({"json", "orjson"})


@every_module
def test_nothing_but_the_three_dependencies_is_imported(module: str) -> None:
    known = THIRD_PARTY | sys.stdlib_module_names | {"machine", "worker", "caller"}
    known |= EXTRAS.get(module, set())
    known |= own_packages() if room_of(module) in {"worker", "caller"} else set()

    foreign = [name for name, _ in imports_of(module) if name.partition(".")[0] not in known]

    assert foreign == []


@every_module
def test_nothing_is_unpickled_or_evaluated(module: str) -> None:
    wrong = [name for name, _ in imports_of(module) if name.partition(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            wrong += [node.func.id] if node.func.id in FORBIDDEN_CALLS else []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            unsafe = node.value.id == "yaml" and node.attr in UNSAFE_YAML
            wrong += [f"yaml.{node.attr}"] if unsafe else []
        if isinstance(node, ast.ImportFrom) and node.module == "yaml":
            wrong += [f"yaml.{alias.name}" for alias in node.names if alias.name in UNSAFE_YAML]

    assert wrong == []


def nodes_run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs while a module is imported: everything but the bodies of functions."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
        return
    later = node.body if isinstance(node, Function | ast.Lambda) else []
    later = later if isinstance(later, list) else [later]
    for child in ast.iter_child_nodes(node):
        if child not in later:
            yield from nodes_run_at_import(child)


def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in {"environ", "environb", "getenv", "getenvb"}
    return isinstance(node, ast.Name) and node.id in {"environ", "getenv"}


@every_module
def test_the_environment_is_not_read_on_import(module: str) -> None:
    nodes = nodes_run_at_import(tree_of(module))

    lines = [ast.unparse(node) for node in nodes if reads_environment(node)]

    assert lines == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import os\nX = os.environ['X']", True),
        ("import os\nclass A:\n    x = os.getenv('X')", True),
        ("import os\ndef f(x=os.environ): ...", True),
        ("import os\ndef f():\n    return os.environ", False),
        ("import os\nf = lambda: os.environ", False),
        ("import os\nif __name__ == '__main__':\n    print(os.environ)", False),
    ],
)
def test_reading_the_environment_is_seen_where_it_runs_on_import(code: str, found: bool) -> None:
    assert any(map(reads_environment, nodes_run_at_import(ast.parse(code)))) is found


# -- size and words ----------------------------------------------------------------------------


@every_module
def test_no_file_is_longer_than_500_lines(module: str) -> None:
    length = len(MODULES[module].read_text(encoding="utf-8").splitlines())

    assert length <= MOST_FILE_LINES


@every_module
def test_no_function_is_longer_than_60_lines(module: str) -> None:
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(tree_of(module))
        if isinstance(node, Function)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    ]

    assert long == []


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = [str(path) for path in MODULES.values() if path.name in FORBIDDEN_FILES]

    assert drawers == []


@cache
def described_by_protocols() -> frozenset[str]:
    """Return the names of methods that a protocol of ours declares and describes."""
    return frozenset(
        method.name
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
        for method in node.body
        if isinstance(method, Function) and ast.get_docstring(method)
    )


def needs_no_docstring(node: ast.AST, beside: set[str], *, is_method: bool) -> bool:
    """Say whether a name is described elsewhere, or says all there is to say."""
    name = getattr(node, "name", "")
    decorators = {ast.unparse(d).rpartition(".")[2] for d in getattr(node, "decorator_list", [])}
    is_twin = isinstance(node, ast.AsyncFunctionDef) and name[:1] == "a" and name[1:] in beside
    return (
        bool({"overload", "setter"} & decorators)
        or is_twin
        or name in {"close", "aclose"}
        or (is_method and name in described_by_protocols())
    )


def undocumented(module: str) -> Iterator[str]:
    """
    Yield each public name without a docstring: the module, its classes, functions, methods.

    Left out are asyncio twins of a function beside them, `close`, and methods
    that a protocol of ours describes.
    """
    tree = tree_of(module)
    if not ast.get_docstring(tree):
        yield module
    scopes: list[tuple[str, ast.AST]] = [(module, tree)]
    while scopes:
        prefix, scope = scopes.pop()
        beside = {getattr(node, "name", "") for node in ast.iter_child_nodes(scope)}
        in_class = isinstance(scope, ast.ClassDef)
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.If):
                scopes.append((prefix, node))
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            if needs_no_docstring(node, beside, is_method=in_class):
                continue
            if not ast.get_docstring(node):
                yield f"{prefix}.{node.name}"
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}.{node.name}", node))


@every_module
def test_every_public_name_is_described(module: str) -> None:
    assert list(undocumented(module)) == []


# -- the house, counted ------------------------------------------------------------------------


def places() -> set[str]:
    """Return what stands in the listing of `machine/`: rooms and files."""
    inside = {path.stem for path in (ROOT / "machine").glob("*.py")}
    return inside | {path.parent.name for path in (ROOT / "machine").glob("*/__init__.py")}


def test_the_listing_is_short() -> None:
    rooms = {path.parent.name for path in (ROOT / "machine").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "machine").glob("*.py")}

    assert (len(rooms), len(files) <= 9) == (11, True), sorted(files)
    assert rooms | {Path(name).stem for name in files} - {"__init__", "tasks"} == set(
        " ".join(LINES).split()
    )


def test_the_longest_chain_of_imports_between_places_is_13() -> None:
    above: dict[str, set[str]] = {}
    for module in MODULES:
        ours = {room_of(name) for name, _ in our_imports_of(module)}
        above.setdefault(room_of(module), set()).update(ours - {room_of(module)})

    @cache
    def depth(place: str) -> int:
        return 1 + max((depth(lower) for lower in above.get(place, ())), default=0)

    assert max(map(depth, above)) <= 13


def test_one_class_name_has_one_meaning() -> None:
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(module)

    assert {name: sorted(where) for name, where in found.items() if len(where) > 1} == {}


@every_module
def test_no_class_is_longer_than_300_lines(module: str) -> None:
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ClassDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_CLASS_LINES
        # Machinery's facade has all its names and their contracts; each body is a call.
        and f"{module}.{node.name}" != "machine.server.Server"
    ]

    assert long == []


#: Which files one task enters, and how many calls it makes there: sent, run, and read back.
ENTERED = """
import json, os, sys, threading
from machine import Config, build, connect, tasks
from machine.embedded import EmbeddedServer
from machine.ports.clock import SystemClock
from machine.registry import Registry
from machine.runtime.child.child import Child, ChildSettings
from machine.runtime.chords import Chords

ROOT = os.path.join(os.getcwd(), "machine") + os.sep

def entered(call):
    files, count = {}, 0
    def profile(frame, event, _):
        nonlocal count
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(ROOT):
            files[name.removeprefix(ROOT)] = None
            count += 1
    sys.setprofile(profile); threading.setprofile(profile)
    try:
        answer = call()
    finally:
        sys.setprofile(None); threading.setprofile(None)
    return answer, sorted(files), count

with EmbeddedServer() as server:
    config = Config(broker=server.url, worker_processes=1)
    connect(config)
    tasks.add.send(1, 2)
    registry = Registry()
    registry.collect("machine.tasks")
    broker, backend = build.broker(config, for_worker=True), build.backend(config, for_worker=True)
    settings, clock = ChildSettings.of(config), SystemClock()
    chords = Chords(broker, backend, settings.rules, clock)
    child = Child(broker, chords, backend, registry, settings, clock)
    child.start(); child.run_once(0); child.run_once(0)
    result, *sent = entered(lambda: tasks.add.send(1, 2))
    _, *ran = entered(lambda: (child.run_once(0), child.run_once(0)))
    value, *got = entered(lambda: result.get(timeout=5))
    print(json.dumps({"value": value, "send": sent, "run": ran, "get": got}), flush=True)
    os._exit(0)
"""
#: Of `ENTERED`: places of the listing, files, calls. Machines differ by a call or two.
MOST_ENTERED = {"send": (6, 20, 80), "run": (7, 31, 215), "get": (3, 10, 100)}


@pytest.fixture(scope="module")
def entered() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ENTERED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.server
@pytest.mark.parametrize("step", MOST_ENTERED)
def test_one_task_enters_few_places(step: str, entered: dict[str, Any]) -> None:
    files, calls = entered[step]
    rooms = {file.partition("/")[0] for file in files} - {"tasks.py"}
    most_places, most_files, most_calls = MOST_ENTERED[step]

    assert entered["value"] == 3
    assert len(rooms) <= most_places, sorted(rooms)
    assert len(files) <= most_files, files
    assert calls <= most_calls
