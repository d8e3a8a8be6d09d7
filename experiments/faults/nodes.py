"""A cluster of several nodes on this machine, one of which is lost in the middle of a run."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by Ray's processes when they start: a node that is gone is noticed within seconds, not after seventeen.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_initial_delay_ms": "1000",
}


def lose_node(cluster: Any, nodes: list[Any]) -> Callable[[Any], None]:
    """Return what kills a node's Ray, with everything on it, and starts another in its place."""

    def act(fault: Any) -> None:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=2))

    return act


def main() -> None:
    """Run settings on three nodes, one of which is lost at a step; write the outcome as JSON.

    ``python -m experiments.faults.nodes SETTINGS.yaml STEP OUTCOME.json``
    """
    os.environ |= HEALTH_CHECKS
    import ray
    from ray.cluster_utils import Cluster

    from experiments.faults.injecting import Fault
    from ray_pcasgd.runs.trainer import Trainer

    settings, at_step = sys.argv[1], int(sys.argv[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    fault = Fault(at_step, lose_node(cluster, nodes))
    result = Trainer(settings, callbacks=[fault]).fit()
    # Not to standard output, where Ray writes the lost node's last words.
    outcome = {"error": str(result.error or ""), "path": result.path, "kinds": fault.kinds()}
    Path(sys.argv[3]).write_text(json.dumps(outcome), encoding="utf-8")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
