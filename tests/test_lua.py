"""
The scripts and their headers: the contract is the first thing in the file, and true.

Form: ``#!lua`` with its flags, then ``-- name.lua: one sentence.``, a line for
each key (``-- KEYS[1] name TYPE meaning``) and argument (``-- ARGV[1] name
meaning``), ``-- Returns`` and ``-- Cost``. What repeats has a letter in its
index (``KEYS[2i+1]``) or dots (``ARGV[6...]``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "machine" / "redis" / "lua").glob("*.lua"))
CALLERS = [
    *sorted((ROOT / "machine" / "redis").glob("*.py")),
]
#: finish.lua ends claims with all that follows from them: one loop, and its checks.
MOST_LINES = {"enqueue_unique": 65, "finish": 125, "fire_chord": 85, "retry": 65, "claim": 65}
TYPES = {"LIST", "ZSET", "HASH", "STRING", "SET"}
#: Flags we mean; anything else in the first line is a slip.
FLAGS = {"", "flags=allow-oom", "flags=no-writes"}
FORBIDDEN = {
    "looks at every key": r"""redis\.p?call\(\s*["'](keys|scan)["']""",
    "parses JSON, which loses integers": r"\bcjson\b",
    "packs values": r"\bcmsgpack\b",
    "flushes": r"(?i)flush(all|db)",
    "prints nanoseconds without their last digits": r"\btostring\(\s*(now|due|time)",
}

ENTRY = re.compile(r"(KEYS|ARGV)\[([^\]]+)\]\s+(\S+)\s*(.*)")
USE = re.compile(r"\b(KEYS|ARGV)\[([^\]]+)\]")

every_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Entry:
    """A line of the header: one key or argument, or what repeats."""

    array: str
    index: str
    name: str
    rest: str

    @property
    def number(self) -> int | None:
        """Return the index, ``None`` for what repeats."""
        return int(self.index) if self.index.isdigit() else None


@dataclass(frozen=True)
class Script:
    """A script's first line, its header's lines without the dashes, and its code."""

    shebang: str
    header: list[str]
    code: str

    @property
    def entries(self) -> list[Entry]:
        """Return the lines about keys and arguments."""
        return [Entry(*found.groups()) for line in self.header if (found := ENTRY.match(line))]

    def numbers(self, array: str) -> list[int]:
        """Return the fixed indexes declared."""
        return [e.number for e in self.entries if e.array == array and e.number is not None]

    def repeats(self, array: str) -> bool:
        """Say whether the array has a part that repeats."""
        return any(e.array == array and e.number is None for e in self.entries)


def parse(text: str) -> Script:
    shebang, *lines = text.splitlines()
    header = []
    while len(header) < len(lines) and lines[len(header)].startswith("--"):
        header.append(lines[len(header)])
    code = "\n".join(line.partition("--")[0] for line in lines[len(header) :])
    return Script(shebang, [line.removeprefix("--").strip() for line in header], code)


def faults(name: str, text: str) -> list[str]:
    """Return what is wrong with a script's header, in words."""
    script = parse(text)
    found = []
    if not script.shebang.startswith("#!lua"):
        found.append("the first line is not #!lua")
    elif script.shebang.removeprefix("#!lua").strip() not in FLAGS:
        found.append(f"unknown flags: {script.shebang}")
    title = script.header[0] if script.header else ""
    if not re.fullmatch(rf"{name}\.lua: .+\.", title):
        found.append(f"the second line is not '-- {name}.lua: one sentence.'")
    found += [
        f"there is no one line '{word}'"
        for word in ("Returns", "Cost")
        if sum(line.startswith(f"{word} ") for line in script.header) != 1
    ]
    for entry in script.entries:
        typed = entry.rest.split(" ")[0] in TYPES
        if entry.array == "KEYS" and not typed and entry.index not in {"...", "…"}:
            found.append(f"KEYS[{entry.index}] {entry.name} has no type")
        if not entry.rest:
            found.append(f"{entry.array}[{entry.index}] {entry.name} has no meaning")
    for array in ("KEYS", "ARGV"):
        found += index_faults(script, array)
    return found


def index_faults(script: Script, array: str) -> list[str]:
    """Compare the indexes that the header declares with those the code uses."""
    declared = script.numbers(array)
    used = {index for name, index in USE.findall(script.code) if name == array}
    fixed = {int(index) for index in used if index.isdigit()}
    whole = re.search(rf"(#|\(|, ){array}\b(?!\[)", script.code) is not None
    found = []
    if declared != list(range(1, len(declared) + 1)):
        found.append(f"{array} is declared as {declared}")
    if not script.repeats(array):
        found += [f"{array}[{n}] is not declared" for n in sorted(fixed - set(declared))]
        if fixed != {int(i) if i.isdigit() else 0 for i in used}:
            found.append(f"{array} is used with computed indexes, but nothing repeats")
    if fixed == used and not whole:
        found += [f"{array}[{n}] is not used" for n in sorted(set(declared) - fixed)]
    return found


def test_there_are_scripts() -> None:
    assert SCRIPTS != []


@every_script
def test_the_header_is_there_and_true(path: Path) -> None:
    assert faults(path.stem, path.read_text(encoding="utf-8")) == []


GOOD = """#!lua flags=allow-oom
-- take.lua: take the oldest.
--
-- KEYS[1]  ready  LIST  the queue
-- ARGV[1]  most   messages
--
-- Returns  the messages.
-- Cost     O(most).
return redis.call("LPOP", KEYS[1], ARGV[1])
"""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("KEYS[1], ARGV[1])", "KEYS[1], ARGV[1]) -- KEYS[9]"), None),
        (("#!lua flags=allow-oom\n", ""), "the first line is not #!lua"),
        (("allow-oom", "allow-stale"), "unknown flags: #!lua flags=allow-stale"),
        (("take.lua", "give.lua"), "the second line is not '-- take.lua: one sentence.'"),
        (("-- Cost     O(most).\n", ""), "there is no one line 'Cost'"),
        (("LIST  ", ""), "KEYS[1] ready has no type"),
        (("most   messages", "most"), "ARGV[1] most has no meaning"),
        (("-- ARGV[1]  most   messages\n", ""), "ARGV[1] is not declared"),
        ((", ARGV[1])", ")"), "ARGV[1] is not used"),
        (("-- KEYS[1]", "-- KEYS[2]"), "KEYS is declared as [2]"),
        (
            (", ARGV[1])", ", ARGV[#ARGV])"),
            "ARGV is used with computed indexes, but nothing repeats",
        ),
    ],
)
def test_a_slip_in_a_header_is_found(change: tuple[str, str], fault: str | None) -> None:
    assert faults("take", GOOD) == []

    found = faults("take", GOOD.replace(*change))

    assert fault in found if fault else found == []


@every_script
def test_a_script_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES.get(path.stem, 60)


@every_script
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_script_does_nothing_of_what_scripts_must_not(path: Path, what: str) -> None:
    code = parse(path.read_text(encoding="utf-8")).code

    assert re.findall(FORBIDDEN[what], code, re.IGNORECASE) == []


@every_script
def test_a_script_has_a_caller(path: Path) -> None:
    quoted = re.compile(rf"""["']{path.stem}(\.lua)?["']""")

    callers = [file.name for file in CALLERS if quoted.search(file.read_text(encoding="utf-8"))]

    assert callers != []


@every_script
def test_the_server_accepts_a_script(path: Path, raw: redis.Redis) -> None:
    text = path.read_text(encoding="utf-8")

    digest = raw.script_load(text)

    assert raw.script_exists(digest) == [True]
