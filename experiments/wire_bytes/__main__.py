"""Counts bytes at the network interfaces of two hosts: ``python -m experiments.wire_bytes``."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from experiments.laboratory import count_cells, kept_cells
from experiments.running import run_study
from experiments.studies import machine

HERE = Path(__file__).parent


def measure(chosen: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Let the laboratory's operator count what is missing, and keep each cell as it is found."""
    cells = kept_cells(output)
    done = [(cell["local_steps"], cell["wire"]) for cell in cells]
    missing = [cell for cell in product(chosen["local_steps"], chosen["formats"]) if cell not in done]
    count_cells("experiments.wire_bytes.operator", {**chosen, "missing": missing}, cells, storage, output)


def write_page(chosen: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write the page from what was counted."""
    cells = kept_cells(output)
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
