"""What Prometheus finds at Ray's own endpoint while a run is on its way."""

import inspect
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from experiments.faults.injecting import Fault
from ray_pcasgd.runs import prometheus as exporter
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


def scraped() -> dict[str, str]:
    """Return the lines of our metrics at the endpoint of this node, by name with labels of ours."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_pcasgd_"):
            name = re.match(r"\w+", line)
            assert name
            labels = sorted(re.findall(r'((?:run|agent|neighbor|kind|le)="[^"]*")', line))
            found[f"{name[0]}{{{','.join(labels)}}}"] = line.rpartition(" ")[2]
    return found


def test_prometheus_finds_a_run_s_metrics(tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    def scrape(fault: Fault) -> None:
        seen.update(scraped())
        fault.at_step += 20
        fault.act = scrape

    settings: dict[str, Any] = {
        "engine": {"name": "ray", "mode": "live"},
        "num_agents": 2,
        "num_steps": 400,
        "evaluate_every": 100,
        "links": [{"delay": 3}],
        "compute": {"stragglers": {0: 0.02, 1: 0.02}},
    }
    result = Trainer(settings, storage_path=str(tmp_path), name="watched", callbacks=[Fault(60, scrape)]).fit()
    assert result.error is None
    own = 'agent="0",{}run="watched"'
    for name in ("progress_steps", "train_loss", "theta", "consensus_distance", "test_accuracy"):
        assert float(seen[f"ray_pcasgd_{name}{{{own.format('')}}}"]) >= 0, name
    shown = float(seen[f"ray_pcasgd_staleness_steps{{{own.format('neighbor=' + chr(34) + '1' + chr(34) + ',')}}}"])
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    # Whatever the machine's speed made of the delay: what an agent has read is what is shown.
    assert shown in {read.staleness for row in rows if row.agent == 0 for read in row.reads}
    assert float(seen[f"ray_pcasgd_steps_total{{{own.format('')}}}"]) > 50
    assert float(seen[f"ray_pcasgd_sent_bytes_total{{{own.format('')}}}"]) > 50 * 4810 * 4
    assert float(seen[f"ray_pcasgd_step_seconds_count{{{own.format('')}}}"]) > 50
    assert 'ray_pcasgd_test_accuracy{agent="averaged",run="watched"}' in seen
    assert 'ray_pcasgd_events_total{kind="agent_started",run="watched"}' in seen


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    text = (Path(__file__).resolve().parents[2] / "monitoring" / "grafana-dashboard.json").read_text()
    dashboard = json.loads(text)
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))
    asked = set(re.findall(r"ray_(pcasgd_\w+)", text))
    source = inspect.getsource(exporter)
    made = set(re.findall(r'"(pcasgd_\w+)"', source)) | {"pcasgd_test_accuracy", "pcasgd_step_seconds_bucket"}
    assert asked <= made
