"""
What a copy of the template is built with: images, compose, make, CI, pins.

All of it is read here as text or data, so that a slip shows without a Docker
engine; the parts of the Makefile that must work anywhere are run.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("worker", "caller")
#: Seconds a worker may take to drain (docs/design.md); whoever stops it must wait longer.
DRAIN_S = 25

each_service = pytest.mark.parametrize("service", SERVICES)
each_lock = pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- images ------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """A line of a Dockerfile, continuation lines joined."""

    word: str
    rest: str
    stage: int


def instructions(service: str) -> list[Instruction]:
    text = re.sub(r"^\s*#.*\n", "", read(f"Dockerfile.{service}"), flags=re.MULTILINE)
    found: list[Instruction] = []
    stage = -1
    for line in filter(str.strip, text.replace("\\\n", " ").splitlines()):
        word, _, rest = line.strip().partition(" ")
        stage += word == "FROM"
        found.append(Instruction(word, rest.strip(), stage))
    return found


def final_stage(service: str) -> list[Instruction]:
    found = instructions(service)
    return [line for line in found if line.stage == found[-1].stage]


def copied_from_here(service: str) -> list[str]:
    """Return the sources of every COPY from the build context, in all stages."""
    sources = []
    for line in instructions(service):
        words = [word for word in shlex.split(line.rest) if not word.startswith("--chown")]
        if line.word == "COPY" and not any(word.startswith("--from") for word in words):
            sources += words[:-1]
    return sources


def is_ignored(path: str) -> bool:
    """Say whether .dockerignore keeps a path out of the build context; its last match decides."""
    ignored = False
    for line in read(".dockerignore").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keeps = pattern.startswith("!")
        if matches(pattern.lstrip("!").strip("/"), path):
            ignored = not keeps
    return ignored


def matches(pattern: str, path: str) -> bool:
    """Match as Docker does: a pattern that names a folder also names what is in it."""
    parts = path.split("/")
    heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern.removeprefix("**/")) for part in parts)
    return any(
        fnmatch.fnmatchcase(head, pattern) and head.count("/") == pattern.count("/")
        for head in heads
    )


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("machine/errors.py", False),
        ("machine/broker/lua/claim.lua", False),
        ("requirements.lock", False),
        (".env", True),
        (".git/config", True),
        ("machine/.env.local", True),
        ("machine/__pycache__/errors.cpython-311.pyc", True),
        ("tests/conftest.py", True),
        ("requirements-dev.lock", True),
    ],
)
def test_the_build_context_holds_the_code_and_no_secret(path: str, ignored: bool) -> None:
    assert is_ignored(path) is ignored


@each_service
def test_an_image_does_not_run_as_root(service: str) -> None:
    (user,) = [line.rest for line in final_stage(service) if line.word == "USER"]

    # By number: Kubernetes cannot tell whether a name is root.
    assert user.isdigit()
    assert int(user) >= 10_000


@each_service
def test_an_image_runs_its_service_without_a_shell(service: str) -> None:
    (command,) = [line.rest for line in final_stage(service) if line.word == "CMD"]

    assert json.loads(command) == ["python", f"{service}/{service}.py"]
    assert (ROOT / service / f"{service}.py").is_file()


@each_service
def test_everything_an_image_copies_exists_and_reaches_it(service: str) -> None:
    sources = copied_from_here(service)

    assert sources == ["requirements.lock", "config.yml", "machine", service]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if is_ignored(source)] == []


@each_service
def test_an_image_installs_what_was_tested(service: str) -> None:
    installs = [line.rest for line in instructions(service) if "pip install" in line.rest]

    assert len(installs) == 1
    assert "--require-hashes -r requirements.lock" in installs[0]


@each_service
def test_an_image_finds_its_code_where_it_copied_it(service: str) -> None:
    stage = {line.word: line.rest for line in final_stage(service)}

    assert stage["WORKDIR"] == "/app"
    assert "PYTHONPATH=/app" in shlex.split(stage["ENV"])


def test_the_two_dockerfiles_are_one_recipe() -> None:
    worker, caller = (read(f"Dockerfile.{name}") for name in SERVICES)

    swapped = worker
    for ours, theirs in (("worker", "\0"), ("caller", "worker"), ("\0", "caller")):
        swapped = swapped.replace(ours, theirs)

    assert swapped == caller


# -- compose -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return loaded


def seconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(ms|s|m)", text)
    assert found, f"not a duration: {text!r}"
    return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60}[found[2]]


def options_of(command: list[str]) -> dict[str, str]:
    return {
        name.removeprefix("--"): value
        for name, value in zip(command[1::2], command[2::2], strict=True)
    }


def test_compose_has_a_server_a_worker_and_a_caller(compose: dict[str, Any]) -> None:
    assert list(compose["services"]) == ["redis", "worker", "caller"]
    assert "version" not in compose


@each_service
def test_a_service_can_be_scaled(service: str, compose: dict[str, Any]) -> None:
    # A name of its own, or a port of the host, is there only once.
    assert compose["services"][service].keys() & {"container_name", "ports", "hostname"} == set()


@each_service
def test_a_service_is_built_from_its_dockerfile(service: str, compose: dict[str, Any]) -> None:
    assert compose["services"][service]["build"] == {
        "context": ".",
        "dockerfile": f"Dockerfile.{service}",
    }


@each_service
def test_a_service_waits_for_a_healthy_server(service: str, compose: dict[str, Any]) -> None:
    needs = compose["services"][service]["depends_on"]["redis"]

    assert needs["condition"] == "service_healthy"
    assert compose["services"]["redis"]["healthcheck"]["test"][-1].startswith("redis-cli ping")


@each_service
def test_a_service_is_told_where_redis_is(service: str, compose: dict[str, Any]) -> None:
    entry = compose["services"][service]

    assert entry["environment"]["BROKER"] == "redis://redis:6379/0"
    assert entry["environment"]["RESULT_BACKEND"] == "redis://redis:6379/0"
    assert entry["env_file"] == [{"path": ".env", "required": False}]


@each_service
def test_a_service_has_no_rights_it_does_not_need(service: str, compose: dict[str, Any]) -> None:
    entry = compose["services"][service]

    assert entry["read_only"] is True
    assert entry["cap_drop"] == ["ALL"]
    assert entry["security_opt"] == ["no-new-privileges:true"]
    assert entry["tmpfs"] == ["/tmp:mode=1777,size=64m,noexec,nosuid"]
    assert entry["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}


def test_a_worker_has_time_to_drain(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]

    assert seconds(worker["stop_grace_period"]) > DRAIN_S
    assert worker["init"] is True
    assert worker["restart"] == "unless-stopped"


def test_the_caller_runs_once(compose: dict[str, Any]) -> None:
    assert compose["services"]["caller"]["restart"] == "no"
    assert "worker" in compose["services"]["caller"]["depends_on"]


def test_redis_keeps_its_data_and_evicts_nothing(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    options = options_of(redis["command"])

    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    assert "maxmemory" in options
    assert redis["volumes"] == ["redis-data:/data"]
    assert "redis-data" in compose["volumes"]


def test_redis_cannot_be_reached_from_outside(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]

    assert "ports" not in redis
    assert redis["networks"] == ["store"]
    assert compose["networks"]["store"] == {"internal": True}


def test_redis_can_be_another_server_with_one_variable(compose: dict[str, Any]) -> None:
    assert re.fullmatch(r"\$\{REDIS_IMAGE:-redis:\d+-\w+\}", compose["services"]["redis"]["image"])


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
