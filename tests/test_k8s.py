"""
What deploy/k8s gives a cluster: built by the real kustomize, held against
Kubernetes' own schemas, and against what the code, the images and compose say.

`problems` finds what is wrong with an overlay as it is built; the tests at the
end spoil a good one, a line at a time, and see it refused.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from machine.config import SETTINGS, Config

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("trial", "production", "keda")
#: What the manifests are checked against; the sleep before a pod's end needs 1.30.
KUBERNETES = "1.34"
#: With Go 1.22, the least that CI has.
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.5.0"
UID = 10001
#: Secrets that whoever deploys makes (docs/operations.md).
SECRETS_MADE_BEFORE = {"werk-worker", "werk-api", "werk-keda"}
#: Variables that choose a source rather than a value.
SOURCES = {"CONFIG_FILE"}

Manifest = dict[str, Any]
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


def pick(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    [found] = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield the name and the pod's spec of everything that runs."""
    for manifest in manifests:
        if manifest["kind"] in {"Deployment", "StatefulSet"}:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def config_of(manifests: list[Manifest], folder: Path) -> Config:
    [found] = [m for m in manifests if m["kind"] == "ConfigMap"]
    path = folder / "config.yml"
    path.write_text(found["data"]["config.yml"], encoding="utf-8")
    return Config.from_yaml(str(path))


def names_of_environment() -> set[str]:
    """Return every variable that the settings read, their _FILE forms among them."""
    names = {variable for row in SETTINGS.values() for variable in row.variables}
    return names | {f"{r.variables[0]}_FILE" for r in SETTINGS.values() if r.hides} | SOURCES


# -- what may be wrong -------------------------------------------------------------------------


def against_schema(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            continue  # no part of Kubernetes; see of_scaling
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"schema: {manifest['kind']} {manifest['metadata']['name']}: {error.message}"


def of_hardening(manifests: list[Manifest]) -> Iterator[str]:
    for name, pod in pods(manifests):
        security = pod.get("securityContext", {})
        wanted = {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        yield from (f"{name}: {k} is not {v}" for k, v in wanted.items() if security.get(k) != v)
        for key in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.get(key) is not False:
                yield f"{name}: {key} is not False"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{name}: {key} is set"
        yield from (f"{name}: a hostPath" for v in pod.get("volumes", ()) if "hostPath" in v)
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name}: may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name}: its root can be written"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name}: keeps capabilities"
            if set(own) & {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"}:
                yield f"{name}: a container overrules its pod's security"
            for part in ("requests", "limits"):
                if "memory" not in container.get("resources", {}).get(part, {}):
                    yield f"{name}: no memory among its {part}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{name}: no {probe}"


def of_references(manifests: list[Manifest]) -> Iterator[str]:
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    there |= {("Secret", name) for name in SECRETS_MADE_BEFORE}
    for name, pod in pods(manifests):
        volumes = pod.get("volumes", [])
        claims = {"data"} if ("StatefulSet", name) in there else set()
        known = {volume["name"] for volume in volumes} | claims
        for volume in volumes:
            for part, key, kind in (
                ("secret", "secretName", "Secret"),
                ("configMap", "name", "ConfigMap"),
            ):
                if part in volume and (kind, volume[part][key]) not in there:
                    yield f"{name}: no {kind} {volume[part][key]}"
        for container in pod["containers"]:
            ports = {port["name"] for port in container.get("ports", ())}
            for mount in container["volumeMounts"]:
                if mount["name"] not in known:
                    yield f"{name}: no volume {mount['name']}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port is not None and port not in ports:
                    yield f"{name}: no port {port}"
    for manifest in manifests:
        target = manifest.get("spec", {}).get("scaleTargetRef")
        if target and ("Deployment", target["name"]) not in there:
            yield f"{manifest['kind']}: no Deployment {target['name']}"


def of_selectors(manifests: list[Manifest]) -> Iterator[str]:
    """A Service, a budget or a policy that selects nothing does nothing, silently."""
    labels = [
        m["spec"]["template"]["metadata"]["labels"]
        for m in manifests
        if "template" in m.get("spec", {})
    ]
    for manifest in manifests:
        spec, where = manifest.get("spec", {}), f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] == "Service":
            wanted = spec["selector"]
        elif manifest["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
            selector = spec.get("selector", spec.get("podSelector"))
            wanted = selector.get("matchLabels", {})
        else:
            continue
        if not any(wanted.items() <= those.items() for those in labels):
            yield f"{where}: selects no pod"


def of_environment(manifests: list[Manifest]) -> Iterator[str]:
    known = names_of_environment()
    for name, pod in pods(manifests):
        for entry in pod["containers"][0].get("env", ()):
            if entry["name"] not in known:
                yield f"{name}: no setting reads {entry['name']}"
            mounts = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]]
            file = entry["name"].endswith("_FILE")
            if file and not any(entry["value"].startswith(f"{mount}/") for mount in mounts):
                yield f"{name}: {entry['name']} is in no volume"


def of_drain(manifests: list[Manifest], config: Config) -> Iterator[str]:
    for name, pod in pods(manifests):
        grace = pod.get("terminationGracePeriodSeconds", 30)
        if name == "worker" and grace < config.worker_shutdown_timeout_s + 5:
            yield f"worker: killed after {grace} s, drains for {config.worker_shutdown_timeout_s} s"


def of_scaling(manifests: list[Manifest], config: Config) -> Iterator[str]:
    """The rules of KEDA's documents (ScaledObject, Redis lists), and ours."""
    names = {m["metadata"]["name"] for m in manifests if m["kind"] == "TriggerAuthentication"}
    for scaled in (m for m in manifests if m["kind"] == "ScaledObject"):
        spec = scaled["spec"]
        unknown = set(spec) - {
            "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod",
            "idleReplicaCount", "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
        }  # fmt: skip
        yield from (f"scaling: {key} is no field" for key in sorted(unknown))
        if spec.get("minReplicaCount", 0) < 1 or "idleReplicaCount" in spec:
            yield "scaling: to 0, where nobody moves delayed tasks"
        if spec["maxReplicaCount"] < spec.get("minReplicaCount", 0):
            yield "scaling: the most is below the least"
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        if behavior["scaleDown"]["stabilizationWindowSeconds"] < spec["cooldownPeriod"]:
            yield "scaling: in sooner than it cools down"
        if "replicas" in pick(manifests, "Deployment", spec["scaleTargetRef"]["name"])["spec"]:
            yield "scaling: replicas would undo it"
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] != "redis" or not {"address", "listName", "listLength"} <= set(
                metadata
            ):
                yield "scaling: the trigger lacks what it needs"
            if not all(isinstance(value, str) for value in metadata.values()):
                yield "scaling: the trigger's values must be texts"
            if metadata.get("listName") != config.default_queue:
                yield f"scaling: nobody sends to {metadata.get('listName')}"
            if trigger.get("authenticationRef", {}).get("name") not in names:
                yield "scaling: no such TriggerAuthentication"


def problems(manifests: list[Manifest], folder: Path) -> list[str]:
    """Return all that is wrong with an overlay; ``folder`` is for its config.yml."""
    config = config_of(manifests, folder)
    return [
        *against_schema(manifests),
        *of_hardening(manifests),
        *of_references(manifests),
        *of_selectors(manifests),
        *of_environment(manifests),
        *of_drain(manifests, config),
        *of_scaling(manifests, config),
    ]


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
    redis = services["redis"]["image"].rpartition(":-")[2].rstrip("}")
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


def _security(manifests: list[Manifest]) -> Manifest:
    inner: Manifest = _pod(manifests)["containers"][0]["securityContext"]
    return inner


def _scaled(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = pick(manifests, "ScaledObject", "worker")["spec"]
    return spec


SPOILED: dict[str, Callable[[list[Manifest]], object]] = {
    "'replica' was unexpected": lambda m: pick(m, "Deployment", "worker")["spec"].update(replica=1),
    "is not of type 'integer'": lambda m: pick(m, "Deployment", "worker")["spec"].update(minReadySeconds="10"),
    "worker: runAsNonRoot": lambda m: _pod(m)["securityContext"].pop("runAsNonRoot"),
    "worker: runAsUser": lambda m: _pod(m)["securityContext"].update(runAsUser=0),
    "worker: enableServiceLinks": lambda m: _pod(m).pop("enableServiceLinks"),
    "worker: hostNetwork": lambda m: _pod(m).update(hostNetwork=True),
    "worker: may gain privileges": lambda m: _security(m).pop("allowPrivilegeEscalation"),
    "worker: its root can be written": lambda m: _security(m).pop("readOnlyRootFilesystem"),
    "worker: keeps capabilities": lambda m: _security(m).update(capabilities={"drop": []}),
    "worker: a container overrules": lambda m: _security(m).update(privileged=True),
    "api: no livenessProbe": lambda m: _pod(m, "api")["containers"][0].pop("livenessProbe"),
    "worker: no memory among its limits": lambda m: _pod(m)["containers"][0]["resources"].pop("limits"),
    "worker: no volume tmp": lambda m: _pod(m)["volumes"].pop(0),
    "worker: no Secret other": lambda m: _pod(m)["volumes"][2]["secret"].update(secretName="other"),
    "api: no port http": lambda m: _pod(m, "api")["containers"][0]["ports"][0].update(name="web"),
    "Service api: selects no pod": lambda m: pick(m, "Service", "api")["spec"].update(selector={"a": "b"}),
    "no setting reads BROKERS": lambda m: _pod(m)["containers"][0]["env"].append({"name": "BROKERS", "value": ""}),
    "worker: killed after 25 s": lambda m: _pod(m).update(terminationGracePeriodSeconds=25),
    "no Deployment workers": lambda m: pick(m, "HorizontalPodAutoscaler", "api")["spec"]["scaleTargetRef"].update(name="workers"),
    "where nobody moves delayed tasks": lambda m: _scaled(m).update(minReplicaCount=0),
    "scaling: the most is below": lambda m: _scaled(m).update(maxReplicaCount=0),
    "scaling: minReplicas is no field": lambda m: _scaled(m).update(minReplicas=1),
    "scaling: replicas would undo": lambda m: pick(m, "Deployment", "worker")["spec"].update(replicas=2),
    "scaling: nobody sends to": lambda m: _scaled(m)["triggers"][0]["metadata"].update(listName="x"),
    "values must be texts": lambda m: _scaled(m)["triggers"][0]["metadata"].update(listLength=10),
    "no such TriggerAuthentication": lambda m: _scaled(m)["triggers"][0].pop("authenticationRef"),
}  # fmt: skip


@pytest.mark.parametrize("text", SPOILED)
def test_a_spoiled_manifest_is_refused(build, tmp_path, text):
    manifests = build("keda")
    SPOILED[text](manifests)

    assert any(text in problem for problem in problems(manifests, tmp_path))
