"""The dashboard for Grafana."""

import inspect
import json
import re
from pathlib import Path

from ray_pcasgd.runs import prometheus as exporter


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    text = (Path(__file__).resolve().parents[3] / "monitoring" / "grafana-dashboard.json").read_text()
    dashboard = json.loads(text)
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))
    asked = set(re.findall(r"ray_(pcasgd_\w+)", text))
    source = inspect.getsource(exporter)
    made = set(re.findall(r'"(pcasgd_\w+)"', source)) | {"pcasgd_test_accuracy", "pcasgd_step_seconds_bucket"}
    assert asked <= made
