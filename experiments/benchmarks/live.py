"""(e) Live agents together with a slow one, and with one whose process is killed."""

import os
import re
import signal
from itertools import pairwise

from experiments.benchmarks.measuring import Figure, paired, run_times, steps_per_second
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config

FAST, SLOW = 0.02, 0.2
KILLED_AT = 60


def benchmark(repeats: int) -> list[Figure]:
    """Return the fast agents' speed with a slow one over that without it, live and under a barrier."""
    return [
        paired(
            f"three fast agents (20 ms a step) next to a slow one (200 ms), {name}",
            lambda barrier=barrier: _fast_rate(SLOW, barrier),
            lambda barrier=barrier: _fast_rate(FAST, barrier),
            "agent-steps/s",
            "the same next to a fast one",
            repeats,
        )
        for name, barrier in (("no barrier", "none"), ("barrier all", "all"))
    ]


def _fast_rate(fourth: float, barrier: str) -> float:
    stragglers = {0: FAST, 1: FAST, 2: FAST, 3: fourth}
    # As long for the slow agent as the fast ones need: only what happens while all of them train counts.
    engine = {"name": "ray", "mode": "live"}
    steps = 150 if barrier == "none" else 40
    times = run_times(engine=engine, num_agents=4, num_steps=steps, barrier=barrier, compute={"stragglers": stragglers})
    end = min(own[-1] for own in times[:3])
    return steps_per_second([[t for t in own if t <= end] for own in times[:3]], skip=2)


def longest_gap_after_a_kill() -> float:
    """Return the longest time between two steps of any agent that lives on, in seconds, beyond its own step."""
    stragglers = dict.fromkeys(range(4), FAST)
    plan = make_plan(
        load_config(
            None,
            changes={
                "engine": {"name": "ray", "mode": "live"},
                "num_agents": 4,
                "num_steps": 300,
                "evaluate_every": 10**6,
                "compute": {"stragglers": stragglers},
            },
        )
    )
    process = 0
    times: list[list[float]] = [[] for _ in plan.specs]
    for report in plan.engine().run(plan.specs, plan.data):
        if isinstance(report, Event) and report.kind == "agent_started" and report.agent == 3:
            found = re.match(r"process (\d+)", report.detail)
            assert found
            process = int(found[1])
        if isinstance(report, StepReport):
            times[report.row.agent].append(report.wall_seconds)
            if process and report.row.step == KILLED_AT:
                os.kill(process, signal.SIGKILL)
                process = 0
    return max(b - a for own in times[:3] for a, b in pairwise(own[5:]))
