"""Runs of this package's live engine that end by the clock, and whose weights are noted, but not tested, meanwhile."""

import time

import torch

from experiments.slow_worker.track import Noted, Step, Track
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Pause, RunError
from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import make_plan


def run_live(config: Config, seconds: float) -> Track:
    """Train for so many seconds after the first step."""
    plan = make_plan(config)
    # Peers test their own models where their weights are noted: with one sample, that costs next to nothing.
    data = plan.data._replace(test=plan.data.test.subset([0]))
    called, startup, cpu_before = time.time(), 0.0, 0.0
    steps: list[Step] = []
    updates: list[tuple[float, float]] = []
    noted: list[Noted] = []
    cancelled: list[float] = []
    reports = plan.engine().run(plan.specs, data)
    for report in reports:
        if isinstance(report, Pause):
            continue
        if isinstance(report, Event):
            if report.kind in ("neighbor_behind", "neighbor_caught_up"):  # of the slow worker, by engine.max_lag
                continue
            if report.kind not in ("agent_started", "scheduler_started", "cluster_joined"):
                raise RunError(f"{report.kind} of agent {report.agent}: {report.detail}")
            startup, cpu_before = time.time() - called, time.process_time()
            continue
        row = report.row
        if row.kind == "cancelled":
            cancelled.append(row.end)
            continue
        if row.agent not in plan.servers:
            steps.append(Step(row.agent, row.end, row.ready - row.start))
        if row.agent in plan.servers or not plan.servers:
            updates.append((row.end, report.loss))
        if report.snapshot is not None:
            noted.append(Noted(row.agent, report.wall_seconds, report.snapshot.weights))
        if report.wall_seconds > seconds + 1:  # by then, all reports of the time that counts have come
            break
    cpu = time.process_time() - cpu_before
    reports.close()  # type: ignore[attr-defined]
    noted.sort(key=lambda note: note.seconds)
    return Track(startup, steps, updates, noted, cpu / seconds, cancelled)


def calibrated(config: Config, seconds: float) -> float:
    """Return the median seconds of a worker's step while all of them train, none of them slowed."""
    durations = [step.duration for step in run_live(config, seconds).steps if step.seconds > 1]
    return float(torch.tensor(durations).median())
