"""The runs of the study: screens, attacks, attackers, delays and shards; then servers."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.byzantine import distances
from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
SHARDS: dict[str, Any] = {"alike": "iid", "skewed": {"name": "dirichlet", "alpha": 0.3}}
MEAN = "mean"
SCREENS = (
    "trimmed-mean",
    "median",
    "krum",
    "bulyan",
    "nearest-neighbors",
    "centered-clipping",
    "geometric-median",
)
ATTACKS = ("sign-flip", "noise", "alie", "inner-product", "mimic", "label-flip", "stale-replay")
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
        f"sync, {screen}": {"gathering": "sync", "screen": screen, "attackers": 1 if screen == "bulyan" else 2}
        for screen in SCREENS
        if screen != "nearest-neighbors"  # which is between peers alone
    },
}
SERVER_ATTACKS: dict[str, Any] = {
    "sign-flip, s = 10": {"name": "sign-flip", "scale": 10},
    "noise, std 200": {"name": "noise", "std": 200},
    **{attack: attack for attack in ATTACKS if attack not in ("sign-flip", "noise")},
}


def attackers(number: int) -> list[int]:
    """Return the attackers, so many of them: they are among the agents that are near each other."""
    return [1, 4][:number]


def peers(
    settings: Mapping[str, Any],
    screen: str,
    attack: str | None,
    number: int,
    *,
    shards: str = "alike",
    is_late: bool = False,
    late: str = "keep",
) -> Iterator[Job]:
    """Yield one case's runs; ``number`` attackers are there, and as many are to be stood, or one."""
    algorithm: dict[str, Any] = {"name": "d-asgd"}
    if screen != MEAN:
        algorithm = {"name": "bridge", "screen": screen, "attackers": max(1, number), **LATE[late]}
    changes: dict[str, Any] = {
        "algorithm": algorithm,
        "links": [{"between": "clusters", "delay": settings["delay"]}] if is_late else [],
        "partition": SHARDS[shards],
        "faults": {"agents": attackers(number), "attack": attack} if attack else None,
    }
    labels = {"kind": "peers", "method": screen, "attack": attack or "none", "attackers": number if attack else 0}
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
        "faults": {"agents": attackers(2), "attack": SERVER_ATTACKS[attack]} if attack else None,
    }
    if method.endswith(LARGE):
        changes["batch_size"] = settings["distances"]["batch_sizes"][-1]
    labels = {"kind": "servers", "method": method, "attack": attack or "none", "attackers": 2 if attack else 0}
    labels |= {"shards": "alike", "is_late": False, "late": "keep"}
    for seed in settings["seeds"]:
        yield Job({**labels, "seed": seed}, load_config(settings["config"], changes={**changes, "seed": seed}))


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield all runs; one that two tables show is made once."""
    screens = settings.get("screens", SCREENS)
    for method in (MEAN, *screens):
        for shards, is_late, attack in itertools.product(SHARDS, (False, True), (None, *ATTACKS)):
            yield from peers(settings, method, attack, 1, shards=shards, is_late=is_late)
        if method != "bulyan":  # which stands one among seven neighbors
            for attack in ATTACKS:
                yield from peers(settings, method, attack, 2)
    for method, late, shards, attack in itertools.product(screens, list(LATE)[1:], SHARDS, (None, *ASKED)):
        yield from peers(settings, method, attack, 1, shards=shards, is_late=True, late=late)
    for name in SERVERS:
        for attack in (None, *SERVER_ATTACKS):
            yield from servers(settings, name, attack)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    results = measured(jobs_of(settings), storage, processes)
    figures = pd.DataFrame([figures_of(row) for row in results.to_dict("records")])
    kept = [column for column in results.columns if column not in ("path", "run")]
    pd.concat([results[kept], figures], axis=1).to_parquet(output / "results.parquet", index=False)
    distances.measure(settings, storage, output, processes)


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's accuracy, of honest agents or of the server, and the shares that were screened out."""
    folder = Path(row["path"])
    frame = pd.read_parquet(folder / "metrics.parquet")
    honest = frame if frame.empty else frame[frame["agent"].isna()]
    if row["kind"] == "peers" and len(frame):
        of_agents = frame[frame["agent"].notna()].drop_duplicates("agent", keep="last")
        liars = attackers(row["attackers"])
        honest = of_agents[~of_agents["agent"].isin(liars)]
    accuracy = float(honest["test_accuracy"].mean()) if len(honest) and "test_accuracy" in honest else np.nan
    # A run that diverged has no last evaluation: nothing was learned.
    found = {"accuracy": accuracy if row.get("test_accuracy") == row.get("test_accuracy") else 0.0}
    file = folder / "screening.parquet"
    if not file.exists():
        return found | dict.fromkeys(("out_attackers", "out_in_time", "out_late"), np.nan)
    judged = pd.read_parquet(file)
    judged = judged[~judged["agent"].isin(attackers(row["attackers"]))]
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
