"""The dashboard for Grafana, and the alerts for Prometheus."""

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray

from ray_pcasgd.runs import prometheus as exporter

FOLDER = Path(__file__).resolve().parents[3] / "monitoring"


def made() -> set[str]:
    source = inspect.getsource(exporter)
    return set(re.findall(r'"(pcasgd_\w+)"', source)) | {"pcasgd_test_accuracy", "pcasgd_step_seconds_bucket"}


def asked(text: str) -> set[str]:
    return set(re.findall(r"ray_(pcasgd_\w+)", text))


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    text = (FOLDER / "grafana-dashboard.json").read_text()
    dashboard = json.loads(text)
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))
    assert asked(text) <= made()


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yml"])
def test_what_is_asked_of_ray_itself_is_what_rays_own_dashboard_asks(name: str) -> None:
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    own = "".join(path.read_text(encoding="utf-8") for path in panels.glob("*.py"))
    names = set(re.findall(r"ray_(?!pcasgd)\w+", (FOLDER / name).read_text()))
    assert names
    assert {one for one in names if not re.search(rf"\b{one}\b", own)} == set()


def test_alerts_ask_for_metrics_and_events_that_there_are() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    assert asked(text) <= made()
    kinds = {kind for found in re.findall(r'kind=~?"([^"]+)"', text) for kind in found.split("|")}
    package = FOLDER.parent / "ray_pcasgd"
    source = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert {kind for kind in kinds if f'Event("{kind}"' not in source and f'Announce("{kind}"' not in source} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus's promtool is not on PATH")
def test_alerts_fire_where_they_should() -> None:
    command = ["promtool", "test", "rules", "alerts-test.yml"]
    tried = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr
