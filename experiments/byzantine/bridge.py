"""BRIDGE's own experiment, as near as it can be had without MNIST: by the number of attackers, b as it is."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from experiments.byzantine.figures import STANDS, case, listed, percent, value
from experiments.byzantine.methods import MEAN, NNM, between_peers, faults_of
from experiments.running import Job
from ray_pcasgd.runs.settings.loading import load_config

METHODS = (MEAN, "trimmed-mean", "median", "krum", "bulyan", NNM + "trimmed-mean")
PUBLISHED = "mean, published steps"
"""The plain mean with the steps that the authors take with MNIST, 0.1/(t + 1)."""
STOOD = 2
"""b."""


def stood_by(method: str) -> int:
    """Return b: with Bulyan 1, since for 2 it asks for ten neighbors, which not every agent has."""
    return 1 if method == "bulyan" else STOOD


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs: steps that fall as ``1 / (t + 1)``, attackers that send numbers drawn from (-1, 0)."""
    own = settings["bridge"]
    for method, number, seed in itertools.product(METHODS, own["attackers"], own["seeds"]):
        yield _job(own, method, number, seed, own["step_size"])
    for seed in own["seeds"]:
        yield _job(own, PUBLISHED, 0, seed, 0.1)


def _job(own: Mapping[str, Any], method: str, number: int, seed: int, step_size: float) -> Job:
    steps = range(own["config"]["num_steps"])
    attack = {"name": "uniform", "low": -1.0, "high": 0.0}
    changes = {
        "step_size": {"name": "stairs", "values": [step_size / (t + 1) for t in steps], "at_steps": list(steps)[1:]},
        "links": [],
        "algorithm": between_peers(MEAN if method == PUBLISHED else method, stood_by(method)),
        "faults": faults_of("bridge", number, attack),
        "seed": seed,
    }
    labels = {"kind": "bridge", "method": method, "attack": "uniform" if number else "none", "attackers": number}
    labels |= {"shards": "alike", "is_late": False, "late": "keep", "seed": seed}
    return Job(labels, load_config(own["config"], changes=changes))


def claim(rows: pd.DataFrame) -> str:
    """Return whether the plain mean falls to two attackers, and which of BRIDGE's screens stand them."""
    goal = _goal(rows)
    fallen = _at(rows, MEAN, STOOD)
    reached = {method: _at(rows, method, stood_by(method)) for method in METHODS[1:5]}
    stand = [method for method, one in reached.items() if one >= goal]
    not_stood = [f"{method} ({percent(one)})" for method, one in reached.items() if one < goal]
    reproduces = "reproduces" if fallen < goal and not not_stood else "does not reproduce in all parts"
    said = (
        f"- **BRIDGE's own experiment {reproduces}**: the plain mean has {percent(goal + STANDS)} without attackers "
        f"and {percent(fallen)} with {STOOD}; as many attackers as they are set for stand {listed(stand)}"
    )
    published = percent(_at(rows, PUBLISHED, 0))
    return (
        said
        + (f", but not {listed(not_stood)}" if not_stood else "")
        + f". With the authors' own steps, 0.1/(t + 1), which are for MNIST, the plain mean comes to {published} on "
        "the digits."
    )


def table(rows: pd.DataFrame) -> str:
    """Return accuracies by the number of attackers."""
    numbers = sorted(rows["attackers"].unique())
    goal = _goal(rows)
    text = f"| | b | {' | '.join(f'{number} attackers' for number in numbers)} |\n|---|---|{'---|' * len(numbers)}\n"
    for method in METHODS:
        values = [_at(rows, method, number) for number in numbers]
        cells = [f"**{percent(one)}**" if one < goal else percent(one) for one in values]
        text += f"| {method} | {'–' if method == MEAN else stood_by(method)} | {' | '.join(cells)} |\n"
    return text


def _goal(rows: pd.DataFrame) -> float:
    return _at(rows, MEAN, 0) - STANDS


def _at(rows: pd.DataFrame, method: str, number: int) -> float:
    return value(case(rows, method=method, attackers=number))
