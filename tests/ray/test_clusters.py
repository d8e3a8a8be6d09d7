"""The cluster files: Ray's own schema, and the AWS provider against a local mock of the cloud's interface."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ["cluster.yaml", "cluster-local.yaml"]


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
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in cluster["setup_commands"])
    assert any("requirements.lock" in command for command in cluster["setup_commands"])


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
for name in ("head", "gpu_worker"):
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
    assert made["types"] == {"head": "m5.xlarge", "gpu_worker": "g5.xlarge"}
    assert made["lifecycles"] == {"head": "on demand", "gpu_worker": "spot"}
    assert made["resources"]["gpu_worker"]["GPU"] == 1
    assert made["resources"]["head"]["CPU"] == 0
    # From outside SSH alone; everything else from nodes of the same group.
    assert sorted(made["rules"], key=str) == sorted([[22, "tcp", True], [None, "-1", False]], key=str)
    assert made["groups"] == [["ray-pcasgd"], ["ray-pcasgd"]]
    assert left == "left 0"
