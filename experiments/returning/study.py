"""Runs in which an agent comes back, by what its optimizer goes on with."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.returning.agents import WAYS, ReturningSpec, with_return
from experiments.running import at_once
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.scheduler import Recorded

HERE = Path(__file__).parent
STAYED = "stayed"
"""In place of a way: the agent was never away."""
AGENT = 0
"""Who leaves and comes back."""


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Take all runs, and write what they came to."""
    cases = [
        (settings, optimizer, way, seed)
        for optimizer in settings["optimizers"]
        for way in (*WAYS, STAYED)
        for seed in range(settings["seeds"])
    ]
    with at_once(processes) as pool:
        rows = [row for found in pool.map(_one, cases) for row in found]
    pd.DataFrame(rows).to_parquet(output / "results.parquet", index=False)


def _one(case: tuple[Mapping[str, Any], str, str, int]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return list(figures(*case))


def figures(settings: Mapping[str, Any], optimizer: str, way: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the agent's test loss and accuracy so many steps after its return."""
    plan = make_plan(load_config(settings["config"], changes={**settings["optimizers"][optimizer], "seed": seed}))
    rows = list(plan.schedule)
    if way != STAYED:
        rows = with_return(rows, AGENT, settings["leaves_at"], settings["returns_at"])
    agents = [spec_of(spec, way).build(plan.data) for spec in plan.specs if isinstance(spec, AgentSpec)]
    for report in Execution(Recorded(tuple(rows)), agents).reports():
        if not isinstance(report, StepReport) or report.row.agent != AGENT:
            continue
        after = report.row.step + 1 - settings["returns_at"]
        if after == 0 or after in settings["tested_after"]:
            found = agents[AGENT].evaluate()
            yield {"optimizer": optimizer, "way": way, "seed": seed, "after": after, **found}


def spec_of(spec: AgentSpec, way: str) -> ReturningSpec:
    """Return an agent's spec, with the way in which its optimizer comes back."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return ReturningSpec(**fields, way=way)
