"""
The Makefile, run on machines that have little: which Python it takes, what it installs and when.

Installers and Pythons are stand-ins here, which say what they were told; that
the real ones install the real locks is shown by tests/installs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


TARGETS = [
    "help",
    "demo",
    "dev",
    "test",
    "check",
    "interop",
    "k8s",
    "installs",
    "worker",
    "caller",
    "api",
    "redis",
    "bench",
    "fmt",
    "lock",
    "rename",
    "new-task",
    "clean",
]
#: What make 3.81, the one of macOS, does not know or its tools do otherwise.
TOO_NEW = [
    r"^\.ONESHELL",
    r"&:",
    r"\$\(file ",
    r"!=",
    r"::=",
    r"readlink -f",
    r"sed -i",
    r"date -d",
]


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed here")
    return subprocess.run(
        [program, "--no-print-directory", *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_make_lists_its_targets(arguments: list[str]) -> None:
    listing = make(*arguments)

    rows = [line.split(maxsplit=2) for line in listing.stdout.splitlines()]

    assert listing.returncode == 0
    assert [target for _, target, _ in rows] == TARGETS


def test_every_phony_target_is_listed() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", read("Makefile"), re.MULTILINE)

    assert phony.split() == TARGETS


@pytest.mark.parametrize("pattern", TOO_NEW)
def test_the_makefile_works_with_an_old_make(pattern: str) -> None:
    recipes = re.sub(r"^#.*$", "", read("Makefile"), flags=re.MULTILINE)

    assert re.findall(pattern, recipes, re.MULTILINE) == []


def test_what_make_runs_is_there() -> None:
    scripts = re.findall(r"^\t\$\(RUN\) (\S+\.py)", read("Makefile"), re.MULTILINE)

    assert scripts == [
        "examples/demo.py",
        "worker/worker.py",
        "caller/caller.py",
        "caller/api.py",
        "benchmarks/run.py",
    ]
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


# -- set-up ----------------------------------------------------------------------------------


@pytest.fixture
def bare_machine(tmp_path: Path) -> tuple[Path, Path]:
    """Return (checkout, the only folder on PATH) of a machine with make and little else."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ("Makefile", *LOCKS):
        shutil.copy(ROOT / name, checkout)
    for name in ("touch", "awk", "mkdir", "mv", "rm"):
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not installed"))
    return checkout, programs


def install(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def python_of(version: str, *, is_enough: bool, venv: str = "exit 1") -> str:
    """Return a stand-in that answers the Makefile's three questions."""
    return (
        f'case "$1 $2" in\n"-c "*print*) echo {version} ;;\n"-c "*) exit {int(not is_enough)} ;;\n'
        f'"-m venv") {venv} ;;\nesac'
    )


def test_make_says_that_no_python_is_installed(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "error: Python 3.11 or newer is needed (found: none). "
        "Install it, or install uv and run make again."
    )


def test_make_says_that_the_python_is_too_old(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    install(programs, "python3", python_of("3.9.18", is_enough=False))

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "error: Python 3.11 or newer is needed (found: Python 3.9.18). "
        "Install it, or install uv and run make again."
    )


def test_make_says_which_package_makes_environments(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    install(programs, "python3", python_of("3.12.3", is_enough=True))

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "error: python3 cannot make a virtual environment. "
        "On Debian or Ubuntu: sudo apt install python3-venv"
    )
    assert not (checkout / ".venv" / ".ready").exists()


def test_make_takes_the_newest_python_that_works(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    # As a version manager leaves it: a name on PATH with nothing behind it.
    install(programs, "python3.14", "exit 127")
    install(programs, "python3.12", python_of("3.12.3", is_enough=True))
    install(programs, "python3.11", python_of("3.11.9", is_enough=True))

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    assert done.stdout.splitlines() == ["-- .venv, with Python 3.12.3"]


def test_make_takes_the_python_it_is_given(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    install(programs, "python3.12", python_of("3.12.3", is_enough=True))
    install(programs, "python3.11", python_of("3.11.9", is_enough=True))

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs), PYTHON="python3.11")

    assert done.stdout.splitlines() == ["-- .venv, with Python 3.11.9"]


#: A stand-in that says what it was told, and leaves an environment with a Python that does nothing.
UV = """echo "uv $*"
case "$1" in
venv) rm -rf .venv; mkdir -p .venv/bin
  echo '#!/bin/sh' > .venv/bin/python; chmod +x .venv/bin/python ;;
esac"""
#: The same, cut short where it should install what tests need.
UV_CUT_SHORT = f'{UV}\ncase "$*" in *requirements-dev.lock) exit 1 ;; esac'


@pytest.fixture
def uv_machine(bare_machine: tuple[Path, Path]) -> tuple[Path, Path]:
    """Return a bare machine that has uv."""
    checkout, programs = bare_machine
    (programs / "chmod").symlink_to(shutil.which("chmod") or pytest.fail("chmod is not installed"))
    install(programs, "uv", UV)
    return checkout, programs


def installed(checkout: Path, programs: Path, target: str) -> list[str]:
    """Make something; return the locks that were installed for it."""
    done = make(target, cwd=checkout, PATH=str(programs))
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^uv pip install .* -r (\S+)$", done.stdout, re.MULTILINE)


def test_make_takes_uv_where_it_is_installed(uv_machine: tuple[Path, Path]) -> None:
    checkout, programs = uv_machine

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    first, *calls = done.stdout.splitlines()
    assert (done.returncode, first) == (0, "-- .venv, with uv")
    assert [call.split(" --quiet")[0] for call in calls] == ["uv venv", "uv pip install"]
    assert (checkout / ".venv" / ".ready").is_file()


def test_the_demo_waits_for_no_test_tools(uv_machine: tuple[Path, Path]) -> None:
    checkout, programs = uv_machine

    assert installed(checkout, programs, "demo") == ["requirements-demo.lock"]
    assert installed(checkout, programs, "check") == ["requirements-dev.lock"]
    assert installed(checkout, programs, "k8s") == ["requirements-k8s.lock"]


@pytest.mark.parametrize("target", ["dev", "worker", "caller", "api", "redis", "bench"])
def test_what_runs_needs_what_the_demo_needs(target: str, uv_machine: tuple[Path, Path]) -> None:
    assert installed(*uv_machine, target) == ["requirements-demo.lock"]


def test_a_finished_environment_is_not_built_again(uv_machine: tuple[Path, Path]) -> None:
    checkout, programs = uv_machine
    installed(checkout, programs, ".venv/.k8s")

    again = [
        line
        for stamp in (".venv/.ready", ".venv/.dev", ".venv/.k8s")
        for line in make(stamp, cwd=checkout, PATH=str(programs)).stdout.splitlines()
    ]

    assert [line for line in again if "up to date" not in line] == []


def test_an_environment_that_broke_half_way_is_built_again(uv_machine: tuple[Path, Path]) -> None:
    checkout, programs = uv_machine
    installed(checkout, programs, ".venv/.ready")
    install(programs, "uv", UV_CUT_SHORT)
    broken = make("check", cwd=checkout, PATH=str(programs))
    install(programs, "uv", UV)

    assert broken.returncode != 0
    assert installed(checkout, programs, "demo") == ["requirements-demo.lock"]


@pytest.mark.parametrize("lock", ["demo", "dev", "k8s"])
def test_a_changed_lock_builds_the_environment_again(
    lock: str, uv_machine: tuple[Path, Path]
) -> None:
    checkout, programs = uv_machine
    installed(checkout, programs, ".venv/.dev")
    stamped_ns = (checkout / ".venv" / ".dev").stat().st_mtime_ns
    os.utime(checkout / f"requirements-{lock}.lock", ns=(stamped_ns + 1, stamped_ns + 1))

    again = installed(checkout, programs, ".venv/.dev")

    assert again == ["requirements-demo.lock", "requirements-dev.lock"]


def texts() -> dict[str, str]:
    """Return file -> text of all that is not a test, a lock, or made by a program."""
    made = re.compile(
        r"\.git$|\.venv.*|.*_cache$|__pycache__|.*\.egg-info$|htmlcov|build|dist|tests"
    )
    found = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not made.fullmatch(name)]
        for path in (Path(folder) / name for name in names if not name.endswith(".lock")):
            with suppress(UnicodeDecodeError):
                found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


def test_whatever_installs_a_lock_installs_just_that() -> None:
    """Look for installs of a lock in every file: none may resolve, build, or skip the hashes."""
    installs = {
        (name, line)
        for name, text in texts().items()
        for line in re.findall(
            r"^.*\binstall\b.*\s-r\b.*$", text.replace("\\\n", " "), re.MULTILINE
        )
    }

    files = {name for name, _ in installs}
    assert files >= {"Makefile", "Dockerfile.worker", "Dockerfile.caller"}
    exactly = "--no-deps --only-binary :all: --require-hashes -r"
    assert [(name, line) for name, line in installs if exactly not in " ".join(line.split())] == []


@pytest.mark.parametrize("target", ["rename", "new-task"])
def test_make_takes_a_name_from_the_command_line_only(target: str) -> None:
    # Some systems have a variable NAME, the host's; `-o` keeps make from building an environment.
    done = make("-o", ".venv/.ready", target, NAME="desk")

    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(f"error: which name? make {target} NAME=")
