"""The runs of the study, figure by figure, and what is measured of them."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, evaluations, measured
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import load_config, merge
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.sweep.running import sweep

HERE = Path(__file__).parent
CURVE_COLUMNS = ("step", "seconds", "test_accuracy", "consensus_distance", "predicting_share")
LABELS = ("figure", "task", "partition", "method", "delay", "agents", "seed")


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write every figure's measurements."""
    jobs = [job for task, own in settings.items() for job in jobs_of(task, own)]
    runs = measured(jobs, storage, processes)
    drawn = runs[runs["figure"].isin(["curves", "choices"])]
    curves = evaluations(drawn, LABELS)[[*LABELS, *CURVE_COLUMNS]]
    grids = [
        grid_of(task, own, partition, storage) for task, own in settings.items() for partition in own["partitions"]
    ]
    epochs = [time_per_epoch(task, own, storage) for task, own in settings.items()]
    runs.drop(columns="path").to_parquet(output / "runs.parquet", index=False)
    curves.to_parquet(output / "curves.parquet", index=False)
    pd.concat(grids, ignore_index=True).to_parquet(output / "grid.parquet", index=False)
    pd.concat(epochs, ignore_index=True).to_parquet(output / "epochs.parquet", index=False)


def jobs_of(task: str, settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs of the figures 1 to 4 on one task."""
    methods, delay = settings["methods"], settings["delay"]
    agents = settings["config"]["num_agents"]

    def job(figure: str, partition: str, method: str, seed: int, changes: Mapping[str, Any], **labels: Any) -> Job:
        own = {"task": task, "partition": partition, "method": method, "delay": delay, "agents": agents, "seed": seed}
        own |= {"figure": figure, **labels}
        return Job(own, config_of(settings, partition, changes, own["delay"], own["agents"], seed))

    for partition in settings["partitions"]:
        for method, changes in methods.items():
            for seed in range(settings["curves"]["seeds"]):
                yield job("curves", partition, method, seed, changes)
        varied = settings["delays"]
        for value in varied["values"]:
            for method in varied["methods"]:
                for seed in range(varied["seeds"]):
                    yield job("delays", partition, method, seed, methods[method], delay=value)
        if choices := settings.get("choices"):
            for condition in choices["conditions"]:
                changes = {"algorithm": {"name": "pc-asgd-pv", "condition": condition}}
                for seed in range(choices["seeds"]):
                    yield job("choices", partition, condition, seed, changes)
    if varied := settings.get("agents"):
        for value in varied["values"]:
            for method in varied["methods"]:
                for seed in range(varied["seeds"]):
                    yield job("agents", next(iter(settings["partitions"])), method, seed, methods[method], agents=value)


def config_of(
    settings: Mapping[str, Any], partition: str, changes: Mapping[str, Any], delay: int, agents: int, seed: int
) -> Config:
    """Return the settings of one run."""
    changes = dict(changes)
    factor = changes.pop("step_size_factor", 1.0)
    given = {"links": [{"between": "clusters", "delay": delay}], "num_agents": agents, "seed": seed}
    config = load_config(settings["config"], changes={**given, **settings["partitions"][partition], **changes})
    curve = config.step_size.model_dump()
    largest = "value" if "value" in curve else "start"
    return load_config(config, changes={"step_size": merge(curve, {largest: curve[largest] * factor})})


def grid_of(task: str, settings: Mapping[str, Any], partition: str, storage: Path) -> pd.DataFrame:
    """Return the trials of the sweep over theta and step size, by ``ray_pcasgd.sweep.running``."""
    grid = settings["grid"]
    agents = settings["config"]["num_agents"]
    changes = {"algorithm": {"name": "pc-asgd", "theta": 0.3}}
    config = config_of(settings, partition, changes, settings["delay"], agents, seed=0)
    name = f"grid-{task}-{partition}"
    file = storage / name / "trials.parquet"
    began = time.perf_counter()
    if not file.exists():
        space = {"algorithm.theta": grid["theta"], "step_size": grid["step_size"]}
        source = {
            "name": name,
            "storage_path": str(storage),
            "config": config.model_dump(mode="json", exclude={"name"}) | {"evaluate_every": config.num_steps},
            "space": space,
            "seeds": grid["seeds"],
        }
        sweep(source)
        (storage / name / "seconds").write_text(str(time.perf_counter() - began), encoding="utf-8")
    trials = pd.read_parquet(file)
    taken = float((storage / name / "seconds").read_text(encoding="utf-8"))
    kept = trials.rename(columns={"algorithm.theta": "theta"})[["theta", "step_size", "seed", "test_accuracy", "error"]]
    return kept.assign(task=task, partition=partition, taken=taken)


def time_per_epoch(task: str, settings: Mapping[str, Any], storage: Path) -> pd.DataFrame:
    """Time a step of each method in one process, methods in turn, and return seconds and bytes a sample."""
    file = storage / f"epochs-{task}.parquet"
    if file.exists():
        return pd.read_parquet(file)
    agents, epoch = settings["config"]["num_agents"], settings["epoch"]
    partition = next(iter(settings["partitions"]))
    rows = []
    for repetition in range(epoch["repetitions"] + 1):
        for method, changes in settings["methods"].items():
            config = config_of(settings, partition, changes, settings["delay"], agents, seed=0)
            with tempfile.TemporaryDirectory() as folder:
                steps = {"num_steps": epoch["steps"], "evaluate_every": epoch["steps"], "storage_path": folder}
                trainer = Trainer(load_config(config, changes=steps))
                result = trainer.fit()
            assert result.error is None, (method, result.error)
            frame = result.metrics_dataframe
            # The last report of the run: evaluations come after the clock has stopped.
            last = frame[frame["agent"].notna()]["wall_seconds"].min()
            averaged = frame[frame["agent"].isna()].iloc[-1]
            samples = epoch["steps"] * agents * config.batch_size
            if repetition:  # the first one warms up
                rows.append(
                    {
                        "task": task,
                        "method": method,
                        "seconds": last / samples,
                        "bytes": averaged["bytes_sent"] / samples,
                        "repetition": repetition,
                    }
                )
    frame = pd.DataFrame(rows)
    frame.to_parquet(file, index=False)
    return frame


def median_ratio(values: pd.Series, reference: pd.Series) -> float:
    """Return the median of the ratios of measurements that were taken in turn."""
    return statistics.median(float(a) / float(b) for a, b in zip(values, reference, strict=True))
