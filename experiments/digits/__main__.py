"""The embedded task at two delays: ``python -m experiments.digits [--seeds 5]`` from the repository's root."""

import argparse
from pathlib import Path

import pandas as pd

from experiments.studies import compare_settings, machine, table
from ray_pcasgd.compare import UNDELAYED, parse_method
from ray_pcasgd.loading import load_config

HERE = Path(__file__).parent
DELAYS = (10, 20)
METHODS = (
    UNDELAYED,
    *map(parse_method, ("d-asgd", "c-asgd", "p-asgd", "pc-asgd,theta=0.3", "pc-asgd,theta=0.5", "pc-asgd-pv")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--storage", type=Path, default=Path("runs/digits"))
    parser.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="settings, as with --set")
    arguments = parser.parse_args()
    config = load_config(None, ["engine=local", *arguments.assignments])
    changes = {f"delay {delay}": {"links": [{"between": "clusters", "delay": delay}]} for delay in DELAYS}
    runs = compare_settings(config, METHODS, changes, arguments.seeds, arguments.storage)
    runs.drop(columns="path").to_parquet(HERE / "results.parquet", index=False)
    (HERE / "RESULTS.md").write_text(page(runs, config.num_steps, arguments.seeds), encoding="utf-8")


def page(runs: pd.DataFrame, num_steps: int, seeds: int) -> str:
    return f"""# Digits, 8 agents in two clusters

The embedded task: scikit-learn's digits, MLP 64-64-64-10, 8 agents on a complete graph in two clusters of 4, IID
shards, batch 16, step size 0.1, lambda 0.04, {num_steps} steps an agent, {seeds} seeds (mean ± standard deviation),
planned schedule, local engine. Links between the clusters are 10 or 20 steps late; the upper line has no delay.
Written by `python -m experiments.digits` ({machine()}).

{table(runs)}
"""


if __name__ == "__main__":
    main()
