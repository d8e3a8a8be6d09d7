"""The files of deploy/: manifests by KubeRay's published schema, scripts and image by what they stand on."""

import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", ROOT.parent / "shared" / "kuberay"))
"""KubeRay's resource definitions, ``ray.io_rayjobs.yaml`` and so on: another project's data, not kept in this one."""
KUBERNETES = ROOT / "deploy" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def resource(name: str) -> dict[str, Any]:
    (found,) = (one for one in documents(name) if one["apiVersion"] == "ray.io/v1")
    return found


def closed(schema: Any) -> Any:
    """The schema without room for unknown fields: the API server drops those, so a misspelled one would do nothing."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(one) for key, one in schema.items()}
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and "type" in schema and not keeps_unknown:
        inner["additionalProperties"] = False
    return inner


def published(kind: str) -> Any:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schema is not here: {path}")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return schema


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_a_manifest_fits_kuberays_schema_and_a_misspelled_one_does_not(name: str) -> None:
    manifest = resource(name)
    schema = jsonschema.Draft202012Validator(published(manifest["kind"]))
    assert [error.message for error in schema.iter_errors(manifest)] == []
    for misspell in MISSPELLINGS:
        wrong = resource(name)
        misspell(cluster_of(wrong))
        assert not schema.is_valid(wrong)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_of(group: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = group["template"]["spec"]
    return pod


MISSPELLINGS = (
    lambda cluster: cluster.update(authOption=cluster.pop("authOptions")),
    lambda cluster: cluster["authOptions"].update(mode="tokens"),
    lambda cluster: cluster["workerGroupSpecs"][0].update(replica=1),
    lambda cluster: pod_of(cluster["workerGroupSpecs"][0]).update(toleration=[]),
    lambda cluster: pod_of(cluster["headGroupSpec"])["containers"][0].update(envFroms=[]),
    lambda cluster: pod_of(cluster["headGroupSpec"])["volumes"][0].update(emptyDirs={}),
)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_a_manifest_asks_for_what_the_image_and_runs_need(name: str) -> None:
    cluster = cluster_of(resource(name))
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "requirements.lock").read_text().splitlines()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert [group.get("groupName", "head") for group in groups] == ["head", "gpu", "cpu"]
    for group in groups:
        (container,) = pod_of(group)["containers"]
        (memory,) = (one for one in pod_of(group)["volumes"] if one["name"] == "shared-memory")
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        room = int(memory["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) < room
        assert {"secretRef": {"name": "ray-pcasgd-storage"}} in container["envFrom"]
        is_gpu = group.get("groupName") == "gpu"
        assert container["image"].endswith(":cuda" if is_gpu else ":cpu")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == is_gpu


def test_the_job_has_the_cluster_of_the_other_manifest_and_its_settings() -> None:
    job, cluster = resource("rayjob.yaml"), resource("raycluster.yaml")
    expected = cluster["spec"]
    head = pod_of(expected["headGroupSpec"])
    head["containers"][0]["volumeMounts"].append({"name": "settings", "mountPath": "/etc/ray_pcasgd"})
    head["volumes"].insert(0, {"name": "settings", "configMap": {"name": "ray-pcasgd-settings"}})
    assert job["spec"]["rayClusterSpec"] == expected
    assert job["spec"]["entrypoint"] == "ray-pcasgd train /etc/ray_pcasgd/settings.yaml"
    (settings,) = (one["data"] for one in documents("rayjob.yaml") if one["kind"] == "ConfigMap")
    assert set(settings) == {"settings.yaml"}


def test_the_jobs_settings_are_a_runs() -> None:
    from ray_pcasgd.config import Config

    (text,) = (one["data"]["settings.yaml"] for one in documents("rayjob.yaml") if one["kind"] == "ConfigMap")
    config = Config.model_validate(yaml.safe_load(text))
    assert config.max_failures == -1
    assert config.storage_path.startswith("s3://")


@pytest.mark.parametrize("path", ["deploy/setup.sh", "deploy/slurm/train.sbatch"])
def test_a_script_is_one_that_bash_reads(path: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / path)], check=True)


def test_the_image_takes_in_what_it_copies_and_nothing_that_runs_leave() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    assert {name for names in copied for name in names} == taken
    assert all((ROOT / name).exists() for name in taken)
    assert "\nUSER 1000\n" in dockerfile
