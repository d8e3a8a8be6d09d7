"""Counts bytes at the network interfaces of two hosts: ``python -m experiments.wire_bytes``."""

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from experiments.cluster.cycle import ROOT
from experiments.running import run_study
from experiments.studies import machine

HERE = Path(__file__).parent
LABORATORY = ROOT.parent / "shared" / "lab" / "netlab.sh"


def measure(chosen: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Let the laboratory's operator count what is missing, and keep each cell as it is found."""
    kept = output / "results.json"
    cells = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    done = [(cell["local_steps"], cell["wire"]) for cell in cells]
    missing = [cell for cell in product(chosen["local_steps"], chosen["formats"]) if cell not in done]
    command = [str(LABORATORY), "2", sys.executable, "-m", "experiments.wire_bytes.operator"]
    arguments = [json.dumps({**chosen, "missing": missing}), str(storage.resolve())]
    with subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as operator:
        assert operator.stdout is not None
        for line in operator.stdout:
            cells.append(json.loads(line))
            kept.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    if operator.returncode:
        raise RuntimeError(f"the laboratory ended with status {operator.returncode}")


def write_page(chosen: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write the page from what was counted."""
    cells = json.loads((output / "results.json").read_text(encoding="utf-8"))
    short, long = chosen["rounds"]
    steps = long - short
    lines = [
        "# Bytes at the network interface",
        "",
        f"Written by `python -m experiments.wire_bytes --scale {scale}`; {machine()}. Two hosts in network namespaces,",
        f"an agent on each, PC-ASGD (weights and directions) on a network with layers of {chosen['hidden']}, planned,",
        f"messages two rounds late. Counted: what leaves both interfaces in a run of {long} rounds more than in one of",
        f"{short}: messages, and TCP's and Ray's own traffic. Reported: `bytes_sent` of those rounds.",
        "",
        "| local steps | wire | reported, MB a round | counted, MB a round | counted / reported "
        "| counted a step, of float32 at H = 1 |",
        "|---|---|---|---|---|---|",
    ]
    most = next(cell["counted"] / steps for cell in cells if cell["local_steps"] == 1 and cell["wire"] == "float32")
    for cell in cells:
        reported, counted = cell["reported"] / steps, cell["counted"] / steps
        lines.append(
            f"| {cell['local_steps']} | {cell['wire']} | {reported / 1e6:.3f} | {counted / 1e6:.3f} | "
            f"{counted / reported:.3f} | {counted / cell['local_steps'] / most:.4f} |"
        )
    (output / "RESULTS.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
