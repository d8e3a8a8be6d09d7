"""A long run's memory: ``python -m experiments.benchmarks.flat``, which notes it in ``flat.json``.

One run on the local engine, in a process of its own, whose pages are counted as it goes: what is its own (``RssAnon``),
and its peak, the ending included. ``--before`` notes them as those of the package before rows were packed: for a
checkout of that.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ray_pcasgd import Callback, Trainer
from ray_pcasgd.records import StepReport

HERE = Path(__file__).parent
RESULTS = HERE / "flat.json"
AGENTS = 64
LOOKS = 16
"""How often it is looked at during a run."""
SETTINGS: dict[str, Any] = {
    "num_agents": AGENTS,
    "engine": "local",
    "topology": "ring",
    "task": {"model": {"name": "mlp", "hidden": [16]}},
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
}


def megabytes(kind: str) -> float:
    """Return a figure of this process's status, in MB."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


class _Watch(Callback):
    def __init__(self, every: int) -> None:
        self.every, self.steps, self.looks = every, 0, list[tuple[int, float]]()

    def on_step(self, report: StepReport) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.looks.append((self.steps, round(megabytes("RssAnon"), 1)))


class _Peak(threading.Thread):
    """Notes the most that a process has of its own, from the first step on."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__(daemon=True)
        self.watch, self.ended, self.peak = watch, threading.Event(), 0.0

    def run(self) -> None:
        while not self.ended.wait(0.02):
            if self.watch.steps:
                self.peak = max(self.peak, megabytes("RssAnon"))


def _run(num_steps: int, queue: Any) -> None:
    watch, began = _Watch(num_steps * AGENTS // LOOKS), time.perf_counter()
    peak = _Peak(watch)
    peak.start()
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(**SETTINGS, num_steps=num_steps, storage_path=folder, callbacks=[watch]).fit()
        assert result.error is None
        bytes_of_schedule = (Path(result.path) / "schedule.parquet").stat().st_size
    peak.ended.set()
    queue.put(
        {
            "agent_steps": num_steps * AGENTS,
            "looks": watch.looks,
            "peak": round(peak.peak, 1),
            "bytes_of_schedule": bytes_of_schedule,
            "seconds": round(time.perf_counter() - began, 1),
        }
    )


def measured(num_steps: int) -> dict[str, Any]:
    """Return what a run's process has, as it goes and at its peak."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_run, args=(num_steps, queue))
    process.start()
    found: dict[str, Any] = queue.get()
    process.join()
    return found


def lines(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the table of docs/memory.md; the results by ``before`` and ``now``, then by their number of steps."""
    table = [
        "| agent-steps | after a sixteenth of them | after half | at the last step | at the peak, ending included |",
        "|---|---|---|---|---|",
    ]
    for when in ("before", "now"):
        for found in results.get(when, {}).values():
            looks = [found["looks"][place][1] for place in (0, LOOKS // 2 - 1, LOOKS - 1)]
            figures = " | ".join(f"{value:.0f} MB" for value in (*looks, found["peak"]))
            table.append(f"| {found['agent_steps']:,}, {when} | {figures} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=[4000, 16000])
    parser.add_argument("--before", action="store_true")
    arguments = parser.parse_args()
    for num_steps in arguments.steps:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault("before" if arguments.before else "now", {})[str(num_steps)] = measured(num_steps)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
