"""Error against runtime: ``python -m experiments.slow_and_stale [--scale smoke|cpu|paper]`` from the root.

Every method trains for the same virtual seconds under each law of compute times. Its step size is searched for on a
validation split first, by the same grid; then it is trained with several seeds. Runs that are complete are not run
again.
"""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import arguments_of, at_once, settings_of
from experiments.slow_and_stale.page import page, picture
from experiments.slow_and_stale.study import HERE, LAWS, METHODS, TUNING_SEED, Case, measure
from ray_pcasgd.report.drawing import as_svg


def main() -> None:
    """Run what is missing, and write the page."""
    arguments = arguments_of(HERE, __doc__)
    settings = settings_of(HERE, arguments.scale)
    file = arguments.output / "results.parquet"
    if not arguments.page:
        run_all(settings, arguments.storage, arguments.processes).to_parquet(file, index=False)
    results = pd.read_parquet(file)
    final = results[~results["validates"]]
    (arguments.output / "error.svg").write_bytes(as_svg(picture(final, settings["seconds"])))
    text = page(results[results["validates"]], final, settings, arguments.scale)
    (arguments.output / "RESULTS.md").write_text(text, encoding="utf-8")


def run_all(settings: dict[str, Any], storage: Path, processes: int) -> pd.DataFrame:
    """Return what every run of the search came to, and every run with a step size that was chosen by it."""
    with at_once(processes) as pool:

        def run(cases: list[Case]) -> pd.DataFrame:
            jobs = [pool.submit(measure, case, settings, storage) for case in cases]
            return pd.concat([job.result() for job in jobs], ignore_index=True)

        tuning = run(
            [
                Case(law, method, step_size, TUNING_SEED, True)
                for law, method, step_size in itertools.product(LAWS, METHODS, settings["step_sizes"])
            ]
        )
        final = run(
            [
                Case(law, method, group.loc[group["test_loss"].idxmin(), "step_size"], seed, False)
                for (law, method), group in tuning.groupby(["law", "method"], sort=False)
                for seed in settings["seeds"]
            ]
        )
    return pd.concat([tuning, final], ignore_index=True)


if __name__ == "__main__":
    main()
