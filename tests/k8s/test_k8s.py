"""
What deploy/k8s gives a cluster: built by the real kustomize, held against
Kubernetes' own schemas, and against what the code, the images and compose say.

k8s_rules finds what is wrong with an overlay as it is built; the tests at the
end spoil a good one, a line at a time, and see it refused.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from machine.config import Config
from tests.k8s.k8s_rules import Manifest, config_of, pick, pods, problems

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("trial", "production", "keda")
#: With Go 1.22, the least that CI has.
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.5.0"
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


# -- building ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kustomize(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the program: the one installed, else one that Go builds, once."""
    if installed := shutil.which("kustomize"):
        return installed
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        # At a desk the rest is still worth running; in CI a skip would hide these tests.
        text = "neither kustomize nor Go is installed; see https://go.dev/doc/install"
        if os.environ.get("CI"):
            pytest.fail(f"CI needs one of them: {text}", pytrace=False)
        pytest.skip(text)
    cache = pytestconfig.cache
    folder = cache.mkdir("kustomize") if cache else tmp_path_factory.mktemp("kustomize")
    program = folder / KUSTOMIZE.rpartition("@")[2] / "kustomize"
    if not program.exists():
        environment = os.environ | {"GOBIN": str(program.parent), "CGO_ENABLED": "0"}
        command = [go, "install", KUSTOMIZE]
        built = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
    return str(program)


@pytest.fixture(scope="session")
def build(kustomize: str) -> Callable[[str], list[Manifest]]:
    """Return what builds an overlay; each call gives manifests of one's own."""
    built: dict[str, list[Manifest]] = {}

    def manifests(overlay: str) -> list[Manifest]:
        if overlay not in built:
            command = [kustomize, "build", str(K8S / "overlays" / overlay)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            built[overlay] = list(yaml.safe_load_all(run.stdout))
        return copy.deepcopy(built[overlay])

    return manifests


# -- what is right -----------------------------------------------------------------------------


@each_overlay
def test_an_overlay_has_no_problem(build, overlay, tmp_path):
    assert problems(build(overlay), tmp_path) == []


@each_overlay
def test_an_overlay_runs_the_images_that_compose_builds(build, overlay):
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services = compose["services"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    server = yaml.safe_load((ROOT / "deploy/compose/server.yml").read_text(encoding="utf-8"))
    redis = server["services"]["server"]["image"].rpartition(":-")[2].rstrip("}")
    named = {n: services[n].get("image", f"{compose['name']}-{n}") for n in ("worker", "caller")}
    wanted = {"worker": named["worker"], "api": named["caller"], "redis": redis}

    for name, pod in pods(build(overlay)):
        image = pod["containers"][0]["image"].rpartition("/")[2]
        assert image == (
            redis if name == "redis" else f"{wanted[name].partition(':')[0]}:{version}"
        )


def test_the_commands_and_ports_are_those_of_the_code(build):
    manifests = build("trial")
    worker, api = (pick(manifests, "Deployment", name) for name in ("worker", "api"))
    [worker], [api] = (m["spec"]["template"]["spec"]["containers"] for m in (worker, api))
    environment = {entry["name"]: entry["value"] for entry in [*worker["env"], *api["env"]]}
    ports = {port["name"]: str(port["containerPort"]) for port in [*worker["ports"], *api["ports"]]}

    assert (ROOT / api["command"][1]).is_file()
    assert environment["API_PORT"] == ports["http"] == str(Config().api_port)
    assert environment["WORKER_METRICS_PORT"] == ports["metrics"]


def test_the_worker_is_probed_by_the_file_that_it_touches(build, tmp_path):
    manifests = build("trial")
    [worker] = pick(manifests, "Deployment", "worker")["spec"]["template"]["spec"]["containers"]
    file = config_of(manifests, tmp_path).worker_health_file

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = worker[probe]["exec"]["command"]
        assert command == ["python", "-m", "machine", "health", "--file", file]
    assert any(file.startswith(f"{mount['mountPath']}/") for mount in worker["volumeMounts"])


@each_overlay
def test_nothing_is_reached_but_what_a_policy_names(build, overlay):
    manifests = build(overlay)
    deny = pick(manifests, "NetworkPolicy", "default-deny")["spec"]

    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in ("worker", "api"):
        spec = pick(manifests, "NetworkPolicy", name)["spec"]
        assert all(rule.get("to") for rule in spec["egress"])
        assert all(rule.get("from") and rule.get("ports") for rule in spec["ingress"])


@pytest.mark.parametrize("overlay", ["production", "keda"])
def test_no_secret_is_in_the_repository_but_for_a_trial(build, overlay):
    kinds = {manifest["kind"] for manifest in build(overlay)}

    assert "Secret" not in kinds
    assert "StatefulSet" not in kinds


# -- what is refused ---------------------------------------------------------------------------


def _pod(manifests: list[Manifest], name: str = "worker") -> Manifest:
    spec: Manifest = pick(manifests, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def _container(manifests: list[Manifest], name: str = "worker") -> Manifest:
    inner: Manifest = _pod(manifests, name)["containers"][0]
    return inner


def _security(manifests: list[Manifest]) -> Manifest:
    inner: Manifest = _container(manifests)["securityContext"]
    return inner


def _spec(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    spec: Manifest = pick(manifests, kind, name)["spec"]
    return spec


def _scaled(manifests: list[Manifest]) -> Manifest:
    return _spec(manifests, "ScaledObject", "worker")


def _trigger(manifests: list[Manifest]) -> Manifest:
    metadata: Manifest = _scaled(manifests)["triggers"][0]["metadata"]
    return metadata


SPOILED: dict[str, Callable[[list[Manifest]], object]] = {
    "'replica' was unexpected": lambda m: _spec(m, "Deployment", "worker").update(replica=1),
    "is not of type 'integer'": (
        lambda m: _spec(m, "Deployment", "worker").update(minReadySeconds="10")
    ),
    "worker: runAsNonRoot": lambda m: _pod(m)["securityContext"].pop("runAsNonRoot"),
    "worker: runAsUser": lambda m: _pod(m)["securityContext"].update(runAsUser=0),
    "worker: enableServiceLinks": lambda m: _pod(m).pop("enableServiceLinks"),
    "worker: hostNetwork": lambda m: _pod(m).update(hostNetwork=True),
    "worker: may gain privileges": lambda m: _security(m).pop("allowPrivilegeEscalation"),
    "worker: its root can be written": lambda m: _security(m).pop("readOnlyRootFilesystem"),
    "worker: keeps capabilities": lambda m: _security(m).update(capabilities={"drop": []}),
    "worker: a container overrules": lambda m: _security(m).update(privileged=True),
    "api: no livenessProbe": lambda m: _container(m, "api").pop("livenessProbe"),
    "worker: no memory among its limits": lambda m: _container(m)["resources"].pop("limits"),
    "worker: no volume tmp": lambda m: _pod(m)["volumes"].pop(0),
    "worker: no Secret other": lambda m: _pod(m)["volumes"][2]["secret"].update(secretName="other"),
    "api: no port http": lambda m: _container(m, "api")["ports"][0].update(name="web"),
    "Service api: selects no pod": lambda m: _spec(m, "Service", "api").update(selector={"a": "b"}),
    "no setting reads BROKERS": lambda m: _container(m)["env"][0].update(name="BROKERS"),
    "worker: killed after 25 s": lambda m: _pod(m).update(terminationGracePeriodSeconds=25),
    "HorizontalPodAutoscaler: no Deployment api": lambda m: m.remove(pick(m, "Deployment", "api")),
    "where nobody moves delayed tasks": lambda m: _scaled(m).update(minReplicaCount=0),
    "scaling: the most is below": lambda m: _scaled(m).update(maxReplicaCount=0),
    "scaling: minReplicas is no field": lambda m: _scaled(m).update(minReplicas=1),
    "scaling: replicas would undo": lambda m: _spec(m, "Deployment", "worker").update(replicas=2),
    "scaling: nobody sends to": lambda m: _trigger(m).update(listName="x"),
    "values must be texts": lambda m: _trigger(m).update(listLength=10),
    "no such TriggerAuthentication": lambda m: _scaled(m)["triggers"][0].pop("authenticationRef"),
}  # fmt: skip


@pytest.mark.parametrize("text", SPOILED)
def test_a_spoiled_manifest_is_refused(build, tmp_path, text):
    manifests = build("keda")
    SPOILED[text](manifests)

    assert any(text in problem for problem in problems(manifests, tmp_path))
