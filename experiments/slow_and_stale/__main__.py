"""Error against runtime: ``python -m experiments.slow_and_stale [--processes 2]`` from the root.

Every method trains for the same virtual seconds under each law of compute times. Its step size is searched for on a
validation split first, by the same grid; then it is trained with several seeds. Runs that are complete are not run
again.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from experiments.slow_and_stale.page import page, picture
from experiments.slow_and_stale.study import HERE, LAWS, METHODS, SEEDS, STEP_SIZES, TUNING_SEED, Case, measure
from ray_pcasgd.report.drawing import as_svg


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=500.0, help="virtual seconds of each run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--storage", type=Path, default=Path("runs/slow_and_stale"))
    parser.add_argument("--output", type=Path, default=HERE, help="folder for what is measured")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:

        def run(cases: list[Case]) -> pd.DataFrame:
            jobs = [pool.submit(measure, case, arguments.seconds, arguments.storage) for case in cases]
            return pd.concat([job.result() for job in jobs], ignore_index=True)

        tuning = run(
            [
                Case(law, method, step_size, TUNING_SEED, True)
                for law, method, step_size in itertools.product(LAWS, METHODS, STEP_SIZES)
            ]
        )
        final = run(
            [
                Case(law, method, group.loc[group["test_loss"].idxmin(), "step_size"], seed, False)
                for (law, method), group in tuning.groupby(["law", "method"], sort=False)
                for seed in SEEDS
            ]
        )
    results = pd.concat([tuning, final], ignore_index=True)
    results.to_parquet(arguments.output / "results.parquet", index=False)
    (arguments.output / "error.svg").write_bytes(as_svg(picture(final, arguments.seconds)))
    (arguments.output / "RESULTS.md").write_text(page(tuning, final, arguments.seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
