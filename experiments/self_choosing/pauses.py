"""One agent of a live run stopped for a while: ``python -m experiments.self_choosing.pauses [--seeds 2]``.

The averaged model's accuracy at each evaluation against that of the undisturbed run of the same seed. With
``--only``, what was measured before of other algorithms stays on the page.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import ray

from experiments.faults.injecting import Fault
from experiments.live_faults.injecting import Nothing, stop
from experiments.self_choosing.study import HERE
from ray_pcasgd.runs.trainer import Trainer

RUNS = HERE / "pauses.parquet"
ALGORITHMS: dict[str, Any] = {
    "pc-asgd": {"name": "pc-asgd"},
    "theta 0.3": {"name": "pc-asgd", "theta": 0.3},
    "published, theta 0.3, unbounded": {"name": "pc-asgd", "theta": 0.3, "bounded": False},
}
AGENTS, STEP_SECONDS, EVALUATIONS = 4, 0.02, 10
PAUSES = (10, 20, 60)
LENGTHS = (100, 600)


def accuracies(algorithm: str, num_steps: int, pause: int, seed: int, folder: Path) -> dict[int, float]:
    """Return the averaged model's accuracy in percent by step; agent 1 is stopped at a third of the run."""
    fault = Fault(num_steps // 3, stop(1, pause)) if pause else Nothing()
    result = Trainer(
        {
            "seed": seed,
            "num_agents": AGENTS,
            "num_steps": num_steps,
            "evaluate_every": num_steps // EVALUATIONS,
            "algorithm": ALGORITHMS[algorithm],
            "links": [],
            "compute": {"stragglers": dict.fromkeys(range(AGENTS), STEP_SECONDS)},
            "storage_path": str(folder),
            "engine": {"name": "ray", "mode": "live", "cpus_per_agent": 0.5},
        },
        callbacks=[fault],
    ).fit()
    assert result.error is None, result.error
    frame = result.metrics_dataframe
    averaged = frame[frame["agent"].isna()]
    return dict(zip(averaged["step"].astype(int), 100 * averaged["test_accuracy"], strict=True))


def measure(seeds: int, algorithms: Sequence[str]) -> pd.DataFrame:
    """Return what every run came to at its end, and at its worst, against the undisturbed one."""
    rows = []
    for seed, algorithm, num_steps in itertools.product(range(seeds), algorithms, LENGTHS):
        with tempfile.TemporaryDirectory() as folder:
            still = accuracies(algorithm, num_steps, 0, seed, Path(folder))
            for pause in PAUSES:
                found = accuracies(algorithm, num_steps, pause, seed, Path(folder))
                # The first evaluations are on the steep part of the curve, before anything happens.
                gaps = {step: found[step] - still[step] for step in found if step in still and step > num_steps // 3}
                row = {"algorithm": algorithm, "steps": num_steps, "pause": pause, "seed": seed}
                row |= {"undisturbed": still[num_steps], "end": found[num_steps], "worst": min(gaps.values())}
                rows.append(row)
                print(row, flush=True)
    return pd.DataFrame(rows)


def merged(before: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return what was found in place of what was known of the same algorithms, in the order of ``ALGORITHMS``."""
    both = pd.concat([before[~before["algorithm"].isin(found["algorithm"])], found], ignore_index=True)
    place = {name: number for number, name in enumerate(ALGORITHMS)}
    return both.sort_values("algorithm", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def page(found: pd.DataFrame) -> str:
    """Return the page as Markdown."""
    lines = [
        "# One agent of a live run stopped for a while",
        "",
        f"Digits, {AGENTS} live agents of {1000 * STEP_SECONDS:.0f} ms a step, no injected delay; agent 1 is stopped",
        "(SIGSTOP) at a third of the run, and goes on after the pause. The averaged model's test accuracy at the end,",
        "and the worst difference to the undisturbed run of the same seed at any evaluation afterwards (every tenth of",
        "the run). The worst of the seeds. `theta 0.3` is kept within the stability bound, as all live",
        "predictions are unless told otherwise; *unbounded* is `bounded: false`. Written by",
        "`python -m experiments.self_choosing.pauses`.",
        "",
        "| algorithm | steps | pause | undisturbed | end | difference at the end | worst on the way |",
        "|---|---|---|---|---|---|---|",
    ]
    for (algorithm, steps, pause), part in found.groupby(["algorithm", "steps", "pause"], sort=False):
        end = (part["end"] - part["undisturbed"]).min()
        cells = [f"{part['undisturbed'].mean():.1f} %", f"{part['end'].mean():.1f} %", f"{end:+.1f}"]
        lines.append(f"| {algorithm} | {steps} | {pause} s | {' | '.join(cells)} | {part['worst'].min():+.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=list(ALGORITHMS), nargs="*", default=list(ALGORITHMS))
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    found = measure(arguments.seeds, arguments.only)
    ray.shutdown()
    if RUNS.exists():
        found = merged(pd.read_parquet(RUNS), found)
    found.to_parquet(RUNS, index=False)
    (HERE / "PAUSES.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
