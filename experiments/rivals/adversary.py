"""What late gradients cost on a quadratic: held back by the adversary, late at random by as much, or not at all.

The slowdown of a run is how many times as many updates it takes as steps one after another: of ``f(x) = x^2 / 2`` and a
step size a, ``T log(1 - a) / log |x_T / x_0|`` after T updates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.rivals.quadratic import Array, planned, task, weights_of
from ray_pcasgd.rules.shared_memory import slowdown

NONE, HELD, SLOW, DRAWN = "no delay", "adversary", "one worker slow at random", "drawn evenly for each gradient"


def settings_of(kind: str, delay: int) -> dict[str, Any]:
    """Return the settings of runs no gradient of which is later than ``delay`` updates.

    Where one worker is slow, its times are exponential, ``delay`` times the other's in the mean, and what comes later
    is ignored (Ringmaster). Where lateness is drawn, a gradient is computed at one of the last ``delay + 1`` versions.
    """
    if kind == NONE:
        return {"num_agents": 1, "algorithm": {"name": "server", "gathering": "asgd"}}
    if kind == DRAWN:
        view = {"delay": delay, "block": 1}
        return {"num_agents": 1, "algorithm": {"name": "server", "gathering": "asgd", "view": view}}
    if kind == HELD:
        return {"num_agents": 2, "algorithm": {"name": "server", "gathering": {"name": "adversarial", "delay": delay}}}
    times = {"agents": {0: 1.0, 1: {"name": "exponential", "mean": float(delay)}}}
    threshold = {"name": "ringmaster", "delay_threshold": delay + 1}
    return {"num_agents": 2, "algorithm": {"name": "server", "gathering": threshold}, "compute": times}


def weights(kind: str, delay: int, step_size: Any, updates: int, seed: int = 0) -> Array:
    """Return the weight of a run before the first update and after each, shape (updates + 1,)."""
    own = settings_of(kind, delay)
    own |= {"num_steps": -(-updates // own["num_agents"]), "step_size": step_size, "task": task([1.0]), "seed": seed}
    return weights_of(planned(own), updates)[:, 0]


def decay(found: Array) -> float:
    """Return the logarithm of what a run has left of its first weight; infinite where it ended early."""
    return math.log(abs(found[-1] / found[0])) if np.isfinite(found[-1]) and found[-1] else math.inf


def slower(decays: Sequence[float], updates: int, step_size: float) -> float:
    """Return the slowdown of runs by the mean of their ``decay``; infinite where they do not come nearer."""
    mean = float(np.mean(decays))
    return updates * math.log(1 - step_size) / mean if mean < 0 else math.inf


def delays_of(own: Mapping[str, Any]) -> pd.DataFrame:
    """Return the slowdown of each kind of lateness by delay, and what the adversary's closed form says of it."""
    rows, step_size = [], own["step_size"]
    for delay in own["delays"]:
        for kind in (NONE, HELD, SLOW, DRAWN):
            # Of a fast run's float32, nothing would be left.
            periods = 2 * math.ceil(own["updates"] / 2 / (delay + 1))
            updates = 100 if kind == NONE else periods * (delay + 1)
            seeds = own["seeds"] if kind in (SLOW, DRAWN) else [0]
            runs = [weights(kind, delay, step_size, updates, seed) for seed in seeds]
            found = slower([decay(run) if len(run) > updates else math.inf for run in runs], updates, step_size)
            expected = {NONE: 1.0, HELD: slowdown(delay, step_size)}.get(kind, math.nan)
            rows.append({"delay": delay, "kind": kind, "slowdown": found, "closed_form": expected})
    return pd.DataFrame(rows)


def repair(own: Mapping[str, Any]) -> pd.DataFrame:
    """Return the adversary's slowdown by epoch, with a step size that is halved each epoch, and with a constant one."""
    rows, delay, periods = [], own["repair_delay"], 2
    length = periods * (delay + 1)
    updates = own["epochs"] * length
    for start in own["starts"]:
        at_steps = [epoch * length // 2 for epoch in range(1, own["epochs"])]
        halved = {"name": "multi-step", "start": start, "factor": 0.5, "at_steps": at_steps}
        for name, step_size in (("halved", halved), ("constant", start)):
            found = weights(HELD, delay, step_size, updates)
            for epoch in range(own["epochs"]):
                now = start * 0.5**epoch if name == "halved" else start
                part = found[epoch * length : (epoch + 1) * length + 1]
                rows.append(
                    {
                        "start": start,
                        "steps": name,
                        "epoch": epoch + 1,
                        "step_size": now,
                        "slowdown": slower([decay(part)], length, now),
                        "closed_form": slowdown(delay, now),
                        "left": abs(float(part[-1])),
                    }
                )
    return pd.DataFrame(rows)


def delays_table(found: pd.DataFrame) -> str:
    """Return the slowdowns by delay, a column for each kind of lateness."""
    kinds = list(found["kind"].drop_duplicates())
    text = f"| largest delay | {' | '.join(kinds)} | adversary, closed form |\n|---|{'---|' * (len(kinds) + 1)}\n"
    for delay, rows in found.groupby("delay"):
        by_kind = rows.set_index("kind")
        cells = [told(by_kind["slowdown"][kind]) for kind in kinds]
        text += f"| {delay} | {' | '.join(cells)} | {by_kind['closed_form'][HELD]:.4g} |\n"
    return text.rstrip()


def repair_table(found: pd.DataFrame) -> str:
    """Return the slowdown of each epoch, and what is left of the weight after it."""
    text = "| epoch | step size | slowdown | closed form | left of x | left with the first step size throughout |\n"
    text += "|---|---|---|---|---|---|\n"
    for start, rows in found.groupby("start", sort=False):
        halved, constant = (rows[rows["steps"] == name].set_index("epoch") for name in ("halved", "constant"))
        for epoch, row in halved.iterrows():
            text += (
                f"| {epoch} | {row['step_size']:g} | {told(row['slowdown'])} | {row['closed_form']:.4g} | "
                f"{row['left']:.2g} | {constant['left'][epoch]:.2g} |\n"
            )
        text += "" if start == found["start"].iloc[-1] else "| | | | | | |\n"
    return text.rstrip()


def told(value: float) -> str:
    """Return a slowdown in words."""
    return f"{value:.4g}" if math.isfinite(value) else "diverges"


def differs_most(found: pd.DataFrame, of: Callable[[pd.DataFrame], pd.DataFrame]) -> float:
    """Return the largest relative difference of runs from the closed form, of some of the rows."""
    rows = of(found)
    return float((rows["slowdown"] / rows["closed_form"] - 1).abs().max())
