"""A sweep on a cluster of two nodes, the second of which may have a disk of its own: run as a process by itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.sweep.running import sweep

SETTINGS = {"engine": "local", "num_agents": 3, "num_steps": 10, "task": {"model": {"hidden": [8]}}}


def main(storage: str, mounts: str) -> None:
    """Sweep into the folder ``storage``; where ``mounts`` is "own", the second node has another one in its place."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray_command = str(Path(sys.executable).parent / "ray")
    node = [ray_command, "start", f"--address={cluster.address}", "--num-cpus=1", "--block"]
    if mounts == "own":
        node = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {storage} && exec "$@"', "sh", *node]
    with subprocess.Popen(node, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
            both = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
            ray.get(both.ready(), timeout=120)
            remove_placement_group(both)
            result = sweep(
                {
                    "storage_path": storage,
                    "name": "tried",
                    "config": SETTINGS,
                    "space": {"step_size": [0.05, 0.1]},
                    "batched": "never",
                }
            )
            print("finished", result.trials["finished"].tolist())
        except SettingsError as error:
            print("refused", error)
        finally:
            ray.shutdown()
            os.killpg(process.pid, signal.SIGTERM)
            cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
