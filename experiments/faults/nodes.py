"""A cluster on this machine whose nodes come late, and one of which is lost in the middle of a run."""

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


def lose_node_for_good(cluster: Any, nodes: list[Any]) -> Callable[[Any], None]:
    """Return what kills a node's Ray, with everything on it."""
    return lambda fault: cluster.remove_node(nodes.pop(), allow_graceful=False)


def main() -> None:
    """Run settings on a cluster that has half of what they ask for, and that loses half of it at a step.

    What is missing comes when the run says that it waits, as an autoscaler's nodes do, or live that it lost an agent.
    The outcome is written as JSON.

    ``python -m experiments.faults.nodes SETTINGS.yaml STEP OUTCOME.json``
    """
    os.environ |= HEALTH_CHECKS
    import ray
    from ray.cluster_utils import Cluster

    from experiments.faults.injecting import Fault
    from ray_pcasgd.records import Event
    from ray_pcasgd.runs.callbacks import Callback
    from ray_pcasgd.runs.trainer import Trainer

    settings, at_step = sys.argv[1], int(sys.argv[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2)]
    places: list[str] = []
    """Nodes of the schedulers."""

    class Autoscaler(Callback):
        def on_event(self, event: Event) -> None:
            if event.kind in ("waiting_for_resources", "agent_lost") and len(nodes) < 2:
                nodes.append(cluster.add_node(num_cpus=2))
            if event.kind == "scheduler_started":
                actors = ray._private.state.actors().values()
                places.extend(one["Address"]["NodeID"] for one in actors if " scheduler" in one["Name"])

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    fault = Fault(at_step, lose_node_for_good(cluster, nodes))
    result = Trainer(settings, callbacks=[fault, Autoscaler()]).fit()
    # Not to standard output, where Ray writes the lost node's last words.
    waits = [event.detail for event in fault.events if event.kind == "waiting_for_resources"]
    outcome = {"error": str(result.error or ""), "path": result.path, "kinds": fault.kinds(), "waits": waits}
    outcome["schedulers_elsewhere"] = len([one for one in places if one != ray.get_runtime_context().get_node_id()])
    Path(sys.argv[3]).write_text(json.dumps(outcome), encoding="utf-8")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
