"""DC-ASGD and its rivals at equal epochs: ``python -m experiments.dc_asgd [--scale smoke|cpu|paper]`` from the root.

Every method's step size is searched for on a validation split, by the same grid; then it is trained on all training
samples with several seeds, and tested once. Runs that are complete are not run again.
"""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.dc_asgd.page import page
from experiments.dc_asgd.study import HERE, METHODS, TUNING_SEED, Case, measure
from experiments.running import arguments_of, at_once, settings_of


def main() -> None:
    """Run what is missing, and write the page."""
    arguments = arguments_of(HERE, __doc__)
    settings = settings_of(HERE, arguments.scale)
    if not arguments.page:
        run_all(settings, arguments.storage, arguments.processes).to_parquet(
            arguments.output / "results.parquet", index=False
        )
    results = pd.read_parquet(arguments.output / "results.parquet")
    text = page(results[results["validates"]], results[~results["validates"]], settings, arguments.scale)
    (arguments.output / "RESULTS.md").write_text(text, encoding="utf-8")


def run_all(settings: dict[str, Any], storage: Path, processes: int) -> pd.DataFrame:
    """Return what every run of the search came to, and every run with a step size that was chosen by it."""
    with at_once(processes) as pool:

        def run(cases: list[Case]) -> pd.DataFrame:
            jobs = [pool.submit(measure, case, settings, storage) for case in cases]
            return pd.DataFrame([job.result() for job in jobs])

        tuning = run(
            [
                Case(method, workers, step_size, TUNING_SEED, True)
                for method, workers, step_size in itertools.product(
                    METHODS, settings["workers"], settings["step_sizes"]
                )
                if method != "sequential SGD" or workers == settings["workers"][0]
            ]
        )
        final = run(
            [
                Case(method, workers, group.loc[group["loss"].idxmin(), "step_size"], seed, False)
                for (method, workers), group in tuning.groupby(["method", "workers"], sort=False)
                for seed in settings["seeds"]
            ]
        )
    return pd.concat([tuning, final], ignore_index=True)


if __name__ == "__main__":
    main()
