"""What Prometheus is shown of figures that are measured rarely: they stay, though Ray forgets gauges by itself."""

import math
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.prometheus import Exporter
from ray_pcasgd.runs.settings.loading import load_config
from tests.ray.scraping import scraped

pytestmark = pytest.mark.usefixtures("ray_cluster")
AVERAGED = 'ray_pcasgd_test_accuracy{agent="averaged",run="rare"}'
DISTANCE = 'ray_pcasgd_consensus_distance{agent="1",run="rare"}'


def polled() -> Iterator[dict[str, str]]:
    while True:
        yield scraped()
        threading.Event().wait(0.1)


def test_figures_of_an_evaluation_are_shown_until_the_next_one() -> None:
    seconds = count()
    exporter = Exporter(clock=lambda: float(next(seconds)))
    exporter.on_start(make_plan(load_config({"num_steps": 10})), Path("runs/rare"))
    exporter.on_event(Event("cluster_joined", -1, 0, ""))
    exporter.on_evaluation(
        [
            {"agent": math.nan, "test_accuracy": 0.25, "consensus_distance": math.nan},
            {"agent": 1, "test_accuracy": 0.5, "consensus_distance": 2.0},
        ]
    )
    shown = next(found for found in polled() if {AVERAGED, DISTANCE} <= found.keys())
    assert (shown[AVERAGED], shown[DISTANCE]) == ("0.25", "2.0")
    # Ray drops a gauge that nobody sets, after two of its intervals: ten seconds each, and one here.
    next(found for found in polled() if not {AVERAGED, DISTANCE} & found.keys())
    for step in range(3):
        exporter.on_step(StepReport(Row(1, step, 0.0, 1.0, 1.0, ()), step + 1, 0.5, {}, 0, 1.0))
    shown = next(found for found in polled() if {AVERAGED, DISTANCE} <= found.keys())
    assert (shown[AVERAGED], shown[DISTANCE]) == ("0.25", "2.0")
