"""
Each lock, installed by each installer as Makefile and Dockerfiles say it: ``make installs``.

The wheels are downloaded once, from whatever index pip is set to; then an index on
127.0.0.1 serves them, and beside each a version that is newer than the lock. What comes out
must not depend on it: an index always has newer versions, soon after a lock was written.

oldest.lock has the pip that each Python comes with at the least (23.0.1 is Debian 12's), and
stays; newest.lock is moved on by ``make lock``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import Parser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.installs.index import Index, normalised

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
INSTALLERS = ("oldest pip", "newest pip", "uv")
#: Where the Makefile installs a lock: the stamp to make, and the one it is made on.
STAMPS = {
    "requirements-demo.lock": (".venv/.ready", None),
    "requirements-dev.lock": (".venv/.dev", ".venv/.ready"),
    "requirements-k8s.lock": (".venv/.k8s", ".venv/.dev"),
}
IMAGES = {"requirements.lock": "Dockerfile.worker", "requirements-api.lock": "Dockerfile.caller"}
#: What `python -m venv` itself puts into an environment.
BROUGHT_ALONG = {"pip", "setuptools"}
#: Environments besides this one that a lock is for. 3.11.2 is Debian 12's.
PYTHONS = ("3.11.2", "3.11.9", "3.12.0", "3.13.0", "3.14.0")
PLATFORMS = ("linux", "darwin")


def run(
    command: list[str], cwd: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=300
    )


class Pin(NamedTuple):
    """A line of a lock; without a marker it is for every environment."""

    name: str
    version: str
    marker: Marker | None

    def is_for(self, environment: dict[str, str] | None = None) -> bool:
        """Say whether it is installed there; by default, here."""
        return self.marker is None or self.marker.evaluate(environment)


def pins(lock: Path) -> list[Pin]:
    lines = re.findall(r"^(\S+)==(\S+)(?: ; (.+?))?(?: \\)?$", lock.read_text(), re.MULTILINE)
    return [Pin(name, version, Marker(text) if text else None) for name, version, text in lines]


def versions(lock: Path, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return name -> version of what is installed in an environment; by default, here."""
    return {pin.name: pin.version for pin in pins(lock) if pin.is_for(environment)}


# -- what is downloaded ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the wheels of every lock, for this Python, and of the installers."""
    python = sys.executable
    if importlib.util.find_spec("pip") is None:  # uv's environments have none
        own = tmp_path_factory.mktemp("downloader")
        made = run([python, "-m", "venv", str(own)], own, os.environ)
        assert made.returncode == 0, made.stdout + made.stderr
        python = str(own / "bin" / "python")
    folder = tmp_path_factory.mktemp("wheels")
    for lock in [*(ROOT / name for name in LOCKS), *sorted(HERE.glob("*.lock"))]:
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
        command = [python, "-m", "pip", "download", "--quiet", *options, "-r", str(lock)]
        done = run(command, folder, os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        if done.returncode:
            pytest.fail(
                f"these tests need the wheels of {lock.name}, and pip could not download them from "
                f"the index it is set to; is this machine offline?\n{done.stderr}",
                pytrace=False,
            )
    return folder


@pytest.fixture(scope="session")
def index(downloaded: Path) -> Iterator[Index]:
    wheels = list(downloaded.glob("*.whl"))
    names = {pin.name for lock in LOCKS for pin in pins(ROOT / lock)}
    # A build would ask for these.
    with Index(wheels, names | {"setuptools", "wheel", "hatchling"}) as served:
        yield served


@pytest.fixture
def environ(index: Index, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a machine whose only index is ours, and whose caches are empty."""
    ours = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_COMPILE": "1",  # that is time only
        "UV_NO_CONFIG": "1",
        "UV_INDEX_URL": index.url,
        "UV_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "NO_PROXY": "127.0.0.1",
    }
    foreign = ("PIP_", "UV_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHONPATH")
    index.asked.clear()
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | ours


class Installer(NamedTuple):
    """
    An installer, and what to tell make so that it takes it.

    Args:
        python: A Python whose new environments have this pip; with uv, they have none.
        uv: The program, ``""`` where pip is to be used.
        pip: The folder with the package pip, which can be run.
    """

    python: Path
    uv: str
    pip: Path

    def make(self, *arguments: str) -> list[str]:
        return [
            "make",
            "--no-print-directory",
            f"UV={self.uv}",
            f"PYTHON={self.python}",
            *arguments,
        ]


#: A Python that ships another pip: it is linked into each environment that this Python makes.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
shift 2
{python} -m venv --without-pip "$@" || exit
for environment; do :; done
exec ln -s {pip}/* "$("$environment/bin/python" -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')"
"""


@pytest.fixture(scope="session")
def pips(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return oldest, newest -> the folder that pip is unpacked in."""
    folders = {}
    for age in ("oldest", "newest"):
        version = versions(HERE / f"{age}.lock")["pip"]
        folders[age] = tmp_path_factory.mktemp(f"pip-{age}")
        with zipfile.ZipFile(downloaded / f"pip-{version}-py3-none-any.whl") as wheel:
            wheel.extractall(folders[age])
    return folders


@pytest.fixture(params=INSTALLERS)
def installer(
    request: pytest.FixtureRequest, downloaded: Path, pips: dict[str, Path], tmp_path: Path
) -> Installer:
    age, _, name = request.param.rpartition(" ")
    pip = pips[age or "newest"] / "pip"
    if name == "uv":
        [wheel] = downloaded.glob("uv-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [member] = [file for file in archive.namelist() if file.endswith("/scripts/uv")]
            uv = Path(archive.extract(member, tmp_path / "uv"))
        uv.chmod(0o755)
        return Installer(Path(sys.executable), str(uv), pip)
    python = tmp_path / "python"
    text = PYTHON.format(python=shlex.quote(sys.executable), pip=shlex.quote(str(pip.parent)))
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    return Installer(python, "", pip)


# -- installing --------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what set-up reads."""
    folder = tmp_path / "check out"  # people have spaces in their paths
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, folder)
    return folder


def installed(environment: Path) -> dict[str, str]:
    """Return name -> version of what is in an environment."""
    code = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps([(d.metadata['Name'], d.version) for d in m.distributions()]))"
    )
    command = [str(environment / "bin" / "python"), "-I", "-c", code]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return {normalised(name): version for name, version in json.loads(listing.stdout)}


def assert_exact(lock: str, environment: Path, installer: Installer, index: Index) -> None:
    """Hold what is installed, and what was downloaded, against the lock."""
    wanted = versions(ROOT / lock)
    found = {k: v for k, v in installed(environment).items() if k not in BROUGHT_ALONG - {*wanted}}
    assert found == wanted
    downloads = {tuple(name.split("-")[:2]) for name in index.asked}
    assert {normalised(name): version for name, version in downloads} == wanted
    python = str(environment / "bin" / "python")
    checked = run(
        [sys.executable, str(installer.pip), "--python", python, "check"], ROOT, os.environ
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_lock_is_installed_somewhere() -> None:
    assert sorted([*STAMPS, *IMAGES]) == LOCKS


@pytest.mark.parametrize("lock", STAMPS)
def test_make_installs_what_the_lock_names(
    lock: str, checkout: Path, environ: dict[str, str], installer: Installer, index: Index
) -> None:
    stamp, before = STAMPS[lock]
    arguments = [stamp]
    if before:  # in an empty environment: as if what comes before had installed nothing
        make_environment(checkout / ".venv", installer, environ)
        (checkout / ".venv" / ".ready").touch()
        arguments = ["-o", before, stamp]

    done = run(installer.make(*arguments), checkout, environ)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / stamp).is_file()
    assert_exact(lock, checkout / ".venv", installer, index)


def make_environment(path: Path, installer: Installer, environ: Mapping[str, str]) -> None:
    python = str(installer.python)
    command = [installer.uv, "venv", "--python", python] if installer.uv else [python, "-m", "venv"]
    made = run([*command, str(path)], path.parent, environ)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_installs_what_the_lock_names(
    lock: str, checkout: Path, environ: dict[str, str], installer: Installer, index: Index
) -> None:
    venv = checkout / "venv"
    make_environment(venv, installer, environ)
    if installer.uv:  # whoever takes uv has make's line
        (checkout / "more.mk").write_text("lock: ; $(INSTALL) $(FILE)\n", encoding="utf-8")
        files = ["-f", "Makefile", "-f", "more.mk"]
        command = installer.make(*files, "lock", f"RUN={venv.name}/bin/python", f"FILE={lock}")
    else:
        pip = " ".join(shlex.quote(str(part)) for part in (sys.executable, installer.pip))
        (checkout / "pip").write_text(f'#!/bin/sh\nexec {pip} "$@"\n', encoding="utf-8")
        (checkout / "pip").chmod(0o755)
        environ["PATH"] = f"{checkout}{os.pathsep}{environ['PATH']}"
        command = ["sh", "-c", install_line(IMAGES[lock]).replace("/venv/", f"{venv.name}/")]

    done = run(command, checkout, environ)

    assert done.returncode == 0, done.stdout + done.stderr
    assert_exact(lock, venv, installer, index)


def install_line(dockerfile: str) -> str:
    """Return the command that installs the lock, as a shell takes it."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8").replace("\\\n", " ")
    [line] = [row for row in text.splitlines() if row.startswith("RUN ") and ".lock" in row]
    return re.sub(r"^RUN +(?:--\S+ +)*", "", line)


# -- completeness ------------------------------------------------------------------------------


class Locked:
    """A lock, what its packages ask for, and an environment it is for."""

    def __init__(self, lock: str, wheels: Path, environment: dict[str, str]) -> None:
        self._versions = versions(ROOT / lock, environment)
        self._wheels = wheels
        self._environment = environment
        self.missing: set[str] = set()

    def follow(self, requirements: list[Requirement]) -> None:
        """Note in `missing` what these and all they ask for, extras included, lack in the lock."""
        seen: set[tuple[str, str]] = set()
        waiting = [(entry, "pyproject.toml", "") for entry in requirements]
        while waiting:
            entry, asker, extra = waiting.pop()
            environment = {**self._environment, "extra": extra}
            if entry.marker and not entry.marker.evaluate(environment):
                continue
            name = normalised(entry.name)
            version = self._versions.get(name, "")
            if not version or not entry.specifier.contains(version, prereleases=True):
                self.missing.add(f"{asker} asks for {entry}; the lock has {version or 'none'}")
            for wanted in {"", *entry.extras}:
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    waiting += [(e, name, wanted) for e in self._asked_for_by(name, version)]

    def _asked_for_by(self, name: str, version: str) -> list[Requirement]:
        """Return a package's requirements; none where it is not for this Python, so not here."""
        for wheel in self._wheels.glob(f"*-{version}-*.whl"):
            if normalised(wheel.name.partition("-")[0]) == name:
                with zipfile.ZipFile(wheel) as archive:
                    [file] = [f for f in archive.namelist() if f.endswith(".dist-info/METADATA")]
                    metadata = Parser().parsestr(archive.read(file).decode())
                return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
        return []


@pytest.fixture(scope="session")
def asked_for() -> dict[str, list[Requirement]]:
    """Return lock -> what `make lock` makes it of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    command = ["make", "--dry-run", "lock", "UV=uv"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    lines = run(command, ROOT, environ).stdout.replace("\\\n", " ")
    found: dict[str, list[Requirement]] = {}
    compiled = r"^uv .*?(--extra .*) pyproject.toml -o (\S+)$"
    for extras, lock in re.findall(compiled, lines, re.MULTILINE):
        entries = list(project["dependencies"])
        for extra in re.findall(r"--extra (\S+)", extras):
            entries += project["optional-dependencies"][extra]
        found[lock] = [Requirement(entry) for entry in entries]
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_all_that_its_packages_ask_for(
    lock: str, asked_for: dict[str, list[Requirement]], downloaded: Path
) -> None:
    missing: dict[str, Any] = {}
    for python in PYTHONS:
        for platform in PLATFORMS:
            locked = Locked(lock, downloaded, environment_of(python, platform))
            locked.follow(asked_for[lock])
            if locked.missing:
                missing[f"{python} on {platform}"] = locked.missing

    assert missing == {}


def environment_of(python: str, platform: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": platform,
    }
