"""DC-ASGD and its rivals at equal epochs: ``python -m experiments.dc_asgd [--processes 2]`` from the root.

Every method's step size is searched for on a validation split, by the same grid; then it is trained on all training
samples with several seeds, and tested once. Runs that are complete are not run again.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from experiments.dc_asgd.page import page
from experiments.dc_asgd.study import HERE, METHODS, SEEDS, STEP_SIZES, TUNING_SEED, WORKERS, Case, measure


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--storage", type=Path, default=Path("runs/dc_asgd"))
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:

        def run(cases: list[Case]) -> pd.DataFrame:
            jobs = [pool.submit(measure, case, arguments.epochs, arguments.storage) for case in cases]
            return pd.DataFrame([job.result() for job in jobs])

        tuning = run(
            [
                Case(method, workers, step_size, TUNING_SEED, True)
                for method, workers, step_size in itertools.product(METHODS, WORKERS, STEP_SIZES)
                if method != "sequential SGD" or workers == WORKERS[0]
            ]
        )
        final = run(
            [
                Case(method, workers, group.loc[group["loss"].idxmin(), "step_size"], seed, False)
                for (method, workers), group in tuning.groupby(["method", "workers"], sort=False)
                for seed in SEEDS
            ]
        )
    pd.concat([tuning, final]).to_parquet(HERE / "results.parquet", index=False)
    (HERE / "RESULTS.md").write_text(page(tuning, final, arguments.epochs), encoding="utf-8")


if __name__ == "__main__":
    main()
