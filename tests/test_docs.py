"""
README and docs against the code: blocks run, tables are complete, links lead somewhere.

A fenced ``python`` block is run, in order with the others of its page, by a
program of its own beside a real worker. In it, ``expression  # → value`` is a
claim that is checked. A block ``sh`` is run so by bash, beside an HTTP caller
as well; there ``command  # → text`` claims what the command prints, and ``…``
stands for anything. A block that cannot run has a comment before it,
``<!-- not run: reason -->``, or ``<!-- run by tests/test_x.py -->``. A block
``acl`` holds users for a server, which are given to one.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from caller import api, caller
from machine import errors
from machine.config import SETTINGS
from machine.config.settings import Setting
from machine.embedded import EmbeddedServer, available_servers
from machine.redis import keys
from machine.runtime.supervisor import supervisor
from worker import worker

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_README_LINES = 220
#: How long a page's program may take before it is taken for stuck.
PATIENCE_S = 60.0

FENCE = re.compile(
    r"(?P<before>[^\n]*)\n(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)\n(?P=indent)```\n",
    re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- (not run: .+?|run by .+?) -->")
#: What a reader types; a block with such a line is a block of commands, and says so.
COMMAND = re.compile(
    r"^(?:\$ )?(?:make|python|curl|docker|export|git|kubectl|\.venv/bin/\w+) ", re.MULTILINE
)
CLAIM = re.compile(r"#\s*→\s*(.+?)\s*$")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block: what kind, its text, and why it is not run ("" = it is)."""

    kind: str
    text: str
    reason: str


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def doc(name: str) -> str:
    return text_of(ROOT / "docs" / name)


def blocks(text: str) -> list[Block]:
    found = []
    for fence in FENCE.finditer(f"\n{text}\n"):
        reason = NOT_RUN.search(fence["before"])
        text = fence["text"].replace(f"\n{fence['indent']}", "\n").strip(" ")
        found.append(Block(fence["kind"], text, reason[1].strip() if reason else ""))
    return found


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row of a page; an escaped bar is no border."""
    found = []
    for line in text.splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append([cell.strip() for cell in cells])
    return found


# -- blocks run --------------------------------------------------------------------------------


CLAIMED = """
def _claim(source, got, claimed):
    assert repr(got) == claimed, f"{source} gave {got!r}, not {claimed}"
"""


def program(text: str) -> str:
    """Return a page's blocks as one program in which every claim is an assertion."""
    parts = [CLAIMED]
    for number, block in enumerate(blocks(text), start=1):
        if block.kind == "python" and not block.reason:
            parts.append(f"# -- block {number}\n{checked(block.text)}")
    return "\n".join(parts)


def checked(code: str) -> str:
    """Return code that checks its claims, on the same lines as before."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and node.end_lineno:
            claim = CLAIM.search(lines[node.end_lineno - 1])
            if claim:
                source = ast.unparse(node.value)
                call = f"_claim({source!r}, {source}, {claim[1]!r})"
                lines[node.lineno - 1 : node.end_lineno] = [
                    " " * node.col_offset + call,
                    *[""] * (node.end_lineno - node.lineno),
                ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("x = 1\nx + 1  # → 2\nx  # a remark", ""),
        ("x = 1\nx + 1  # → 3", "x + 1 gave 2, not 3"),
        ("for x in 'a':\n    (x\n     * 2)  # → 'a'", "x * 2 gave 'aa', not 'a'"),
    ],
)
def test_a_claim_in_a_block_is_checked(block: str, error: str) -> None:
    code = program(f"\n```python\n{block}\n```\n")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.strip().rpartition("AssertionError: ")[2] == error


class Running(NamedTuple):
    """A server and the variables of programs that use it."""

    url: str
    environ: dict[str, str]


def environ_for(url: str) -> dict[str, str]:
    """Return this process's variables without settings, and with this server."""
    ours = {name for row in SETTINGS.values() for name in row.variables} | {"REDIS_URL"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {
        "BROKER": url,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error,ignore::ResourceWarning",
    }


def start_worker(running: Running, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "worker" / "worker.py"), "-p", "1", "-c", "4"],
            env=running.environ,
            cwd=folder,
            stderr=log,
        )


def stop(process: subprocess.Popen[Any]) -> int:
    process.terminate()
    return process.wait(PATIENCE_S)


def run_program(arguments: list[str], running: Running, folder: Path) -> tuple[int, str]:
    """Run Python in a folder; return its status and the lines it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=running.environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    # A traceback's end is what one wants to read, and pytest shows only so much.
    return done.returncode, "\n".join(done.stderr.splitlines()[-3:])


@pytest.fixture(scope="module")
def beside_a_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start a server and a worker of this module's own, on the default queue."""
    folder = tmp_path_factory.mktemp("docs")
    if not available_servers():
        if os.environ.get("CI"):
            pytest.fail("CI needs a server", pytrace=False)
        pytest.skip("no Redis or Valkey server is installed")
    with EmbeddedServer() as server:
        running = Running(server.url, environ_for(server.url))
        process = start_worker(running, folder)
        yield running
        stop(process)


@pytest.mark.server
@every_page
def test_the_blocks_of_a_page_run(
    page: Path, beside_a_worker: Running, tmp_path: Path, wait_until: Callable[..., object]
) -> None:
    code = program(text_of(page))
    with redis.Redis.from_url(beside_a_worker.url) as client:
        wait_until(lambda: client.exists("{machinery_tasks}:workers"), 30, "a worker is there")
    file = tmp_path / f"{page.stem}.py"
    file.write_text(code, encoding="utf-8")

    status, said = run_program([str(file)], beside_a_worker, tmp_path)

    assert said == ""
    assert status == 0


# -- commands run ------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command line of a page, and what it is said to print (None = nothing is said)."""

    text: str
    printed: str | None


def commands(text: str) -> list[Command]:
    """Return the command lines of a page's ``sh`` blocks that are run, continuations joined."""
    code = "\n".join(b.text for b in blocks(text) if b.kind == "sh" and not b.reason)
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        claim = CLAIM.search(line)
        command = CLAIM.sub("", line).strip()
        if command and not command.startswith("#"):
            found.append(Command(command, claim[1] if claim else None))
    return found


def script(lines: list[Command], port: int) -> str:
    """Return a bash script of the commands; the output of each that claims any is a file's."""
    parts = ["set -eu -o pipefail"]
    for number, command in enumerate(lines):
        here = re.sub(r"\b(localhost|127\.0\.0\.1):8000\b", f"127.0.0.1:{port}", command.text)
        here = here.replace(".venv/bin/python", "python")
        parts.append(here if command.printed is None else f"{{ {here}\n}} >said.{number}")
    return "\n".join(parts)


def is_said(claim: str, printed: str) -> bool:
    """Say whether a text is what a claim says, ``…`` in which stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in claim.split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@pytest.fixture(scope="module")
def beside_an_api(
    beside_a_worker: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Start an HTTP caller of this module's own, and return its port."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "caller" / "api.py")],
        env=beside_a_worker.environ | {"API_PORT": "0"},
        cwd=tmp_path_factory.mktemp("api"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    listening = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
    said: list[str] = []
    while not (found := listening.search("".join(said))):
        line = process.stderr.readline()
        assert line, f"it ended: {''.join(said)}"
        said.append(line)
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    yield int(found[1])
    assert stop(process) == 0
    drain.join(PATIENCE_S)
    process.stderr.close()


PAGES_WITH_COMMANDS = [page for page in PAGES if commands(text_of(page))]


@every_page
def test_a_page_runs_no_command_that_could_reach_beyond_its_test(page: Path) -> None:
    # Others are to say what runs them: a test must not call somebody's cluster.
    harmless = re.compile(r"(?:\w+=\$\()?(?:curl|echo|grep|test|(?:\.venv/bin/)?python) ")

    assert [c.text for c in commands(text_of(page)) if not harmless.match(c.text)] == []


@pytest.mark.server
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(
    page: Path, beside_a_worker: Running, beside_an_api: int, tmp_path: Path
) -> None:
    if not shutil.which("curl"):
        if os.environ.get("CI"):
            pytest.fail("CI needs curl", pytrace=False)
        pytest.skip("curl is not installed")
    test_a_page_runs_no_command_that_could_reach_beyond_its_test(page)
    lines = commands(text_of(page))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script(lines, beside_an_api)],
        env=beside_a_worker.environ | {"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    said = {n: f"said.{n}" for n, line in enumerate(lines) if line.printed is not None}
    got = {
        lines[n].text: text_of(tmp_path / file)
        for n, file in said.items()
        if (tmp_path / file).exists()
    }
    wrong = [
        (line.text, line.printed, got.get(line.text))
        for line in lines
        if line.printed is not None and not is_said(line.printed, got.get(line.text, ""))
    ]
    assert wrong == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("claim", "printed", "is_so"),
    [
        ("3", "3\n", True),
        ('{"id": "…"}', '{"id": "x"}', True),
        ("3", "33", False),
        ("a … c", "a b", False),
    ],
)
def test_a_claim_of_a_command_is_checked(claim: str, printed: str, is_so: bool) -> None:
    assert is_said(claim, printed) is is_so


@every_page
def test_a_block_of_commands_is_known_as_one(page: Path) -> None:
    unknown = [b.text for b in blocks(text_of(page)) if not b.kind and COMMAND.search(b.text)]

    assert unknown == []


@every_page
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    announced = re.findall(r"<!-- (not run\b.*|run by .+?) -->", text_of(page))
    with_reason = [block.reason for block in blocks(text_of(page)) if block.reason]

    assert with_reason == announced
    for reason in with_reason:
        word, _, runners = reason.partition("run by ")
        assert word or all((ROOT / runner).is_file() for runner in runners.split())


def test_the_readme_and_the_operations_page_have_blocks_that_run() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "operations.md"):
        assert len([b for b in blocks(text_of(page)) if b.kind == "python" and not b.reason]) > 1


# -- the users of docs/operations.md -----------------------------------------------------------

SENDS_AND_WAITS = """
import asyncio
from machine import chord, connect, group
from machine.tasks import add, fail, multiply, nap, say
async def from_a_loop():
    return await (await nap.asend(0.01)).aget(30)
with connect() as server:
    assert (add.s(1, 1) | add.partial(5, 5) | multiply.partial(4)).send().get(30) == 48
    assert chord(group(add.s(1, 1), add.s(5, 5)), multiply.partial()).send().get(30) == 20
    assert add.s(1, 2).options(countdown=0.2).send().get(30) == 3
    for way in ("join", "replace"):
        add.s(1, 2).options(unique="docs", on_duplicate=way).send().get(30)
    failing = fail.s("x").link_error(say.partial()).send()
    assert len(list(group(fail.s("y"), say.s("z")).send().as_completed(30))) == 2
    assert asyncio.run(from_a_loop()) == 0.01
    server.pending_tasks(), server.delayed_tasks()
    server.purge_state(failing.uuid)
"""


def users() -> dict[str, list[str]]:
    """Return the rules of each user of the page."""
    [block] = [block for block in blocks(doc("operations.md")) if block.kind == "acl"]
    lines = [line.split() for line in block.text.splitlines()]
    return {line[1]: line[2:] for line in lines}


def allowed(user: str) -> set[str]:
    return {rule[1:] for rule in users()[user] if rule.startswith("+")}


SCRIPTS = [path.stem for path in (ROOT / "machine" / "redis" / "lua").glob("*.lua")]


def commands_of(*scripts: str) -> set[str]:
    folder = ROOT / "machine" / "redis" / "lua"
    texts = [(folder / f"{name}.lua").read_text(encoding="utf-8") for name in scripts]
    return {c.lower() for text in texts for c in re.findall(r'redis\.p?call\("(\w+)"', text)}


def test_a_user_may_call_what_its_scripts_call() -> None:
    of_people = {"replay", "purge_dead"}

    assert commands_of("enqueue", "enqueue_unique", "cancel", "switch") - allowed("caller") == set()
    assert commands_of(*{*SCRIPTS} - of_people) - allowed("worker") == set()
    assert commands_of(*of_people) - allowed("admin") == set()


@pytest.mark.parametrize("user", ["caller", "worker"])
def test_a_user_may_call_nothing_that_is_never_called(user: str) -> None:
    sources = [
        *(ROOT / "machine").glob("*.py"),
        *(ROOT / "machine" / "redis").glob("*.py"),
    ]
    sent = {
        "|".join(filter(None, words)).lower()
        for path in sources
        for words in re.findall(r'\("([A-Z]+)", (?:"(LOAD|TRACKING)")?', text_of(path))
    } | {"ping"}
    used = sent | commands_of(*SCRIPTS)

    # The greeting of protocol 3 is redis-py's.
    assert allowed(user) - used == {"hello"}


def test_a_worker_may_do_what_a_caller_may() -> None:
    # Tasks may send tasks; only looking at queues is left out.
    assert allowed("caller") - allowed("worker") <= {"lrange", "del"}


@pytest.fixture(params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Start a server of each kind, of this test alone, which gets the users."""
    if request.param not in available_servers():
        if os.environ.get("CI") and not available_servers():
            pytest.fail("CI needs a server", pytrace=False)
        pytest.skip(f"{request.param} is not installed")
    with EmbeddedServer(prefer=request.param) as server:
        yield server


def login(server: EmbeddedServer, user: str) -> Running:
    url = server.url.replace("redis://", f"redis://{user}:secret@")
    return Running(url, environ_for(url))


@pytest.mark.server
def test_the_users_of_the_page_may_do_their_work(guarded: EmbeddedServer, tmp_path: Path) -> None:
    with redis.Redis.from_url(guarded.url) as client:
        for user, rules in users().items():
            rights = [rule.replace(">PASSWORD", ">secret") for rule in rules]
            client.execute_command("ACL", "SETUSER", user, *rights)
        client.execute_command("ACL", "LOG", "RESET")
        process = start_worker(login(guarded, "worker"), tmp_path)
        client.rpush("machinery_tasks", "no message")
        called = run_program(["-c", SENDS_AND_WAITS], login(guarded, "caller"), tmp_path)
        status = stop(process)
        looked = run_program(["-c", LOOKS_AND_REPLAYS], login(guarded, "admin"), tmp_path)
        refused = [
            (entry["username"], entry["object"], entry["context"]) for entry in client.acl_log()
        ]

    assert refused == []
    assert called == (0, "")
    assert looked == (0, "")
    assert status == 0


LOOKS_AND_REPLAYS = """
from machine import connect
with connect() as server:
    broker, queue = server.broker, "machinery_tasks"
    [letter] = broker.dead(queue)
    assert letter.payload == b"no message"
    assert broker.replay(queue, [letter.id]) == 1
    assert broker.pending(queue) == [b"no message"]
    assert broker.purge_dead(queue, [letter.id]) == 0
    broker.roster(queue), broker.delayed(), server.purge_state("task_x")
"""


# -- tables are complete -----------------------------------------------------------------------


def key_functions() -> dict[str, str]:
    """Return the functions of machine.redis.keys, and the Redis type each docstring names."""
    made = {}
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        if not name.startswith("is_"):
            made[name] = re.match(r"[A-Z]+", inspect.getdoc(function) or "")[0]  # type: ignore[index]
    return made


def key_rows() -> dict[str, list[str]]:
    """Return the rows of docs/redis.md by the function in their first cell ("" = none)."""
    found = {}
    for cells in rows(doc("redis.md")):
        name = re.search(r"`keys\.(\w+)`", cells[1]) if len(cells) == 8 else None
        if name:
            found[name[1]] = cells
    return found


def test_every_key_function_is_in_the_table_of_keys_with_its_type() -> None:
    documented = {name: cells[2] for name, cells in key_rows().items() if name.islower()}

    assert documented == key_functions()


def test_the_table_of_keys_shows_each_key_as_it_is_made() -> None:
    arguments = {"queue": "Q", "worker_id": "<worker id>", "group_uuid": "<group>", "key": "KEY"}
    made = {}
    for name in key_functions():
        function = getattr(keys, name)
        made[name] = function(*(arguments[p] for p in inspect.signature(function).parameters))

    shown = {n: cells[0].strip("`") for n, cells in key_rows().items() if n.islower()}

    assert shown == made


def test_the_constants_of_keys_are_in_the_table() -> None:
    constants = {n for n in vars(keys) if n.isupper() and not n.startswith("_")}

    assert constants <= key_rows().keys()


def script_keys(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"-- KEYS\[\S+\]\s+(\S+)\s+[A-Z]+ ", line):
            yield found[1]


#: What the headers of the scripts call a key -> its function, "" for those that have none.
SCRIPT_NAMES = {
    "workers": "workers", "held": "held", "heir": "held", "seq": "sequence", "redel": "redelivered",
    "hop": "hop", "dlq": "dead", "dlq:ix": "dead_index", "chords": "chords", "parked": "parked",
    "delayed": "DELAYED_DEFAULT", "mutex": "CHORD_MUTEX", "done": "group_done",
    "periodic": "periodic", "off": "periodic_off", "unique": "unique", "holder": "",
    "canceled": "canceled",
    "ready": "", "state": "", "failed": "", "meta": "",
}  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((ROOT / "machine" / "redis" / "lua").glob("*.lua")), ids=lambda path: path.stem
)
def test_a_script_stands_beside_each_key_it_touches(path: Path) -> None:
    table = key_rows()

    missing = [
        name
        for name in script_keys(path)
        if SCRIPT_NAMES[name] and f"`{path.stem}`" not in " ".join(table[SCRIPT_NAMES[name]][6:])
    ]

    assert missing == []


def test_every_error_is_in_the_table_of_errors() -> None:
    classes = {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    documented = {
        cells[0].strip("`"): cells[1].strip("`")
        for cells in rows(doc("operations.md"))
        if len(cells) == 4 and cells[0].strip("`") in classes
    }

    assert documented.keys() == classes.keys()
    for name, builtin in documented.items():
        bases = {base.__name__ for base in classes[name].__mro__}
        assert builtin in bases | {""}


def test_every_exit_status_is_documented() -> None:
    documented = {
        (cells[1], int(cells[0]))
        for cells in rows(doc("operations.md"))
        if len(cells) == 4 and cells[0].isdigit()
    }
    of_worker = {0, 1, worker._USAGE, worker._BAD_SETTINGS, worker._REFUSED}
    of_worker.add(supervisor.CANNOT_START)
    of_caller = {
        node.value.value
        for node in ast.walk(ast.parse(inspect.getsource(caller.main)))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant)
    } | {0, 1}

    of_api = {0, 1, 3, api._BAD_SETTINGS}  # 3: uvicorn's, where it cannot listen
    assert documented == {
        (program, status)
        for program, statuses in (("worker", of_worker), ("caller", of_caller), ("api", of_api))
        for status in statuses
    }


def test_every_term_has_its_row() -> None:
    terms = {
        term
        for cells in rows(doc("glossary.md"))
        for term in re.findall(r"\*\*(.+?)\*\*", cells[0])
    }

    assert TERMS - terms == set()


#: The vocabulary of the code; whoever adds a word to it defines it.
TERMS = {
    "active", "attempt", "backend", "bury", "callback", "cancel", "chain", "child", "chord",
    "claim", "dead", "delayed", "delivery", "enqueue", "fence", "finish", "group", "heartbeat",
    "lease", "park", "periodic", "pool", "progress", "promote", "queue", "read", "ready", "reap",
    "record", "release", "retry", "roster", "signature", "slot", "stamp", "supervisor", "task",
    "wait", "worker",
}  # fmt: skip


def test_every_move_and_verb_of_the_broker_is_a_term() -> None:
    from machine.ports import moves as module

    moves = {kind.__name__.lower() for kind in module.Move.__args__} - {"start"}

    assert moves <= TERMS


# -- the README --------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= MOST_README_LINES


@every_page
def test_what_a_page_tells_people_to_make_can_be_made(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))

    named = set(re.findall(r"(?:^ *|`|\$ |\| )make ([a-z0-9-]+)", text_of(page), re.MULTILINE))

    assert named - targets == set()


@every_page
def test_the_programs_and_files_that_a_page_names_are_there(page: Path) -> None:
    text = text_of(page)
    named = set(re.findall(r"`((?:machine|worker|caller|tests|docs|examples)/[\w./-]+)`", text))
    named |= set(re.findall(r"python ((?:worker|caller|examples)/\w+\.py)", text))

    # What somebody else will write is named after them.
    missing = [n for n in sorted(named) if not (ROOT / n).exists() and not n.endswith("/yours.py")]

    assert missing == []


def slug(heading: str) -> str:
    """Return a heading's anchor as the usual renderers make it."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


@every_page
def test_internal_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        headings = (
            {slug(h) for h in re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)}
            if file.is_file() and anchor
            else set()
        )
        if not file.exists() or (anchor and anchor not in headings):
            broken.append(target)

    assert broken == []


def test_the_readme_shows_the_settings_people_need_as_they_are() -> None:
    """Compare the README's short table of settings with the definitions."""
    shown = {
        cells[0].strip("`"): (cells[1].strip("`"), cells[2].strip("`"))
        for cells in rows(text_of(ROOT / "README.md"))
        if len(cells) == 4 and cells[0].strip("`") in SETTINGS
    }

    assert len(shown) == 5
    assert shown == {name: (SETTINGS[name].variables[0], default(SETTINGS[name])) for name in shown}


def default(row: Setting) -> str:
    return row.show(row.default)
