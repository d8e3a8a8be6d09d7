"""All benchmarks: ``python -m experiments.benchmarks [--only NAME ...] [--repeats 5]``, from the repository's root."""

import argparse
import datetime
import json
import os
import platform
import statistics
from pathlib import Path

import ray
import torch

from experiments.benchmarks import against, engine, live, local, planning, processes, rule, small, studies, transport
from experiments.benchmarks.measuring import Figure
from ray_pcasgd.engines.ray.settings import RaySettings

HERE = Path(__file__).parent
BENCHMARKS = {
    "rule": rule,
    "local": local,
    "transport": transport,
    "engine": engine,
    "studies": studies,
    "small": small,
    "live": live,
    "against": against,
    "processes": processes,
    "planning": planning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    store = int(RaySettings().object_store_gigabytes * 1e9)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=8, object_store_memory=store)
    results = json.loads((HERE / "results.json").read_text()) if (HERE / "results.json").exists() else {}
    for name in arguments.only:
        figures = [figure._asdict() for figure in BENCHMARKS[name].benchmark(arguments.repeats)]
        results[name] = {"figures": figures, "date": datetime.date.today().isoformat(), "repeats": arguments.repeats}
        if name == "live":
            gaps = [live.longest_gap_after_a_kill() for _ in range(arguments.repeats)]
            results[name]["longest_gap_seconds"] = {"median": statistics.median(gaps), "max": max(gaps)}
        if name == "against":
            results[name]["longest_gap_seconds"] = against.gaps_after_a_kill(arguments.repeats)
        if name == "planning":
            times = [planning.seconds_of_five_regions() for _ in range(arguments.repeats)]
            results[name]["five_regions_seconds"] = {"median": statistics.median(times), "max": max(times)}
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (HERE / "RESULTS.md").write_text(page(results), encoding="utf-8")
        print(f"{name}: done", flush=True)
    ray.shutdown()
    print(page(results))


def page(results: dict[str, dict]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m experiments.benchmarks`. What is compared runs in turn, A B A B; the ratio is the",
        f"median of the pairs, with the smallest and the largest. {os.cpu_count()} shared cores, no GPU, Python "
        f"{platform.python_version()}, torch {torch.__version__}, Ray {ray.__version__}.",
        "",
        "| what | against | ratio | from | to | measured | reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in BENCHMARKS:
        for fields in results.get(name, {}).get("figures", ()):
            figure = Figure(**fields)
            sides = f"{figure.measured:.3g} {figure.unit} | {figure.reference:.3g} {figure.unit}"
            ratios = f"{figure.ratio:.2f} | {figure.low:.2f} | {figure.high:.2f}"
            lines.append(f"| {figure.name} | {figure.against} | {ratios} | {sides} |")
    gap = results.get("live", {}).get("longest_gap_seconds")
    if gap:
        lines += [
            "",
            "Four live agents of 20 ms a step, one killed in the middle: the longest time between two steps of any",
            f"other was {gap['median']:.3f} s in the median of the runs, {gap['max']:.3f} s at most.",
        ]
    if gaps := results.get("against", {}).get("longest_gap_seconds"):
        lines += [
            "",
            "Four live agents on a ring, three of 20 ms a step, one of 220 ms. A fast one is killed in the middle.",
            "The longest time between two steps of either of the other fast ones, while the killed one is built anew:",
            "",
            "| algorithm | median of the runs | largest |",
            "|---|---|---|",
            *(f"| {name} | {gap['median']:.3f} s | {gap['max']:.3f} s |" for name, gap in gaps.items()),
        ]
    regions = results.get("planning", {}).get("five_regions_seconds")
    if regions:
        lines += [
            "",
            "Planning 1,000 agents of 30 steps, 8 neighbors each, on 250 hosts in five regions with bandwidths took",
            f"{regions['median']:.1f} s in the median, {regions['max']:.1f} s at most.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
