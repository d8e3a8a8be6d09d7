"""What Prometheus finds at Ray's own endpoint while a run is running."""

import re
import urllib.request
from collections.abc import Mapping, Sequence
from typing import get_args

import ray

from ray_pcasgd.records import EventKind, Row

MEASURED = (
    *("progress_steps", "train_loss", "theta", "consensus_distance", "test_accuracy"),
    *("mailbox_messages", "in_flight_bytes"),
)
VECTOR_BYTES = 4810 * 4
"""Of weights or of a direction."""
LEAST = {"steps_total": 50, "sent_bytes_total": 50 * VECTOR_BYTES, "step_seconds_count": 50}
"""What is counted, and what has been counted when a test has seen enough."""


def scraped() -> dict[str, str]:
    """Return the lines of our metrics at the endpoint of this node, by name with labels of ours."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_pcasgd_"):
            name = re.match(r"\w+", line)
            assert name
            labels = sorted(re.findall(r'((?:run|agent|neighbor|kind|le)="[^"]*")', line))
            found[f"{name[0]}{{{','.join(labels)}}}"] = line.rpartition(" ")[2]
    return found


def _of_agent(name: str, run: str, more: str = "") -> str:
    return f'ray_pcasgd_{name}{{agent="0",{more}run="{run}"}}'


def _events(run: str, kind: str) -> str:
    return f'ray_pcasgd_events_total{{kind="{kind}",run="{run}"}}'


def _staleness(run: str) -> str:
    return _of_agent("staleness_steps", run, 'neighbor="1",')


def shows_all(seen: Mapping[str, str], run: str) -> bool:
    """Return whether everything that a run with two agents measures has been seen, and enough of what is counted."""
    awaited = {
        *(_of_agent(name, run) for name in (*MEASURED, *LEAST)),
        _staleness(run),
        f'ray_pcasgd_test_accuracy{{agent="averaged",run="{run}"}}',
        _events(run, "agent_started"),
        _events(run, "agent_lost"),
    }
    return awaited <= seen.keys() and all(float(seen[_of_agent(name, run)]) > least for name, least in LEAST.items())


def assert_shown(seen: Mapping[str, str], run: str, rows: Sequence[Row]) -> None:
    """Assert that what was seen is what the run did."""
    assert shows_all(seen, run)
    assert all(float(seen[_of_agent(name, run)]) >= 0 for name in MEASURED)
    assert float(seen[_of_agent("mailbox_messages", run)]) >= 1
    assert float(seen[_of_agent("in_flight_bytes", run)]) % VECTOR_BYTES == 0
    # What has not happened is counted, too, so that its first time will be an increase.
    events = {kind: float(seen[_events(run, kind)]) for kind in get_args(EventKind)}
    assert events["agent_started"] == 2
    assert events["agent_lost"] == events["message_rejected"] == 0
    own = [row for row in rows if row.agent == 0]
    assert float(seen[_of_agent("steps_total", run)]) <= len(own)
    # Whatever the machine's speed made of the delay: what an agent has read is what is shown.
    assert float(seen[_staleness(run)]) in {read.staleness for row in own for read in row.reads}
