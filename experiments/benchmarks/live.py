"""(e) Live agents together with a slow one, and with one whose process is killed."""

import os
import re
import signal
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from experiments.benchmarks.measuring import Figure, paired, run_times, steps_per_second
from ray_pcasgd.engines.base import Report
from ray_pcasgd.records import Event, StepReport

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


def longest_gap_after_a_kill(
    sleeps: Sequence[float] = (FAST,) * 4, killed: int = 3, watched: Sequence[int] = (0, 1, 2), **changes: Any
) -> float:
    """Return the longest time between two steps of any agent that is watched, in seconds, while another is killed.

    Args:
        sleeps: Of each agent, the seconds of a step.
        killed: Whose process is killed once somebody has come to a step.
        watched: Who is looked at; the run ends with them.
        changes: Further settings.

    """
    killer = _Killer(killed)
    settings = {"engine": {"name": "ray", "mode": "live"}, "num_agents": len(sleeps), "num_steps": 300, **changes}
    times = run_times(watched=watched, on_report=killer, compute={"stragglers": dict(enumerate(sleeps))}, **settings)
    assert killer.process is None, "nobody was killed"
    return max(b - a for k in watched for a, b in pairwise(times[k][5:]))


class _Killer:
    """Kills an agent's process, once, as soon as any agent has come to a step."""

    def __init__(self, agent: int) -> None:
        self.agent = agent
        self.process: int | None = 0
        """0 until it is known, ``None`` once it is killed."""

    def __call__(self, report: Report) -> None:
        if isinstance(report, Event) and report.kind == "agent_started" and report.agent == self.agent:
            found = re.match(r"process (\d+)", report.detail)
            assert found
            self.process = self.process if self.process is None else int(found[1])
        if isinstance(report, StepReport) and report.row.step == KILLED_AT and self.process:
            os.kill(self.process, signal.SIGKILL)
            self.process = None
