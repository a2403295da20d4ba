"""
The compose project as it stands, under a name of its own, and what a test does to it.

Only what a test needs is added, in a second file: a module of tasks, a short
lease, one process for each worker, and any free port.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import redis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
TASKS = Path(__file__).with_name("compose_tasks.py")
RUNS = "{machinery_tasks}:test:runs"
WORKERS, APIS = 4, 3
LEASE_S = 4
#: Answers of a replica, or of the balancer, that is about to go or whose Redis is away.
_LATER = {502, 503, 504}
#: Not used, but costly to make for each request.
_TLS = ssl.create_default_context()


def engine_problem() -> str:
    """Return why there is no Docker engine with compose here, or ""."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if run.returncode:
            return f"{' '.join(command)}: {(run.stderr or run.stdout).strip()[-200:]}"
    return ""


def override() -> dict[str, Any]:
    """Return the second compose file."""
    variables = {"TASKS_MODULES": "machine.tasks,compose_tasks", "PYTHONPATH": "/app:/tests"}
    volumes = [f"{TASKS}:/tests/compose_tasks.py:ro"]
    worker = {
        "WORKER_PROCESSES": "1",
        "WORKER_LEASE_S": str(LEASE_S),
        "WORKER_HEARTBEAT_S": "1",
        "WORKER_BLOCK_S": "1",
    }
    return {
        "services": {
            "worker": {
                "volumes": volumes,
                "environment": variables | worker,
                "healthcheck": {"interval": "2s"},
            },
            "api": {"volumes": volumes, "environment": variables},
        }
    }


def ask(method: str, url: str, **more: Any) -> httpx.Response:
    """Send a request over a connection of its own."""
    with httpx.Client(timeout=60, verify=_TLS, trust_env=False) as client:
        return client.request(method, url, **more)


class Stack:
    """A running project: its containers, its HTTP address, its Redis."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        self._second = folder / "second.json"
        self._second.write_text(json.dumps(override()))
        names = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "REDIS_IMAGE")
        self._environ = {name: os.environ[name] for name in names if name in os.environ}
        self._environ |= {"API_PORT": "0", "COMPOSE_ANSI": "never", "COMPOSE_PROGRESS": "quiet"}
        self._passwords: dict[str, str] = {}
        self._base: tuple[str, dict[str, str]] | None = None

    # -- docker ----------------------------------------------------------------------------
    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            ["docker", *words],
            cwd=ROOT,
            env=self._environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and run.returncode:
            text = f"docker {' '.join(words)}: status {run.returncode}\n{run.stdout}{run.stderr}"
            raise AssertionError(text)
        return run

    def compose(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # No env file: what a developer keeps in .env is nothing to a test.
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(self._second))
        return self.docker(
            *("compose", "-p", self.project, "--env-file", os.devnull, *files, *words), check=check
        )

    def up(self, workers: int = WORKERS, apis: int = APIS) -> None:
        """Have so many healthy replicas, whatever has become of those there were."""
        scale = ("--scale", f"worker={workers}", "--scale", f"api={apis}")
        self.compose("up", "-d", "--wait", *scale, "worker", "api", "balancer")
        self._passwords = self._passwords or self._read_passwords()

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).stdout.split()

    def inspect(self, container: str) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.docker("inspect", container).stdout)[0])

    def run_in(
        self, container: str, *command: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.docker("exec", container, *command, check=check)

    def address(self, container: str, network: str) -> str:
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def health(self, container: str) -> str:
        return str(self.inspect(container)["State"]["Health"]["Status"])

    def password(self, user: str) -> str:
        return self._passwords[user]

    def _read_passwords(self) -> dict[str, str]:
        """Read them while every service runs; a test may stop any."""
        files = {"worker": ("worker", "password"), "caller": ("api", "password")}
        files |= {user: ("redis", user) for user in ("admin", "health")}
        return {
            user: self.run_in(
                self.containers(service)[0], "cat", f"/run/keys/{file}"
            ).stdout.strip()
            for user, (service, file) in files.items()
        }

    # -- Redis -----------------------------------------------------------------------------
    @contextmanager
    def redis_as(self, user: str) -> Iterator[redis.Redis]:
        [server] = self.containers("redis")
        with redis.Redis(
            host=self.address(server, "store"),
            username=user,
            password=self.password(user),
            driver_info=None,
        ) as client:
            yield client

    def runs(self) -> dict[str, int]:
        """Return how often each `mark` has begun, by its name."""
        with self.redis_as("admin") as client:
            return {name.decode(): int(count) for name, count in client.hgetall(RUNS).items()}

    # -- HTTP ------------------------------------------------------------------------------
    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request through the balancer, with the token."""
        if self._base is None:
            api = self.containers("api")[0]
            token = self.run_in(api, "cat", "/run/keys/api_token").stdout.strip()
            port = self.compose("port", "balancer", "8080").stdout.strip().rpartition(":")[2]
            self._base = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
        url, headers = self._base
        return ask(method, url + path, headers=headers | more.pop("headers", {}), **more)

    def ask_replica(self, container: str, path: str) -> httpx.Response:
        """Send a request to one replica, past the balancer."""
        self.ask("GET", "/livez")
        _, headers = self._base or ("", {})
        return ask("GET", f"http://{self.address(container, 'front')}:8000{path}", headers=headers)

    def send(self, names: Iterable[str], seconds: float) -> dict[str, str]:
        """Send a `mark` for each name, through the balancer; return name -> id."""

        def one(name: str) -> tuple[str, str]:
            # The key makes a second try harmless: whether the first one arrived is unknown.
            key = {"Idempotency-Key": f"{self.project}-{name}"}
            body = {"args": [name, seconds]}
            return name, self._patient("POST", "/tasks/mark", json=body, headers=key)["id"]

        with ThreadPoolExecutor(8) as pool:
            return dict(pool.map(one, names))

    def results(self, ids: dict[str, str], patience_s: float = 60) -> dict[str, str]:
        """Wait for all results; return name -> the container that ran it."""
        give_up_at = time.monotonic() + patience_s

        def one(name: str) -> tuple[str, str]:
            while True:
                found = self._patient("GET", f"/results/{ids[name]}?wait=5")
                if found["ended"]:
                    assert found["state"] == "SUCCESS", found
                    return name, found["result"]
                assert time.monotonic() < give_up_at, f"no result of {name}: {found}"

        with ThreadPoolExecutor(8) as pool:
            return dict(pool.map(one, ids))

    def _patient(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        give_up_at = time.monotonic() + 30
        while True:
            answer = self.ask(method, path, **more)
            if answer.status_code not in _LATER or time.monotonic() > give_up_at:
                assert answer.status_code in (200, 202), (answer.status_code, answer.text)
                return cast("dict[str, Any]", answer.json())

    def down(self) -> None:
        """Remove everything of this project: containers, networks, volumes, images."""
        words = ("--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "1")
        self.compose("--profile", "tools", "down", *words)

    def log(self, *services: str) -> str:
        return self.compose("logs", "--no-color", "--tail", "200", *services).stdout
