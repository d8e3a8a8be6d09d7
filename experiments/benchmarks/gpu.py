"""What agents cost on one GPU: ``python -m experiments.benchmarks.gpu [--only local ray rule memory] [--repeats 5]``.

The figures go into ``gpu.json`` and the page ``GPU.md``, in this folder or in ``--output``. Parts that are not measured
now keep their earlier figures.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import init as start_ray

from experiments.benchmarks import memory, rule
from experiments.benchmarks.engine import SKIPPED, bare_step, bare_times, images
from experiments.benchmarks.measuring import Figure, paired, run_times, steps_per_second
from experiments.gpt import study as gpt
from experiments.resnet18 import study as resnet18
from experiments.running import settings_of
from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.participant import Participant, Received
from ray_pcasgd.records import Row
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
LOCAL: dict[str, Any] = {"name": "local", "device": "cuda"}
STEPS = 60
HIDDEN = 2000
PEERS = ("pc-asgd", "d-psgd")
ACTORS = (("d-psgd", "planned"), ("pc-asgd", "planned"), ("pc-asgd", "live"))
ACTORS_STEPS = 600
ACTORS_SKIPPED = 300
"""Steps in which actors lock their memory's pages, as each slot is first used, and make models anew for the first
measurements of curvature."""


def tasks() -> dict[str, dict[str, Any]]:
    """Return the settings of two agents of both studies, at the scale that is for GPUs."""
    vision = settings_of(resnet18.HERE, "paper")["config"]
    vision["task"] |= {"data": images()}
    common = {"num_agents": 2, "num_steps": STEPS}
    return {
        "GPT of 10.7 M parameters, AdamW, batch 64, bf16": settings_of(gpt.HERE, "paper")["config"] | common,
        "ResNet-18, SGD, batch 128, bf16": vision | common | {"precision": "bf16"},
    }


def local(repeats: int) -> Iterator[Figure]:
    """Yield steps of the local engine against a bare loop that takes each agent's steps in turn."""
    for task, settings in tasks().items():
        for name in PEERS:
            changes = settings | {"engine": LOCAL, "algorithm": name}
            yield _ratio(f"{name}, local engine, {task}", changes, partial(_bare_in_turn, changes), repeats)


def ray(repeats: int) -> Iterator[Figure]:
    """Yield steps of two actors on one GPU against bare loops in two processes on it, once all late reads are there."""
    for task, settings in tasks().items():
        settings = settings | {"num_steps": ACTORS_STEPS}
        rounds = [_round_of_actors(settings) for _ in range(repeats)]
        for name, mode in ACTORS:
            ratios = [measured[name, mode] / bare for measured, bare in rounds]
            ours, theirs = (
                statistics.median(side) for side in ([m[name, mode] for m, _ in rounds], [b for _, b in rounds])
            )
            yield Figure(
                f"{name}, ray engine, {mode}, {task}",
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                ours,
                theirs,
                "agent-steps/s",
                "bare PyTorch loops",
            )


def _round_of_actors(settings: dict[str, Any]) -> tuple[dict[tuple[str, str], float], float]:
    """Return the steps a second of actors, by algorithm and mode, and those of bare loops."""
    bare = steps_per_second(bare_times(settings | {"engine": LOCAL}), ACTORS_SKIPPED)
    measured = {}
    for name, mode in ACTORS:
        engine = {"name": "ray", "mode": mode, "gpus_per_agent": 0.5}
        measured[name, mode] = steps_per_second(
            run_times(**settings | {"algorithm": name, "engine": engine}), ACTORS_SKIPPED
        )
        print(f"{name}, {mode}: {measured[name, mode]:.1f}, bare {bare:.1f}", flush=True)
    return measured, bare


def _ratio(name: str, changes: dict[str, Any], bare: Callable[[], list[list[float]]], repeats: int) -> Figure:
    return paired(
        name,
        lambda: steps_per_second(run_times(**changes), SKIPPED),
        lambda: steps_per_second(bare(), SKIPPED),
        "agent-steps/s",
        "bare PyTorch loops",
        repeats,
    )


def _bare_in_turn(changes: dict[str, Any]) -> list[list[float]]:
    config = load_config(None, changes=changes)
    data = config.task.load()
    steps = [bare_step(config, data) for _ in range(config.num_agents)]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(config.num_steps):
        for step, own in zip(steps, times, strict=True):
            step()
            own.append(time.perf_counter())
    return times


def rules(repeats: int) -> Iterator[Figure]:
    """Yield the rule of PC-ASGD against copying the bytes that it has to touch."""
    ours, touched = rule.prepared(10_000_000, "cuda")
    target = torch.empty_like(touched[0])

    def copies() -> None:
        for vector in touched:
            target.copy_(vector)

    yield paired(
        "pc-asgd rule, D = 1e+07, 7 neighbors",
        lambda: _seconds(ours),
        # A copy writes as much as it reads: n + 1 vectors are touched where 2 n were.
        lambda: _seconds(copies) * (len(touched) + 1) / (2 * len(touched)),
        "s",
        "reading and writing its bytes",
        repeats,
    )


def _seconds(function: Callable[[], Any]) -> float:
    function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10_000


def memories() -> dict[str, dict[str, float]]:
    """Return each algorithm's bytes a parameter on the GPU: between two steps, and at the peak."""
    return {case: _memory(case) for case in memory.CASES}


def _memory(case: str) -> dict[str, float]:
    plan = memory.plan_of(case, HIDDEN, LOCAL)
    spec = plan.specs[memory.CASES[case][1]]
    small = spec.recipe.build(plan.data)
    size, read = small.weights.numel(), small.weights.cpu() * 0.99
    del small
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    agent = spec.build(plan.data)
    between = peak = 0
    for row in memory.rows_of(case, plan, spec):
        torch.cuda.reset_peak_memory_stats()
        if agent.has_to_prepare:
            agent.prepare()
        agent.take(row, list(_received(row, read, agent)))
        agent.message(row)
        agent.keep()
        between = torch.cuda.memory_allocated() - before
        peak = max(peak, torch.cuda.max_memory_allocated() - before)
    return {"parameters": size, "between": between / size, "peak": peak / size}


def _received(row: Row, read: torch.Tensor, agent: Participant) -> Iterator[Received]:
    """Yield what a row reads: copies on the GPU, as an actor makes them of what came."""
    for one in row.reads if row.kind != "cancelled" else ():
        note = Delivery(one.version, one.version, 1.0)
        weights, direction = (read[: agent.weights.numel()].to(agent.device) for _ in range(2))
        yield Received(one, weights, agent.buffers, direction, 1.0, note)


def page(results: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    lines = [
        "# On a GPU",
        "",
        "Written by `python -m experiments.benchmarks.gpu`. What is compared runs in turn, A B A B; the ratio is the",
        f"median of {results['repeats']} pairs, with the smallest and the largest. {results['machine']}.",
        "",
        "| what | against | ratio | from | to | measured | reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in ("local", "ray", "rule"):
        for figure in (Figure(**fields) for fields in results.get(part, ())):
            sides = f"{figure.measured:.3g} {figure.unit} | {figure.reference:.3g} {figure.unit}"
            ratios = f"{figure.ratio:.2f} | {figure.low:.2f} | {figure.high:.2f}"
            lines.append(f"| {figure.name} | {figure.against} | {ratios} | {sides} |")
    if "memory" in results:
        lines += ["", MEMORY, "", "| agent | between steps | at the peak |", "|---|---|---|"]
        lines += [f"| {case} | {own['between']:.0f} | {own['peak']:.0f} |" for case, own in results["memory"].items()]
    return "\n".join(lines) + "\n"


MEMORY = """Memory of one agent of nine on the GPU, by PyTorch's allocator, in bytes a parameter, as in
[memory](../../docs/memory.md); an MLP of 4.2 M parameters. At the peak, copies of what was read are there too: weights
and direction of each neighbor, 8 bytes each, also where a rule does not ask for directions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("local", "ray", "rule", "memory")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of gpu.json and GPU.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "gpu.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    name = torch.cuda.get_device_name()
    results |= {"machine": f"{name}, torch {torch.__version__}", "repeats": arguments.repeats}
    figures = {"local": local, "ray": ray, "rule": rules}
    if "ray" in arguments.only:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        start_ray(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for part in arguments.only:
        if part == "memory":
            results[part] = memories()
        else:
            results[part] = []
            for figure in figures[part](arguments.repeats):
                results[part].append(figure._asdict())
                print(f"{figure.name}: {figure.ratio:.3f}", flush=True)
                # A machine that is lent may be gone before the next one.
                kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (arguments.output / "GPU.md").write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
