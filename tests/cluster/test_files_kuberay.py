"""The files of cluster/kuberay: valid by the schemas of KubeRay and Kubernetes, and consistent."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_house import ROOT, pins, project

FOLDER = ROOT / "cluster" / "kuberay"
#: A folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml, as in KubeRay's helm-chart/kuberay-operator/crds.
CRDS = os.environ.get("KUBERAY_CRDS")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> dict[str, dict[str, Any]]:
    return {path.name: document for path in sorted(FOLDER.glob("*.yaml")) for document in documents(path)}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups(spec):
        yield from group["template"]["spec"]["containers"]


RAY = ("raycluster.yaml", "rayjob.yaml")


def test_every_manifest_is_a_kubernetes_object_of_the_kind_its_name_says() -> None:
    kinds = {name: (found["apiVersion"], found["kind"]) for name, found in manifests().items()}
    assert kinds == {
        "raycluster.yaml": ("ray.io/v1", "RayCluster"),
        "rayjob.yaml": ("ray.io/v1", "RayJob"),
        "secrets.yaml": ("v1", "Secret"),
        "podmonitor.yaml": ("monitoring.coreos.com/v1", "PodMonitor"),
    }
    for name, found in manifests().items():
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", found["metadata"]["name"]), name


def test_the_job_starts_the_same_cluster_as_the_cluster() -> None:
    found = manifests()
    assert cluster_spec(found["rayjob.yaml"]) == cluster_spec(found["raycluster.yaml"])


@pytest.mark.parametrize("name", RAY)
def test_versions_are_those_of_this_checkout(name: str) -> None:
    spec = cluster_spec(manifests()[name])
    assert spec["rayVersion"] == pins()["ray"]
    images = {container["image"] for container in containers(spec)}
    assert images == {f"captioning:{project()['version']}"}
    # One line to edit; the others refer to it.
    assert (FOLDER / name).read_text().count("image: captioning") == 0
    assert (FOLDER / name).read_text().count("image: &image captioning:") == 1


@pytest.mark.parametrize("name", RAY)
def test_the_token_is_required(name: str) -> None:
    assert cluster_spec(manifests()[name])["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", RAY)
def test_pods_take_credentials_from_secrets_that_are_described_and_from_nowhere_else(name: str) -> None:
    described = {found["metadata"]["name"] for found in manifests().values() if found["kind"] == "Secret"}
    spec = cluster_spec(manifests()[name])
    for container in containers(spec):
        assert {source["secretRef"]["name"] for source in container["envFrom"]} == described
        assert not any("value" in variable for variable in container.get("env", []))


def test_the_template_of_secrets_has_no_secret() -> None:
    values = manifests()["secrets.yaml"]["stringData"]
    assert {key for key in values if "KEY" in key} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert all(value == "REPLACE-ME" for key, value in values.items() if "KEY" in key)


def amount(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+(?:\.\d+)?)(m|Mi|Gi|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 0.001, "Mi": 2.0**20, "Gi": 2.0**30, "": 1}[unit]


@pytest.mark.parametrize("name", RAY)
def test_groups_have_limits_and_request_what_ray_is_told(name: str) -> None:
    spec = cluster_spec(manifests()[name])
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len({group["groupName"] for group in spec["workerGroupSpecs"]}) == 2
    for group in groups(spec):
        [container] = group["template"]["spec"]["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(requests) == set(limits)
        assert all(amount(requests[key]) <= amount(limits[key]) for key in requests)
        # Ray counts a pod's memory by its limit, Kubernetes places it by its request.
        assert requests["memory"] == limits["memory"]
        # KubeRay takes Ray's resources from the limits, unless told otherwise: only the head is.
        told = set(group["rayStartParams"]) & {"num-cpus", "num-gpus", "memory", "resources"}
        assert told == ({"num-cpus"} if group is spec["headGroupSpec"] else set())
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", RAY)
def test_gpus_are_whole_and_their_nodes_are_tolerated(name: str) -> None:
    with_gpus = [
        group
        for group in cluster_spec(manifests()[name])["workerGroupSpecs"]
        if "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    ]
    assert [group["groupName"] for group in with_gpus] == ["gpu"]
    [group] = with_gpus
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert any(toleration["key"] == "nvidia.com/gpu" for toleration in group["template"]["spec"]["tolerations"])


@pytest.mark.parametrize("name", RAY)
def test_a_worker_that_is_deleted_drains_within_its_grace(name: str) -> None:
    for group in cluster_spec(manifests()[name])["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        script, seconds, wait = re.fullmatch(
            r'bash /opt/captioning/(\S+) "\$RAY_ADDRESS" (\d+) ".+"; sleep (\d+)', command[2]
        ).groups()  # type: ignore[union-attr]
        assert command[:2] == ["bash", "-c"]
        assert (ROOT / script).is_file()
        assert int(wait) < int(seconds) < pod["terminationGracePeriodSeconds"]


def test_pods_have_no_more_rights_than_the_image_needs() -> None:
    for container in containers(cluster_spec(manifests()["raycluster.yaml"])):
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_job_ends_its_cluster_and_goes_on_after_the_loss_of_a_head() -> None:
    spec = manifests()["rayjob.yaml"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    wait = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(wait) >= 60


def test_prometheus_reads_a_port_that_the_pods_have() -> None:
    found = manifests()
    [endpoint] = found["podmonitor.yaml"]["spec"]["podMetricsEndpoints"]
    for container in containers(cluster_spec(found["raycluster.yaml"])):
        assert endpoint["port"] in {port["name"] for port in container["ports"]}


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's definitions")
@pytest.mark.parametrize(("name", "definition"), [(RAY[0], "rayclusters"), (RAY[1], "rayjobs")])
def test_kuberay_accepts_them(name: str, definition: str) -> None:
    import jsonschema

    schema = served_schema(Path(CRDS or "") / f"ray.io_{definition}.yaml")
    manifest = manifests()[name]
    jsonschema.Draft7Validator(schema).validate(manifest)
    # A misspelt key is refused too; Kubernetes would silently drop it.
    broken = yaml.safe_load(yaml.safe_dump(manifest))
    cluster_spec(broken)["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.Draft7Validator(schema).validate(broken)


def served_schema(path: Path) -> dict[str, Any]:
    """The schema of v1 of a definition, strict: keys that it does not name are errors."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(path.read_text(), Loader=loader)
    [version] = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    make_strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def make_strict(schema: Any) -> None:
    if isinstance(schema, list):
        for inner in schema:
            make_strict(inner)
    if not isinstance(schema, dict):
        return
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for inner in list(schema.values()):
        make_strict(inner)
