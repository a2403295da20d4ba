"""
The images and the compose project, read as text and data: a slip shows without an engine.

What needs an engine is in tests/service/test_compose.py.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from machine.config import Config

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy" / "compose"
SERVICES = ("worker", "caller")
#: Compose's services that run our code.
APPS = ("worker", "caller", "api")
LOCKS = {"worker": "requirements.lock", "caller": "requirements-api.lock"}

each_image = pytest.mark.parametrize("service", SERVICES)
each_app = pytest.mark.parametrize("service", APPS)


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
        words = shlex.split(line.rest)
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
        ("machine/redis/lua/claim.lua", False),
        ("requirements.lock", False),
        ("requirements-api.lock", False),
        (".env", True),
        (".git/config", True),
        ("machine/.env.local", True),
        ("machine/__pycache__/errors.cpython-311.pyc", True),
        ("tests/conftest.py", True),
        ("deploy/compose/keys.sh", True),
        ("requirements-dev.lock", True),
    ],
)
def test_the_build_context_holds_the_code_and_no_secret(path: str, ignored: bool) -> None:
    assert is_ignored(path) is ignored


@each_image
def test_an_image_does_not_run_as_root(service: str) -> None:
    (user,) = [line.rest for line in final_stage(service) if line.word == "USER"]

    # By number: Kubernetes cannot tell whether a name is root.
    assert user.isdigit()
    assert int(user) >= 10_000


@each_image
def test_an_image_runs_its_service_without_a_shell(service: str) -> None:
    (command,) = [line.rest for line in final_stage(service) if line.word == "CMD"]

    assert json.loads(command) == ["python", f"{service}/{service}.py"]
    assert (ROOT / service / f"{service}.py").is_file()


@each_image
def test_everything_an_image_copies_exists_and_reaches_it(service: str) -> None:
    sources = copied_from_here(service)

    assert sources == [LOCKS[service], "config.yml", "machine", service]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if is_ignored(source)] == []


@each_image
def test_an_image_installs_what_was_tested_before_the_code_is_there(service: str) -> None:
    found = instructions(service)
    [install] = [i for i, line in enumerate(found) if "pip --python" in line.rest]
    [code] = [i for i, line in enumerate(found) if line.rest.startswith("machine ")]

    exactly = "--no-deps --only-binary :all: --require-hashes -r"
    assert f"{exactly} {LOCKS[service]}" in found[install].rest
    assert install < code


@each_image
def test_an_image_has_no_installer(service: str) -> None:
    made = [line.rest for line in instructions(service) if "-m venv" in line.rest]

    assert made == ["python -m venv --without-pip /venv"]


@each_image
def test_an_image_finds_its_code_where_it_copied_it(service: str) -> None:
    stage = final_stage(service)
    variables = [word for line in stage if line.word == "ENV" for word in shlex.split(line.rest)]

    assert [line.rest for line in stage if line.word == "WORKDIR"] == ["/app"]
    assert "--from=build /app /app" in [line.rest for line in stage if line.word == "COPY"]
    assert "PYTHONPATH=/app" in variables


def test_the_workers_image_asks_the_worker_whether_it_hangs() -> None:
    stage = final_stage("worker")
    [check] = [line.rest for line in stage if line.word == "HEALTHCHECK"]
    variables = [word for line in stage if line.word == "ENV" for word in shlex.split(line.rest)]

    assert json.loads(check.partition("CMD ")[2]) == ["python", "-m", "machine", "health"]
    assert "WORKER_HEALTH_FILE=/tmp/werk.alive" in variables


def test_the_two_dockerfiles_are_one_recipe() -> None:
    def recipe(service: str) -> list[str]:
        lines = [f"{line.word} {line.rest}" for line in instructions(service)]
        text = "\n".join(line for line in lines if "HEALTH" not in line)
        return text.replace(LOCKS[service], "LOCK").replace(service, "SERVICE").splitlines()

    assert recipe("worker") == recipe("caller")


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
        for name, value in zip(command[::2], command[1::2], strict=True)
    }


def test_compose_has_these_services(compose: dict[str, Any]) -> None:
    optional = {name for name, entry in compose["services"].items() if "profiles" in entry}

    assert compose["services"].keys() - optional == {"keys", "redis", *APPS, "balancer"}
    assert optional == {"cli"}
    assert "version" not in compose


@each_app
def test_a_service_can_be_scaled(service: str, compose: dict[str, Any]) -> None:
    # A name of its own, or a port of the host, is there only once.
    assert compose["services"][service].keys() & {"container_name", "ports", "hostname"} == set()


@each_app
def test_a_service_is_built_from_its_dockerfile(service: str, compose: dict[str, Any]) -> None:
    assert compose["services"][service]["build"] == {
        "context": ".",
        "dockerfile": f"Dockerfile.{service.replace('api', 'caller')}",
    }


def test_the_http_caller_runs_a_program_of_the_callers_image(compose: dict[str, Any]) -> None:
    assert compose["services"]["api"]["command"] == ["python", "caller/api.py"]
    assert (ROOT / "caller" / "api.py").is_file()


@each_app
def test_a_service_waits_for_a_healthy_server(service: str, compose: dict[str, Any]) -> None:
    needs = compose["services"][service]["depends_on"]["redis"]

    assert needs == {"condition": "service_healthy"}
    assert "--user health ping" in compose["services"]["redis"]["healthcheck"]["test"][-1]


@each_app
def test_a_developers_addresses_do_not_reach_a_container(
    service: str, compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = compose["services"][service]["environment"]
    (tmp_path / "url").write_text("redis://caller:secret@redis:6379/0\n")
    developers = {"BROKER": "redis://localhost/0", "RESULT_BACKEND": "redis://localhost/1"}
    for name, value in (developers | {"REDIS_URL": "redis://localhost/2"} | given).items():
        monkeypatch.setenv(name, value.replace("/run/keys/", f"{tmp_path}/"))
    monkeypatch.delenv("API_TOKEN_FILE", raising=False)
    monkeypatch.chdir(tmp_path)

    config = Config.load()

    assert config.broker == "redis://caller:secret@redis:6379/0"
    assert config.result_backend in ("", config.broker)
    assert compose["services"][service]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("service", ["keys", "redis", *APPS, "balancer", "cli"])
def test_a_service_has_no_rights_it_does_not_need(service: str, compose: dict[str, Any]) -> None:
    entry = compose["services"][service]

    assert entry["read_only"] is True
    assert entry["cap_drop"] == ["ALL"]
    assert "cap_add" not in entry
    assert entry["security_opt"] == ["no-new-privileges:true"]
    assert entry["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    assert entry.get("tmpfs", []) in ([], ["/tmp:mode=1777,size=64m,noexec,nosuid"])
    # The keys' maker owns its volumes, and reaches nothing else.
    assert (entry.get("user") == "0") is (entry.get("network_mode") == "none")


@pytest.mark.parametrize("service", ["redis", *APPS, "cli"])
def test_a_service_reads_its_own_keys_only(service: str, compose: dict[str, Any]) -> None:
    volumes = [volume for volume in compose["services"][service]["volumes"] if "keys" in volume]
    owner = {"api": "caller", "cli": "redis"}.get(service, service)

    assert volumes == [f"{owner}-keys:/run/keys:ro"]


def test_whoever_stops_a_service_waits_longer_than_it_drains(compose: dict[str, Any]) -> None:
    for service in ("worker", "api"):
        entry = compose["services"][service]
        assert seconds(entry["stop_grace_period"]) > Config().worker_shutdown_timeout_s
        assert entry["init"] is True
        assert entry["restart"] == "unless-stopped"


def test_the_caller_runs_once(compose: dict[str, Any]) -> None:
    assert compose["services"]["caller"]["restart"] == "no"
    assert "worker" in compose["services"]["caller"]["depends_on"]


def test_redis_keeps_its_data_and_evicts_nothing(compose: dict[str, Any]) -> None:
    entry = compose["services"]["redis"]
    options = options_of(entry["command"][4:])

    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    assert {"maxmemory", "aclfile"} <= options.keys()
    assert "redis-data:/data" in entry["volumes"]
    assert "redis-data" in compose["volumes"]


def test_only_the_balancer_can_be_reached_and_only_from_this_machine(
    compose: dict[str, Any],
) -> None:
    published = {name: e["ports"] for name, e in compose["services"].items() if "ports" in e}

    assert published == {"balancer": ["127.0.0.1:${API_PORT:-8000}:8080"]}
    assert compose["services"]["redis"]["networks"] == ["store"]
    assert compose["services"]["api"]["networks"] == ["front", "store"]
    assert compose["networks"]["store"] == compose["networks"]["front"] == {"internal": True}


def test_redis_can_be_another_server_with_one_variable(compose: dict[str, Any]) -> None:
    chosen = {
        "file": "deploy/compose/server${VALKEY:+-valkey}.yml",
        "service": "server",
    }
    images = {
        name: yaml.safe_load(read(f"deploy/compose/{name}.yml"))["services"]["server"]["image"]
        for name in ("server", "server-valkey")
    }

    for name in ("keys", "redis", "cli"):
        assert compose["services"][name]["extends"] == chosen
    assert re.fullmatch(r"\$\{REDIS_IMAGE:-redis:\d+-\w+\}", images["server"])
    assert re.fullmatch(r"\$\{REDIS_IMAGE:-valkey/valkey:\d+-\w+\}", images["server-valkey"])


def test_a_change_of_code_is_noticed(compose: dict[str, Any]) -> None:
    for service, folder in (("worker", "worker"), ("api", "caller")):
        watched = compose["services"][service]["develop"]["watch"]
        assert [entry["path"] for entry in watched] == ["machine", folder, "config.yml"]


def test_every_mounted_file_exists(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for entry in compose["services"].values()
        for volume in entry.get("volumes", [])
        if volume.startswith(".")
    ]

    assert [path for path in mounted if not (ROOT / path).is_file()] == []


def test_the_balancer_finds_replicas_that_come_later_and_holds_back_no_event() -> None:
    text = (DEPLOY / "nginx.conf").read_text()

    assert re.search(r"resolver 127\.0\.0\.11 valid=\ds", text)
    assert "proxy_pass $callers;" in text  # a name, not a variable, would be looked up once
    assert "proxy_buffering off;" in text
