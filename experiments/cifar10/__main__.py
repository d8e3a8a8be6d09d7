"""CIFAR-10 under delay: ``python -m experiments.cifar10 [--seeds 1] [--steps 600]`` from the repository's root."""

import argparse
from pathlib import Path

import pandas as pd

from experiments.studies import compare_settings, machine, table
from ray_pcasgd.compare import METHODS
from ray_pcasgd.loading import load_config

HERE = Path(__file__).parent
STEP_SIZES = (0.02,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--storage", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="settings, as with --set")
    arguments = parser.parse_args()
    config = load_config(HERE / "config.yaml", arguments.assignments)
    changes = {f"step size {step_size:g}": {"step_size": step_size} for step_size in STEP_SIZES}
    runs = compare_settings(config, METHODS, changes, arguments.seeds, arguments.storage)
    runs.drop(columns="path").to_parquet(HERE / "results.parquet", index=False)
    (HERE / "RESULTS.md").write_text(page(runs, config.num_steps, arguments.seeds), encoding="utf-8")


def page(runs: pd.DataFrame, num_steps: int, seeds: int) -> str:
    return f"""# CIFAR-10, Dirichlet(0.3), delay 10

4 agents in two clusters of 2, links between the clusters 10 steps late, small CNN (67 thousand parameters), batch 32,
{num_steps} steps an agent, crops and flips, {seeds} seed(s), planned schedule, local engine. The images are re-encoded
(JPEG): compare the lines with each other, not with published figures. Written by `python -m experiments.cifar10`
({machine()}).

{table(runs)}
"""


if __name__ == "__main__":
    main()
