"""
What may be wrong with the manifests of deploy/k8s, as kustomize builds them.

Each rule takes an overlay's manifests and yields a sentence for each thing that
is wrong; `problems` is all rules together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate

from machine.config import SETTINGS, Config

#: What the manifests are checked against; the sleep before a pod's end needs 1.30.
KUBERNETES = "1.34"
UID = 10001
#: Secrets that whoever deploys makes (docs/operations.md).
SECRETS_MADE_BEFORE = {"werk-worker", "werk-api", "werk-keda"}
#: Variables that choose a source rather than a value.
SOURCES = {"CONFIG_FILE"}

SECCOMP = {"type": "RuntimeDefault"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
#: The fields of a ScaledObject that KEDA's documents know.
SCALED_FIELDS = {
    "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod",
    "idleReplicaCount", "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
}  # fmt: skip

Manifest = dict[str, Any]


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
        wanted = {"runAsNonRoot": True, "runAsUser": UID, "seccompProfile": SECCOMP}
        yield from (f"{name}: {k} is not {v}" for k, v in wanted.items() if security.get(k) != v)
        off = ("automountServiceAccountToken", "enableServiceLinks")
        yield from (f"{name}: {key} is not False" for key in off if pod.get(key) is not False)
        host = ("hostNetwork", "hostPID", "hostIPC")
        yield from (f"{name}: {key} is set" for key in host if pod.get(key))
        yield from (f"{name}: a hostPath" for v in pod.get("volumes", ()) if "hostPath" in v)
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            yield from (f"{name}: {text}" for text in of_container(container))


def of_container(container: Manifest) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if set(own) & {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"}:
        yield "a container overrules its pod's security"
    resources = container.get("resources", {})
    for part in ("requests", "limits"):
        if "memory" not in resources.get(part, {}):
            yield f"no memory among its {part}"
    yield from (f"no {probe}" for probe in PROBES if probe not in container)


def of_references(manifests: list[Manifest]) -> Iterator[str]:
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    there |= {("Secret", name) for name in SECRETS_MADE_BEFORE}
    for name, pod in pods(manifests):
        claims = {"data"} if ("StatefulSet", name) in there else set()
        known = {volume["name"] for volume in pod.get("volumes", ())} | claims
        named = [
            ("Secret", v["secret"]["secretName"]) for v in pod.get("volumes", ()) if "secret" in v
        ]
        named += [
            ("ConfigMap", v["configMap"]["name"])
            for v in pod.get("volumes", ())
            if "configMap" in v
        ]
        yield from (
            f"{name}: no {kind} {other}" for kind, other in named if (kind, other) not in there
        )
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            yield from (f"{name}: no volume {volume}" for volume in sorted(mounts - known))
            yield from (f"{name}: no port {port}" for port in sorted(unknown_ports(container)))
    for manifest in manifests:
        target = manifest.get("spec", {}).get("scaleTargetRef")
        if target and ("Deployment", target["name"]) not in there:
            yield f"{manifest['kind']}: no Deployment {target['name']}"


def unknown_ports(container: Manifest) -> set[str]:
    """Return the named ports that a container's probes ask and that it does not have."""
    asked = (container.get(probe, {}).get("httpGet", {}).get("port") for probe in PROBES)
    return {port for port in asked if port} - {port["name"] for port in container.get("ports", ())}


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
        unknown = set(spec) - SCALED_FIELDS
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
            yield from (f"scaling: {text}" for text in of_trigger(trigger, names, config))


def of_trigger(trigger: Manifest, names: set[str], config: Config) -> Iterator[str]:
    metadata = trigger["metadata"]
    if trigger["type"] != "redis" or not {"address", "listName", "listLength"} <= set(metadata):
        yield "the trigger lacks what it needs"
    if not all(isinstance(value, str) for value in metadata.values()):
        yield "the trigger's values must be texts"
    if metadata.get("listName") != config.default_queue:
        yield f"nobody sends to {metadata.get('listName')}"
    if trigger.get("authenticationRef", {}).get("name") not in names:
        yield "no such TriggerAuthentication"


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
