"""What one agent keeps of its own, by process memory: ``python -m experiments.benchmarks.memory``.

Each algorithm is measured in a process of its own, a copy of the first one. One agent of nine is built and takes its
planned rows. What it reads lies in shared memory, as what Ray's object store holds does, so it is not the agent's own.
Counted are the process's anonymous pages (``RssAnon``), less those that were there before the agent was built: between
two steps, and at the peak (``VmHWM``, less the shared pages).
"""

import argparse
import ctypes
import json
import mmap
import multiprocessing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import drift, flat
from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.participant import LearnerSpec, Participant, Received
from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.row_log import BLOCK_ROWS

HERE = Path(__file__).parent
RESULTS = HERE / "memory.json"
PAGE = HERE.parent.parent / "docs" / "memory.md"
DELAY = 10
NUM_ROWS = 16
MANY_ROWS = 90
"""For own drift, which keeps its path for 64 steps more than messages are late."""
MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``: from how many bytes on memory is the system's own, to which it goes back at once."""
SERVER = {"name": "server", "gathering": "asgd"}
SVRG = {"name": "svrg", "gathering": {"name": "epochs", "updates": 40}}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "`pc-asgd`, the default": ({"algorithm": {"name": "pc-asgd"}}, 0),
    "`pc-asgd`, `stability: 1`": ({"algorithm": {"name": "pc-asgd", "stability": 1}}, 0),
    "`pc-asgd`, `drift: exact`": ({"algorithm": {"name": "pc-asgd", "drift": "exact"}}, 0),
    "`pc-asgd`, `theta: 0.2`": ({"algorithm": {"name": "pc-asgd", "theta": 0.2}}, 0),
    "`pc-asgd`, `compensation: 0`": ({"algorithm": {"name": "pc-asgd", "theta": 0.2, "compensation": 0}}, 0),
    "`pc-asgd`, `compensation: adaptive`": ({"algorithm": {"name": "pc-asgd", "compensation": "adaptive"}}, 0),
    "`pc-asgd`, `prediction: own-drift`": ({"algorithm": {"name": "pc-asgd", "prediction": "own-drift"}}, 0),
    "`pc-asgd`, `prediction: displacement`": ({"algorithm": {"name": "pc-asgd", "prediction": "displacement"}}, 0),
    "`pc-asgd-pv`": ({"algorithm": {"name": "pc-asgd-pv"}}, 0),
    "`p-asgd`": ({"algorithm": {"name": "p-asgd"}}, 0),
    "`c-asgd`": ({"algorithm": {"name": "c-asgd"}}, 0),
    "`d-psgd`": ({"algorithm": {"name": "d-psgd"}, "links": []}, 0),
    "`d-asgd`": ({"algorithm": {"name": "d-asgd"}}, 0),
    "`dc-s3gd`": ({"algorithm": {"name": "dc-s3gd"}, "links": []}, 0),
    "`sgp`": ({"algorithm": {"name": "sgp"}, "links": []}, 0),
    "`ad-psgd`": ({"algorithm": {"name": "ad-psgd"}, "links": []}, 0),
    "`gossip-pull`": ({"algorithm": {"name": "gossip-pull"}}, 0),
    "`slowmo`": ({"algorithm": {"name": "slowmo"}, "links": []}, 0),
    "`gasloc`": ({"algorithm": {"name": "gasloc"}, "links": []}, 0),
    "`noloco`": ({"algorithm": {"name": "noloco"}, "links": []}, 0),
    "`ad-psgd`, `acceleration: acid`": ({"algorithm": {"name": "ad-psgd", "acceleration": "acid"}, "links": []}, 0),
    "`bridge`": ({"algorithm": "bridge"}, 0),
    "`bridge`, `screen: krum`": ({"algorithm": {"name": "bridge", "screen": "krum"}}, 0),
    "`d-asgd`, `optimizer: yellowfin`": ({"algorithm": "d-asgd", "optimizer": "yellowfin"}, 0),
    "`server` (ASGD): a worker": ({"algorithm": SERVER}, 0),
    "`server` (ASGD): the server": ({"algorithm": SERVER}, -1),
    "`server`, `dc-asgd-a`: the server": ({"algorithm": {**SERVER, "correction": "dc-asgd-a"}}, -1),
    "`server`, `kardam`: the server": ({"algorithm": {**SERVER, "correction": "kardam"}}, -1),
    "`server`, `yellowfin`: the server": ({"algorithm": SERVER, "optimizer": "yellowfin"}, -1),
    "`svrg`: a worker": ({"algorithm": SVRG}, 0),
    "`svrg`: the server": ({"algorithm": SVRG}, -1),
    "`diloco`: a worker": ({"algorithm": "diloco"}, 0),
    "`diloco`: the server": ({"algorithm": "diloco"}, -1),
    "`fedasync`: a worker": ({"algorithm": "fedasync"}, 0),
    "`fedasync`: the server": ({"algorithm": "fedasync"}, -1),
    "`fedglomo`: a worker": ({"algorithm": "fedglomo", "local_steps": 2}, 0),
    "`fedglomo`: the server": ({"algorithm": "fedglomo", "local_steps": 2}, -1),
    "`elastic-averaging`: a worker": ({"algorithm": "elastic-averaging"}, 0),
    "`elastic-averaging`: the server": ({"algorithm": "elastic-averaging"}, -1),
}
"""Settings, and which agent is measured: the first, or the last, which is the server."""


INTRODUCTION = f"""# Memory

What one agent keeps of its own, in bytes for each trained parameter of its model. A float32 vector is 4 of them.
`python -m experiments.benchmarks.memory` writes this page: each row is one agent of nine (8 neighbors, all in the
other of two clusters, {DELAY} steps late; with a server, 9 workers) on an MLP of 2.4 M parameters, in a process of
its own, and its anonymous pages are counted, less those that were there before it was built. *Between steps* is what
it keeps from one step to the next. *At the peak* is the most that it holds during a step: together with the gradient,
the next version and the rule's temporary vectors.
Nesterov's momentum takes 4 more, Lion 4, Adam and AdamW 8 (with `amsgrad` 12). Not measured: `choco-sgd` keeps what
`d-psgd` does, 4 more for its own public copy and, on actors, 4 for that of each neighbor, since differences travel.

Not counted are the process itself (about 0.3 GB with PyTorch and Ray), activations of larger batches, and what agents
of one machine share (between machines, Ray's object store): each published version once for all of them, 4 bytes a
parameter or 8 with its direction, as long as a reader may still ask for it. Messages that are 10 steps late so hold
about 12 versions of each agent there. On the `local` engine all agents are in one process, and share published
versions.

In a planned run on Ray, two agents of the default with 24.9 M parameters had at most 1.6 GB of memory of their own each
(USS), process included. Forked agents [keep what they free](clusters.md#how-agents-start), and so stay near their
peak between steps: of two such agents (an MLP on digits, 10 steps late) 1.65 GB of anonymous memory at the peak,
against 1.55 GB with `engine.preload: never`.
"""

BEFORE = """## What became of the drift

The compensation of PC-ASGD multiplies the agent's own drift over the steps that a message is late. `drift: exact` has
it from the agent's own last versions, of which it keeps as many as the oldest message is steps old: here 13. `drift:
velocity` has it from one vector, the agent's mean velocity v over its last ten steps or so: on a straight path the
mean displacement over a steps is (a - 1)/2 v. *Before*, an agent kept 66 sums in float64 whatever the delays were
(own drift: 129 versions).
"""

ACCURACY = """What it costs in accuracy, with the default method on digits: the averaged model after 300 steps of 8
agents, on the same schedules, shards and mini-batches (`python -m experiments.benchmarks.drift`).
"""

LONG = f"""## A long run

What a run keeps of its rows and of what its agents report does not grow with agents times steps: planned or live, on
either engine. The last {BLOCK_ROWS:,} rows at most are records; those before them lie, packed and compressed, in a
temporary file without a name (in `TMPDIR`; some 25 bytes a row with two neighbors), which is gone with the
process. Where that file cannot be written, they stay in memory, packed. From there they come a block at a time: into
the run's states, into `schedule.parquet`, into the schedule's hash, and into a replay; those of a live run also into
the order in which they replay. What grows: metrics, a table of 8 bytes a figure, some 160 bytes for each agent and
evaluation; events; and in the process of a live peer 8 bytes for each of its own steps. Unpacked are all rows of a
recording of `ad-psgd` while it is planned, and, after a live run that lost workers, those of its servers.

`python -m experiments.benchmarks.flat` measured it: {flat.AGENTS} agents in a ring on the local engine, an MLP of 16
hidden units, random compute times; the process's own memory (`RssAnon`), some 400 MB of which are PyTorch and the data.
*Before*, all rows were records, at 0.65 kB each, and once more while the schedule was written.
"""

REFUSAL = """## What cannot fit is refused

Before anything starts, a run compares what its agents keep in any case (replica, version, direction, velocity or sums
of the drift: less than the table says) with all memory and swap of the machine, or of its container. Where even that
is too much, one line says how many agents fit. So does one where the `local` engine's GPU has less. Actors on GPUs, and
clusters that the run did not start itself, are not judged. On an H100,
[the same was measured](../experiments/benchmarks/GPU.md) by PyTorch's allocator.
"""


def shared(values: np.ndarray) -> torch.Tensor:
    """Return a vector that lies in shared memory."""
    memory = mmap.mmap(-1, values.nbytes)
    array = np.frombuffer(memory, dtype=np.float32)
    array[:] = values
    return torch.from_numpy(array)


def kilobytes(field: str) -> int:
    """Return a figure of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def own_bytes() -> int:
    """Return the anonymous bytes of this process."""
    return 1024 * kilobytes("RssAnon")


def peak_bytes() -> int:
    """Return the most that there were since the last reset."""
    return 1024 * (kilobytes("VmHWM") - kilobytes("RssShmem") - kilobytes("RssFile"))


def received(row: Row, weights: torch.Tensor, agent: Participant) -> Iterator[Received]:
    """Yield what a row reads: all of it the same vector."""
    for read in row.reads if row.kind != "cancelled" else ():
        note = Delivery(read.version, read.version, 1.0)
        one = weights[: agent.weights.numel()]
        yield Received(read, weights[: agent.incoming().weights], agent.buffers, one, 1.0, note)


def measured(case: str, hidden: int) -> dict[str, float]:
    """Return the bytes a parameter of one agent's own memory."""
    plan = plan_of(case, hidden, "local")
    spec = plan.specs[CASES[case][1]]
    # A part of each thing that is imported at first use.
    small = spec.recipe.build(plan.data)
    size = small.weights.numel()
    # Twice as long as the weights, for servers of which a message has two vectors.
    weights = shared(np.tile(small.weights.numpy() * 0.99, 2))
    small.module(torch.zeros(2, *plan.data.train.take([0])[0].shape[1:])).sum().backward()
    del small
    before = own_bytes()
    agent = spec.build(plan.data)
    between, peak = [], 0
    for row in rows_of(case, plan, spec):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if agent.has_to_prepare:
            agent.prepare()
        agent.take(row, list(received(row, weights, agent)))
        agent.message(row)
        agent.keep()
        between.append(own_bytes() - before)
        peak = max(peak, peak_bytes() - before)
    return {"parameters": size, "between": between[-1] / size, "peak": peak / size}


def plan_of(case: str, hidden: int, engine: Any) -> Plan:
    """Return the plan of nine agents."""
    changes, _ = CASES[case]
    links = [{"between": "clusters", "delay": DELAY}]
    model = {"hidden": [hidden, hidden]}
    settings = {"num_agents": 9, "num_steps": 100, "links": links, "engine": engine, "task": {"model": model}}
    return make_plan(load_config({**settings, "clusters": [[0], list(range(1, 9))], "batch_size": 16}, changes=changes))


def rows_of(case: str, plan: Plan, spec: LearnerSpec) -> Iterator[Row]:
    """Yield the rows of one agent after which it keeps as much as later."""
    rows = (row for row in plan.schedule if row is not None and row.agent == spec.agent)
    return islice(rows, MANY_ROWS if "own-drift" in case else NUM_ROWS)


def page(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return docs/memory.md; the results by ``before`` and ``now``, then by case."""
    lines = [
        INTRODUCTION,
        "| agent | between steps | at the peak | one of 25 M parameters at the peak |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        if case in results["now"]:
            lines.append(_line(case, results["now"][case]))
    lines += [
        "",
        BEFORE,
        "| agent | between steps | at the peak | one of 25 M parameters at the peak |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        for when in ("before", "now") if case in results["before"] else ():
            lines.append(_line(f"{case}, {when}", results[when][case]))
    pairs = drift.lines(json.loads(drift.RESULTS.read_text(encoding="utf-8")))
    long = flat.lines(json.loads(flat.RESULTS.read_text(encoding="utf-8")))
    return "\n".join([*lines, "", ACCURACY, *pairs, "", LONG, *long, "", REFUSAL])


def _line(name: str, found: dict[str, float]) -> str:
    gigabytes = found["peak"] * 25e6 / 1e9
    return f"| {name} | {found['between']:.0f} | {found['peak']:.0f} | {gigabytes:.1f} GB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--hidden", type=int, default=1500, help="units of both hidden layers")
    parser.add_argument("--when", choices=["before", "now"], default="now", help="what the results are kept as")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # As large models have it, whose vectors are all above glibc's largest threshold.
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for case in arguments.only:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            results[arguments.when][case] = pool.apply(measured, (case, arguments.hidden))
        print(case, results[arguments.when][case], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
