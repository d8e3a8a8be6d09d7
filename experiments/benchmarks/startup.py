"""(g) From a command to the first step of the default run's 8 agents: forked agents against agents that import torch.

From the repository's root: ``python -m experiments.benchmarks.startup [--repeats 3] [--agents 8]``. Both ways run in
turn, each in a process of its own with a cluster of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MARKS = ("settings", "planned", "Ray is there", "first step", "end")
WAYS = ("never", "auto")
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--once", choices=WAYS, help="start one run this way, and say what comes when")
    arguments = parser.parse_args()
    if arguments.once:
        start(arguments.once, arguments.agents)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            found[way].append(times(way, arguments.agents))
            print(f"engine.preload = {way}: {found[way][-1]}, load {os.getloadavg()[0]:.1f}", flush=True)
    for quantity in (*MARKS, "CPU", "MB"):
        plain, forked = ([one[quantity] for one in found[way]] for way in WAYS)
        ratio = statistics.median(a / b for a, b in zip(forked, plain, strict=True))
        sides = f"{statistics.median(plain):.1f} plainly, {statistics.median(forked):.1f} forked"
        print(f"{quantity}: {sides}, {ratio:.2f} of it")


def times(way: str, agents: int) -> dict[str, float]:
    """Return the seconds from the start of a process to each mark; and at the first step CPU seconds and memory."""
    command = [sys.executable, "-m", "experiments.benchmarks.startup", "--once", way, "--agents", str(agents)]
    began = time.monotonic()
    seen = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            mark, _, figures = line.strip().partition(": ")
            seen[mark] = round(time.monotonic() - began, 2)
            if figures:
                seen["CPU"], seen["MB"] = map(float, figures.split())
    return seen


def start(way: str, agents: int) -> None:
    """Run the default for 20 steps, and print each mark when it is reached."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray_pcasgd.records import StepReport
    from ray_pcasgd.runs.plan.plan import cluster_of, make_plan
    from ray_pcasgd.runs.settings.loading import load_config

    changes = {"num_agents": agents, "num_steps": 20, "evaluate_every": 10**6}
    config = load_config(None, changes=changes | {"engine": {"name": "ray", "preload": way}})
    print("settings", flush=True)
    cluster_of(config.engine).prepare()
    plan = make_plan(config)
    print("planned", flush=True)
    plan.cluster.join()
    print("Ray is there", flush=True)
    is_first = True
    for report in plan.engine("runs/startup").run(plan.specs, plan.data):
        if isinstance(report, StepReport) and is_first:
            is_first = False
            print(f"first step: {spent()}", flush=True)
    print("end", flush=True)
    plan.cluster.leave()


def spent() -> str:
    """Return the CPU seconds of this process and all below it, and their memory in MB, shared pages counted once."""
    status = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            status[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
    own: set[int] = set()
    more = {os.getpid()}
    while more:
        own |= more
        more = {process for process, fields in status.items() if int(fields[1]) in own} - own
    seconds = sum(int(status[process][11]) + int(status[process][12]) for process in own) / _TICKS
    return f"{seconds:.1f} {sum(map(megabytes, own)):.0f}"


def megabytes(process: int) -> float:
    """Return a process's share of the memory that it uses (PSS)."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
