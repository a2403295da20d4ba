"""
What a copy of the template is built with: make, CI, pins.

All of it is read here as text or data, so that a slip shows without a Docker
engine; the parts of the Makefile that must work anywhere are run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("worker", "caller")

each_lock = pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- make --------------------------------------------------------------------------------------

TARGETS = [
    "help",
    "demo",
    "dev",
    "test",
    "check",
    "interop",
    "k8s",
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


@pytest.fixture
def bare_machine(tmp_path: Path) -> tuple[Path, Path]:
    """Return (checkout, the only folder on PATH) of a machine with make and little else."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, checkout)
    for name in ("touch", "awk"):
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


def test_make_takes_uv_where_it_is_installed(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    install(programs, "uv", 'echo "uv $*"; /bin/mkdir -p .venv')

    done = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    first, *calls = done.stdout.splitlines()
    assert (done.returncode, first) == (0, "-- .venv, with uv")
    assert [call.split(" --quiet")[0] for call in calls] == [
        "uv venv",
        "uv pip install",
        "uv pip install",
    ]
    assert "--require-hashes -r requirements-dev.lock" in calls[1]
    assert (checkout / ".venv" / ".ready").is_file()


def test_a_finished_environment_is_not_built_again(bare_machine: tuple[Path, Path]) -> None:
    checkout, programs = bare_machine
    install(programs, "uv", 'echo "uv $*"; /bin/mkdir -p .venv')
    make(".venv/.ready", cwd=checkout, PATH=str(programs))

    again = make(".venv/.ready", cwd=checkout, PATH=str(programs))

    assert "up to date" in again.stdout


# -- pins --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def pins(lock: str) -> dict[str, str]:
    """Return name -> version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", read(lock), re.MULTILINE))


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@each_lock
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", read(lock).strip())

    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert [entry for entry in entries if "==" not in entry] == []
    assert re.findall(r"https?:|--index|--find-links|--extra-index", read(lock)) == []


def test_the_locks_hold_what_the_project_asks_for(project: dict[str, Any]) -> None:
    core = {name_of(entry) for entry in project["project"]["dependencies"]}
    extras = project["project"]["optional-dependencies"]
    dev = {name_of(entry) for name in ("dev", "demo") for entry in extras[name]}

    assert core == {"redis", "pyyaml", "python-dotenv"}
    assert core <= pins("requirements.lock").keys()
    assert core | dev <= pins("requirements-dev.lock").keys()


def test_the_runtime_lock_holds_nothing_for_development(project: dict[str, Any]) -> None:
    dev = {name_of(entry) for entry in project["project"]["optional-dependencies"]["dev"]}

    assert pins("requirements.lock").keys() & dev == set()


def test_both_locks_agree() -> None:
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")

    assert {name: dev.get(name) for name in runtime} == runtime


def test_every_folder_with_code_is_packaged(project: dict[str, Any]) -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("machine", *SERVICES)
        for path in (ROOT / room).rglob("*.py")
    }

    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_scripts_and_types_are_packaged(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["*"]

    assert {"lua/*.lua", "py.typed"} <= set(patterns)
    assert (ROOT / "machine" / "py.typed").is_file()


def test_every_lint_exception_has_its_reason() -> None:
    section = read("pyproject.toml").partition("[tool.ruff.lint]")[2]
    lines = re.findall(r'^ +"[A-Z]+\d*".*$|^".*= \["ALL"\].*$', section, re.MULTILINE)

    assert lines != []
    assert [line for line in lines if not re.search(r"# \w+", line)] == []


# -- CI ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read(".github/workflows/ci.yml"))
    return loaded


def test_ci_runs_on_every_python_we_promise(
    workflow: dict[str, Any], project: dict[str, Any]
) -> None:
    promised = [
        found[1]
        for line in project["project"]["classifiers"]
        if (found := re.search(r":: (3\.\d+)$", line))
    ]

    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert project["project"]["requires-python"] == f">={promised[0]}"


def test_ci_runs_what_a_reader_can_run(workflow: dict[str, Any]) -> None:
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]

    assert commands == ["bash .ci/run"]
    assert workflow["permissions"] == {"contents": "read"}


def test_ci_pins_what_it_uses_by_commit(workflow: dict[str, Any]) -> None:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    checkouts = [step for step in steps if step["uses"].startswith("actions/checkout@")]

    assert [s["uses"] for s in steps if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", s["uses"])] == []
    assert checkouts != []
    assert [step for step in checkouts if step["with"]["persist-credentials"] is not False] == []


def test_ci_runs_for_pull_requests_without_the_rights_of_their_target(
    workflow: dict[Any, Any],
) -> None:
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True].keys() == {"push", "pull_request"}
    assert [name for name, job in workflow["jobs"].items() if "permissions" in job] == []


def test_the_dev_container_is_built_by_make() -> None:
    container = json.loads(read(".devcontainer/devcontainer.json"))

    assert container["postCreateCommand"] == "make .venv/.ready"
    assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("target", ["rename", "new-task"])
def test_make_takes_a_name_from_the_command_line_only(target: str) -> None:
    # Some systems have a variable NAME, the host's; `-o` keeps make from building an environment.
    done = make("-o", ".venv/.ready", target, NAME="desk")

    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(f"error: which name? make {target} NAME=")


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"

    checked = subprocess.run(
        ["bash", "-n", str(script)], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in read(".ci/run")
    assert re.findall(r"^make test$", read(".ci/run"), re.MULTILINE) == ["make test"]
