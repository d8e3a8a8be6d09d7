"""The cluster files: Ray's own schema, and the AWS provider against a local mock of the cloud's interface."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ["cluster.yaml", "deploy/gcp.yaml", "deploy/azure.yaml"]
FILES = [*CLOUDS, "cluster-local.yaml"]


def cluster_of(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return tree


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_is_closed_and_asks_for_the_token(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = (command for command in commands if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
        assert "--object-store-memory=" in start
    (head,) = (command for command in cluster["head_start_ray_commands"] if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    setup = [
        cluster[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands") if name in cluster
    ]
    assert any("~/ray_pcasgd/deploy/setup.sh" in command for commands in setup for command in commands)


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_fits_rays_schema_and_a_misspelled_one_does_not(name: str) -> None:
    validate_config(prepare_config(cluster_of(name)))
    wrong = cluster_of(name)
    wrong["idle_timeout_minute"] = wrong.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", FILES)
def test_all_of_the_package_is_copied_to_the_machines(name: str) -> None:
    excluded = cluster_of(name)["rsync_exclude"]
    assert all(pattern.startswith("/") or pattern == "__pycache__" for pattern in excluded)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_has_a_head_without_agents_or_cuda_and_spot_workers_of_several_types(name: str) -> None:
    cluster = cluster_of(name)
    types = cluster["available_node_types"]
    assert types.pop(cluster["head_node_type"])["resources"] == {"CPU": 0}
    assert len(types) > 1
    for worker in types.values():
        machine = worker["node_config"].get("azure_arm_parameters", worker["node_config"])
        spot = (machine.get("InstanceMarketOptions", {}).get("MarketType"), machine.get("priority"))
        assert {*spot, machine.get("scheduling", {}).get("provisioningModel")} & {"spot", "Spot", "SPOT"}
        assert worker["max_workers"] == cluster["max_workers"]
    (head,) = cluster["head_setup_commands"]
    assert "--torch-backend cpu" in head
    assert not any("--torch-backend" in command for command in cluster["worker_setup_commands"])
    assert any("device='cuda'" in command for command in cluster["worker_setup_commands"])


def test_set_up_leaves_out_what_development_needs_and_is_pinned() -> None:
    (install,) = (
        line for line in (ROOT / "deploy" / "setup.sh").read_text().splitlines() if line.startswith("uv pip install")
    )
    assert '--constraint "$project/requirements.lock"' in install
    assert "--group" not in install
    assert "--requirement" not in install


def test_images_of_the_clouds_are_named_by_what_resolves_to_the_newest() -> None:
    aws, gcp, azure = (
        [node["node_config"] for node in cluster_of(name)["available_node_types"].values()] for name in CLOUDS
    )
    assert all(node["ImageId"].startswith("resolve:ssm:/aws/service/") for node in aws)
    sources = [disk["initializeParams"]["sourceImage"] for node in gcp for disk in node["disks"]]
    assert all("/global/images/family/" in source for source in sources)
    assert all(node["azure_arm_parameters"]["imageVersion"] == "latest" for node in azure)


def test_azure_machines_are_described_in_parameters_of_rays_template() -> None:
    folder = Path(ray.autoscaler.__file__).parent / "_private" / "_azure"
    parameters = json.loads((folder / "azure-vm-template.json").read_text())["parameters"]
    kinds = {"string": str, "int": int, "object": dict, "bool": bool, "array": list}
    for node in cluster_of("deploy/azure.yaml")["available_node_types"].values():
        for name, value in node["node_config"]["azure_arm_parameters"].items():
            assert isinstance(value, kinds[parameters[name]["type"]]), name


def test_google_machines_are_described_in_fields_of_its_interface() -> None:
    """By Google's own description of its interface, where its client is installed."""
    documents = pytest.importorskip("googleapiclient.discovery_cache").__path__[0]
    schemas = json.loads((Path(documents) / "documents" / "compute.v1.json").read_text())["schemas"]
    for node in cluster_of("deploy/gcp.yaml")["available_node_types"].values():
        assert unknown(node["node_config"], schemas["Instance"], schemas) == []
        misspelled = node["node_config"] | {"scheduling": {"provisioningModels": "SPOT"}}
        assert unknown(misspelled, schemas["Instance"], schemas) == ["provisioningModels"]


def unknown(value: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Names of fields, and values of enumerations, that a schema of Google's does not have."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if isinstance(value, list):
        return [name for one in value for name in unknown(one, schema["items"], schemas)]
    if not isinstance(value, dict):
        return [str(value)] if value not in schema.get("enum", [value]) else []
    known = schema["properties"]
    found = [unknown(one, known[name], schemas) if name in known else [name] for name, one in value.items()]
    return [name for names in found for name in names]


GPU_IMAGE = "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
AWS = """
import json, sys
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
import boto3

# What `ray up` does before it waits for the head's SSH server: schema, resources, roles, keys, group, subnets.
config = _bootstrap_config(yaml.safe_load(open(sys.argv[1])), no_config_cache=True)
ec2 = boto3.client("ec2", region_name="us-west-2")
(group,) = [g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] == "ray-pcasgd"]
provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
made = {}
for name in config["available_node_types"]:
    node = config["available_node_types"][name]["node_config"]
    kind = "head" if name == "head" else "worker"
    provider.create_node(node, {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
for node in provider.non_terminated_nodes({}):
    made[provider.node_tags(node)[TAG_RAY_USER_NODE_TYPE]] = node
described = ec2.describe_instances(InstanceIds=list(made.values()))
instances = {i["InstanceId"]: i for r in described["Reservations"] for i in r["Instances"]}
print(json.dumps({
    "resources": {k: v["resources"] for k, v in config["available_node_types"].items()},
    "rules": [[r.get("FromPort"), r.get("IpProtocol"), bool(r["IpRanges"])] for r in group["IpPermissions"]],
    "types": {k: instances[v]["InstanceType"] for k, v in made.items()},
    "images": {k: instances[v]["ImageId"] for k, v in made.items()},
    "lifecycles": {k: instances[v].get("InstanceLifecycle", "on demand") for k, v in made.items()},
    "groups": [[g["GroupName"] for g in instances[v]["SecurityGroups"]] for v in made.values()],
}))
for node in made.values():
    provider.terminate_node(node)
print("left", len(provider.non_terminated_nodes({})))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cluster_yaml_goes_through_the_aws_provider(tmp_path: Path) -> None:
    from moto.server import ThreadedMotoServer

    os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = os.environ | {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-west-2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(tmp_path),  # where Ray keeps the key pair that it makes
        }
        command = [sys.executable, "-c", AWS, str(ROOT / "cluster.yaml")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    finally:
        server.stop()
    assert result.returncode == 0, result.stderr[-3000:]
    found, left = result.stdout.splitlines()[-2:]
    made = json.loads(found)
    workers = {"a10g": "g5.xlarge", "l4": "g6.xlarge", "l40s": "g6e.xlarge"}
    assert made["types"] == {"head": "m5.xlarge"} | workers
    assert made["lifecycles"] == {"head": "on demand"} | dict.fromkeys(workers, "spot")
    assert [made["resources"][name].get("GPU") for name in workers] == [1, 1, 1]
    # As the file has them: the cloud, not Ray, resolves the parameters.
    assert made["images"]["head"].startswith("resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/")
    assert {made["images"][name] for name in workers} == {GPU_IMAGE}
    assert made["resources"]["head"]["CPU"] == 0
    # From outside SSH alone; everything else from nodes of the same group.
    assert sorted(made["rules"], key=str) == sorted([[22, "tcp", True], [None, "-1", False]], key=str)
    assert made["groups"] == [["ray-pcasgd"]] * 4
    assert left == "left 0"
