"""The runs of the study: screens, attacks, attackers, delays and shards; then servers; then papers' own experiments."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.byzantine import bridge, distances, slowdown
from experiments.byzantine.methods import (
    ATTACKS,
    LIARS,
    MEAN,
    SCREENS,
    SHARDS,
    between_peers,
    faults_of,
    screen_of,
    with_mixing,
)
from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
LATE: dict[str, dict[str, Any]] = {
    "keep": {"late": "keep"},
    "predict": {"late": "predict"},
    "displacement": {"late": "predict", "prediction": "displacement"},
    "clip": {"late": "clip"},
}
ASKED = ("alie", "stale-replay")
"""Attacks under which late neighbors are kept, predicted and clipped."""
LARGE = ", large mini-batches"
KARDAM: dict[str, Any] = {"correction": {"name": "kardam", "attackers": 2}}
SERVERS: dict[str, Any] = {
    "asgd": {},
    "asgd, kardam": KARDAM,
    # Its filter asks whether gradients differ more than weights do: noise of small mini-batches hides that.
    f"asgd{LARGE}": {},
    f"asgd, kardam{LARGE}": KARDAM,
    "sync": {"gathering": "sync"},
    **{
        f"sync, {screen}": {
            "gathering": "sync",
            "screen": screen_of(screen),
            "attackers": 1 if screen == "bulyan" else 2,
        }
        for screen in with_mixing(SCREENS)
        if screen != "nearest-neighbors"  # which is between peers alone
    },
}
SERVER_ATTACKS: dict[str, Any] = {
    "sign-flip, s = 10": {"name": "sign-flip", "scale": 10},
    "noise, std 200": {"name": "noise", "std": 200},
    **{attack: attack for attack in ATTACKS if attack not in ("sign-flip", "noise")},
}


def most_of(method: str) -> int:
    """Return how many attackers a method is tried against: Bulyan stands one among seven neighbors."""
    return 1 if method == "bulyan" else len(LIARS["peers"])


def peers(
    settings: Mapping[str, Any],
    method: str,
    attack: str | None,
    number: int,
    *,
    shards: str = "alike",
    is_late: bool = False,
    late: str = "keep",
) -> Iterator[Job]:
    """Yield one case's runs; ``number`` attackers are there, and as many are to be stood, or one."""
    changes: dict[str, Any] = {
        "algorithm": between_peers(method, max(1, number), **LATE[late]),
        "links": [{"between": "clusters", "delay": settings["delay"]}] if is_late else [],
        "partition": SHARDS[shards],
        "faults": faults_of("peers", number, attack),
    }
    labels = {"kind": "peers", "method": method, "attack": attack or "none", "attackers": number if attack else 0}
    labels |= {"shards": shards, "is_late": is_late, "late": late}
    for seed in settings["seeds"]:
        yield Job({**labels, "seed": seed}, load_config(settings["config"], changes={**changes, "seed": seed}))


def servers(settings: Mapping[str, Any], method: str, attack: str | None) -> Iterator[Job]:
    """Yield the runs of one method with a server, whose workers' speeds vary."""
    changes: dict[str, Any] = {
        "algorithm": {"name": "server", **SERVERS[method]},
        "links": [],
        "clusters": 1,
        "compute": {"law": {"name": "exponential", "mean": 1.0}},
        "faults": faults_of("servers", 2, SERVER_ATTACKS[attack]) if attack else None,
    }
    if method.endswith(LARGE):
        changes["batch_size"] = settings["distances"]["batch_sizes"][-1]
    labels = {"kind": "servers", "method": method, "attack": attack or "none", "attackers": 2 if attack else 0}
    labels |= {"shards": "alike", "is_late": False, "late": "keep"}
    for seed in settings["seeds"]:
        yield Job({**labels, "seed": seed}, load_config(settings["config"], changes={**changes, "seed": seed}))


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield all runs; one that two tables show is made once."""
    screens = tuple(settings.get("screens", SCREENS))
    for method, shards, is_late in itertools.product((MEAN, *with_mixing(screens)), SHARDS, (False, True)):
        yield from peers(settings, method, None, 1, shards=shards, is_late=is_late)
        for attack, number in itertools.product(ATTACKS, range(1, most_of(method) + 1)):
            yield from peers(settings, method, attack, number, shards=shards, is_late=is_late)
    for method, late, shards, attack in itertools.product(screens, list(LATE)[1:], SHARDS, (None, *ASKED)):
        yield from peers(settings, method, attack, 1, shards=shards, is_late=True, late=late)
    for name in SERVERS:
        for attack in (None, *SERVER_ATTACKS):
            yield from servers(settings, name, attack)
    yield from slowdown.jobs_of(settings)
    yield from bridge.jobs_of(settings)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    rows_of(jobs_of(settings), storage, processes).to_parquet(output / "results.parquet", index=False)
    distances.measure(settings, storage, output, processes)


def rows_of(jobs: Iterator[Job], storage: Path, processes: int) -> pd.DataFrame:
    """Return what runs have come to, in a row each; those that are not there are made."""
    results = measured(jobs, storage, processes)
    figures = pd.DataFrame([figures_of(row) for row in results.to_dict("records")])
    kept = [column for column in results.columns if column not in ("path", "run")]
    return pd.concat([results[kept], figures], axis=1)


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's accuracy, of honest agents or of the server, and the shares that were screened out."""
    folder = Path(row["path"])
    frame = pd.read_parquet(folder / "metrics.parquet")
    honest = frame if frame.empty else frame[frame["agent"].isna()]
    liars = LIARS[row["kind"]][: row["attackers"]]
    if row["kind"] in ("peers", "bridge") and len(frame):
        of_agents = frame[frame["agent"].notna()].drop_duplicates("agent", keep="last")
        honest = of_agents[~of_agents["agent"].isin(liars)]
    if row["kind"] == "slowdown":
        honest = honest.sort_values("step")[-1:]
    accuracy = float(honest["test_accuracy"].mean()) if len(honest) and "test_accuracy" in honest else np.nan
    # A run that diverged has no last evaluation: nothing was learned.
    found = {"accuracy": accuracy if row.get("test_accuracy") == row.get("test_accuracy") else 0.0}
    if row["kind"] == "slowdown":
        found["steps_to"] = slowdown.steps_to(row["goal"], folder)
    file = folder / "screening.parquet"
    if not file.exists():
        return found | dict.fromkeys(("out_attackers", "out_in_time", "out_late"), np.nan)
    judged = pd.read_parquet(file)
    judged = judged[~judged["agent"].isin(liars)]
    parts = {
        "out_attackers": judged[judged["attacker"]],
        "out_in_time": judged[~judged["attacker"] & ~judged["late"]],
        "out_late": judged[~judged["attacker"] & judged["late"]],
    }
    return found | {name: share_of(part) for name, part in parts.items()}


def share_of(part: pd.DataFrame) -> float:
    """Return the mean share of versions that was left out."""
    reads = part["reads"].sum()
    return float((part["reads"] * part["screened"]).sum() / reads) if reads else np.nan
