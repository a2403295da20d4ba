"""
Both ends of the wire, each in both languages, as real processes on a real server.

A `Crossing` is one database with callers and workers of both kinds. Go's are
go/, built once for each Machinery; Python's workers are worker/worker.py. The
two callers take the same `Job` and give the same `Answer`, so that a test can
say which way it goes by naming them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from machine.embedded import EmbeddedServer, NoServer
from tests.interop.crossing import Crossing, Peer

HERE = Path(__file__).resolve().parent
_TAGS = {"v1": "machinery_v1", "v2": ""}
#: Both Machineries with both of their Redis drivers.
PEERS = [Peer(v, d) for v in ("v2", "v1") for d in ("redigo", "goredis")]
DATABASES = 1000


class _Server(NamedTuple):
    """The run's server, and the numbers of its databases not used yet."""

    embedded: EmbeddedServer
    databases: Iterator[int]


@pytest.fixture(scope="session")
def programs(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Build go/ for each Machinery; pytest's cache keeps both, and only a change builds anew."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        # At a desk the rest is still worth running; in CI a skip would hide this suite.
        text = (
            "no Go toolchain is installed (1.22 or newer is needed); see https://go.dev/doc/install"
        )
        if os.environ.get("CI"):
            pytest.fail(f"CI needs Go: {text}", pytrace=False)
        pytest.skip(text)
    cache = pytestconfig.cache
    folder = cache.mkdir("interop") if cache else tmp_path_factory.mktemp("interop")
    made = {}
    for version, tags in _TAGS.items():
        made[version] = folder / f"machinery-{version}"
        command = [go, "build", "-buildvcs=false", "-tags", tags, "-o", str(made[version]), "."]
        environment = os.environ | {"CGO_ENABLED": "0"}
        built = subprocess.run(
            command, cwd=HERE / "go", env=environment, capture_output=True, text=True, check=False
        )
        if built.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{built.stderr}", pytrace=False)
    return made


@pytest.fixture(scope="session")
def shared_server() -> Iterator[_Server]:
    """Start the suite's own server: each test has a database of it to itself."""
    try:
        running = EmbeddedServer(args=("--databases", str(DATABASES))).start()
    except NoServer as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a server: {error}", pytrace=False)
        pytest.skip(str(error))
    yield _Server(running, itertools.count(1))
    running.stop()


@pytest.fixture(params=PEERS, ids=str)
def peer(request: pytest.FixtureRequest) -> Peer:
    """Return each Machinery on each driver; a test for one of them parametrises this anew."""
    found: Peer = request.param
    return found


@pytest.fixture
def crossing(
    programs: dict[str, Path], shared_server: _Server, peer: Peer, tmp_path: Path
) -> Iterator[Crossing]:
    """Return an empty database with nobody at work yet."""
    yield from _crossing(programs, shared_server, peer, tmp_path)


@pytest.fixture(scope="session", params=PEERS, ids=str)
def lively(
    request: pytest.FixtureRequest,
    programs: dict[str, Path],
    shared_server: _Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crossing]:
    """Return a database with a worker of each language on its own queue, shared by many tests."""
    folder = tmp_path_factory.mktemp("lively")
    for made in _crossing(programs, shared_server, request.param, folder):
        made.both_workers(concurrency=10)
        yield made


@pytest.fixture(scope="session", params=PEERS, ids=str)
def mixing(
    request: pytest.FixtureRequest,
    programs: dict[str, Path],
    shared_server: _Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crossing]:
    """Return what `lively` does, with a Python worker that expects mixed groups."""
    folder = tmp_path_factory.mktemp("mixing")
    for made in _crossing(programs, shared_server, request.param, folder):
        made.both_workers(concurrency=10, INTEROP_GROUPS="true")
        yield made


def _crossing(
    programs: dict[str, Path], server: _Server, peer: Peer, folder: Path
) -> Iterator[Crossing]:
    number = next(server.databases) % DATABASES
    made = Crossing(programs[peer.version], peer, server.embedded.port, number, folder)
    try:
        yield made
    finally:
        made.close()
