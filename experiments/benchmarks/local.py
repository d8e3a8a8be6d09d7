"""(d) The local engine: agents' steps stacked against one at a time, in a table against anew, and by their number."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch.utils.data import TensorDataset

from experiments.benchmarks.measuring import Figure, paired, run_times
from ray_pcasgd.engines.local.engine import LocalSettings, computing_alone
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.engines.local.stacked import StackedExecution
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.datasets import Digits

STEPS = {8: 200, 64: 60, 512: 20}
MANY = {1024: 40, 4096: 40}
"""Agents whose steps are measured against those of 64. With 4096 it takes 8 GB, and half a minute to begin."""
SAMPLES = 64
"""Of each of these agents: with a few, most of the time would go into the orders of their epochs."""


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures for 8, 64 and 512 agents, and for more of them."""
    small = STEPS.items()
    return [
        *(_case(num_agents, steps, repeats) for num_agents, steps in small),
        *(_against_other_runs(num_agents, steps, repeats) for num_agents, steps in small if num_agents < 512),
        *(_by_number(num_agents, steps, repeats) for num_agents, steps in MANY.items()),
    ]


def _case(num_agents: int, steps: int, repeats: int) -> Figure:
    return paired(
        f"digits MLP, {num_agents} agents, exponential graph, batched",
        lambda: _rate(num_agents, steps, batched="always"),
        lambda: _rate(num_agents, steps, batched="never"),
        "agent-steps/s",
        "one agent at a time",
        repeats,
    )


def _against_other_runs(num_agents: int, steps: int, repeats: int) -> Figure:
    plan = make_plan(_settings(num_agents, steps))

    def rate(reports: Callable[[Plan], Iterable[Any]]) -> float:
        with computing_alone(LocalSettings()):
            return _rate_of([one.wall_seconds for one in reports(plan) if isinstance(one, StepReport)], 2 * num_agents)

    def in_table(plan: Plan) -> Iterable[Any]:
        return StackedExecution(plan.schedule, _agents(plan)).reports()

    def stacked_anew(plan: Plan) -> Iterable[Any]:
        return Execution(plan.schedule, _agents(plan), stacks=True).reports()

    return paired(
        f"digits MLP, {num_agents} agents, exponential graph, in one table",
        lambda: rate(in_table),
        lambda: rate(stacked_anew),
        "agent-steps/s",
        "stacked anew at each step, as runs are that do not fit into a table",
        repeats,
    )


def _by_number(num_agents: int, steps: int, repeats: int) -> Figure:
    return paired(
        f"digits MLP, {num_agents} agents, exponential graph, batched, {SAMPLES} samples each",
        lambda: _rate(num_agents, steps, batched="always", task=_repeated_digits(num_agents)),
        lambda: _rate(64, 2 * steps, batched="always", task=_repeated_digits(64)),
        "agent-steps/s",
        "64 agents",
        repeats,
    )


def _repeated_digits(num_agents: int) -> dict[str, Any]:
    """Return the task of the digits, each of which is there so often that all agents have as many."""
    digits = Digits().load()
    inputs, targets = digits.train.take(torch.arange(num_agents * SAMPLES) % len(digits.train))
    train, test = TensorDataset(inputs, targets), TensorDataset(*digits.test.take(torch.arange(len(digits.test))))
    return {"data": {"name": "custom", "train": train, "test": test}}


def _settings(num_agents: int, steps: int, batched: str = "always", **more: Any) -> Any:
    engine = {"name": "local", "batched": batched}
    # Digits alone make shards of two or three samples of 512 agents: only speed is measured.
    own = {"engine": engine, "num_agents": num_agents, "num_steps": steps, "topology": "exponential"}
    return load_config(None, changes={"evaluate_every": 10**6, **own, **more})


def _rate(num_agents: int, steps: int, **more: Any) -> float:
    times = run_times(_settings(num_agents, steps, **more))
    return _rate_of([moment for own in times for moment in own], 2 * num_agents)


def _agents(plan: Plan) -> list[Any]:
    return [spec.build(plan.data) for spec in plan.specs]


def _rate_of(moments: Iterable[float], skipped: int) -> float:
    """Return the steps a second by when each was finished, without the first ones."""
    finished = list(islice(sorted(moments), skipped, None))
    return (len(finished) - 1) / (finished[-1] - finished[0])
