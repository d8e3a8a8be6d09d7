"""How far late honest neighbors are from where they are by now, as they were read and as they were predicted."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from experiments.running import Job, at_once, named
from experiments.studies import ensure_run
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe
from ray_pcasgd.rules.bridge import Bridge
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.names import clear_run

ARMS: dict[str, dict[str, Any]] = {
    "kept": {"late": "keep"},
    "predicted by direction": {"late": "predict"},
    "predicted by displacement": {"late": "predict", "prediction": "displacement"},
}
SCREENS = ("trimmed-mean", "nearest-neighbors")
NAMES = ("taken_truth", "read_truth", "taken_reader", "read_reader", "truth_reader")


class Step(NamedTuple):
    """What an agent read at one of its steps."""

    own: Tensor
    late: dict[int, tuple[Tensor, Tensor]]
    """Of each late neighbor, by its number, what was read and what it was taken for."""


class Watched(Bridge):
    """BRIDGE among agents that all read each other, noting what it read and what it took late neighbors for."""

    name: Literal["watched"] = "watched"  # type: ignore[assignment]
    stackable: ClassVar[bool] = False
    seen: ClassVar[dict[tuple[int, int], Step]] = {}

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return those of the rule, and whose step this is."""
        return super().coefficients(agent, step) | {"agent": agent, "step": step}

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the rule's step."""
        taken = self._judged(state, own, reads)[1] if reads.weights else ()
        step, agent = int(own.coefficients["step"]), int(own.coefficients["agent"])
        others = [other for other in range(len(reads.weights) + 1) if other != agent]
        is_late = (~reads.reliable & (reads.staleness > 0)).tolist()
        each = zip(others, is_late, reads.weights, taken, strict=True) if reads.weights else ()
        # What is read lies in slots that are written again.
        late = {other: (old.clone(), guess.clone()) for other, counts, old, guess in each if counts}
        self.seen[step, agent] = Step(own.weights.clone(), late)
        return super().step(state, own, reads, probe)


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs: nobody attacks, agents are late, mini-batches of several sizes."""
    own = settings["distances"]
    for screen, size, (arm, changes), seed in itertools.product(
        SCREENS, own["batch_sizes"], ARMS.items(), settings["seeds"]
    ):
        config = load_config(
            settings["config"],
            changes={
                "algorithm": {
                    "name": "custom",
                    "rule": f"{__name__}:Watched",
                    "settings": {"screen": screen, "attackers": 1, **changes},
                },
                "links": [{"between": "clusters", "delay": settings["delay"]}],
                "partition": "iid",
                "batch_size": size,
                "seed": seed,
            },
        )
        yield Job({"screen": screen, "batch_size": size, "arm": arm, "seed": seed}, config)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    with at_once(processes) as pool:
        jobs = list(jobs_of(settings))
        found = list(pool.map(_measured, jobs, [storage] * len(jobs)))
    pd.DataFrame(found).to_parquet(output / "distances.parquet", index=False)


def _measured(job: Job, storage: Path) -> dict[str, Any]:
    """Return a run's accuracy, its mean distances over all late reads, and the shares that were left out."""
    config = named(job.config, storage)
    file = storage / "distances" / f"{config.name}.parquet"
    if file.exists():
        return {**job.labels, **pd.read_parquet(file).iloc[0].to_dict()}
    folder = storage / "watched" / str(config.name)
    # Steps are seen of a run that is really made, not of one that is there.
    clear_run(folder)
    Watched.seen.clear()
    final = ensure_run(load_config(config, changes={"storage_path": str(folder.parent)}))
    judged = pd.read_parquet(folder / "screening.parquet")
    # A run that diverged has none.
    found = {"accuracy": final.get("agents_mean_test_accuracy", float("nan"))}
    for name, late in (("out_late", True), ("out_in_time", False)):
        part = judged[judged["late"] == late]
        found[name] = (part["reads"] * part["screened"]).sum() / part["reads"].sum()
    found |= distances(Watched.seen)
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([found]).to_parquet(file, index=False)
    return {**job.labels, **found}


def distances(seen: Mapping[tuple[int, int], Step]) -> dict[str, float]:
    """Return the mean distances of late neighbors, and which part of their way since they were read was foreseen.

    The part is ``sum <taken - read, truth - read> / sum |truth - read|^2``: 1 where nothing is missed on average.
    """
    rows, foreseen, gone = [], 0.0, 0.0
    for (step, _), (reader, late) in seen.items():
        for other, (old, guess) in late.items():
            truth = seen[step, other].own
            pairs = ((guess, truth), (old, truth), (guess, reader), (old, reader), (truth, reader))
            rows.append([float(torch.dist(*pair)) for pair in pairs])
            foreseen += float((guess - old) @ (truth - old))
            gone += float((truth - old) @ (truth - old))
    means = pd.DataFrame(rows, columns=list(NAMES)).mean()
    return {name: float(means[name]) for name in NAMES} | {"foreseen": foreseen / gone}
