"""What a cluster's autoscaler is starting, where it has one."""

import json
from collections import Counter
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

_ANSWER_SECONDS = 5


def starting_nodes() -> str:
    """Return the part of a sentence that says how many nodes are being started; empty without an autoscaler."""
    numbers: Counter[str] = Counter()
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address, _ANSWER_SECONDS)
        for launch in status.pending_launches:
            numbers[launch.ray_node_type_name] += launch.count
        numbers.update(node.ray_node_type_name for node in status.pending_nodes)
        told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
        if not numbers and told:
            numbers = of_first_autoscaler(json.loads(told))
    except Exception:  # a line in a log is worth no run
        return ""
    return said(numbers)


def of_first_autoscaler(status: Any) -> Counter[str]:
    """Return how many nodes of each type are being started, by what Ray's autoscaler of the first kind tells."""
    report = status.get("autoscaler_report") or {}
    numbers = Counter(report.get("pending_launches") or {})
    numbers.update(node_type for _, node_type, *_ in report.get("pending_nodes") or ())
    return numbers


def said(numbers: Counter[str]) -> str:
    """Return numbers of nodes by type, as a part of a sentence.

    >>> said(Counter({"gpu_worker": 2}))
    '; being started: 2 gpu_worker'
    """
    nodes = ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()) if number)
    return f"; being started: {nodes}" if nodes else ""
