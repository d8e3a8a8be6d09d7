"""Counts how often each version travels from one host to another: ``python -m experiments.host_copies``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.laboratory import count_cells, kept_cells
from experiments.running import run_study
from experiments.studies import machine
from ray_pcasgd.engines.ray.settings import RaySettings

HERE = Path(__file__).parent
_CELL = ("mode", "agents", "size", "inline_bytes")


def cells_of(chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all cells; what is larger than any ``inline_bytes`` is counted once."""
    for mode in chosen["modes"]:
        for agents in chosen["agents"]:
            for size, hidden in chosen["sizes"].items():
                limits = chosen["inline_bytes"] if size == next(iter(chosen["sizes"])) else chosen["inline_bytes"][:1]
                for inline_bytes in limits:
                    yield {"mode": mode, "agents": agents, "size": size, "inline_bytes": inline_bytes, "hidden": hidden}


def measure(chosen: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Let the laboratory's operator count what is missing, and keep each cell as it is found."""
    cells = kept_cells(output)
    done = [[cell[name] for name in _CELL] for cell in cells]
    missing = [cell for cell in cells_of(chosen) if [cell[name] for name in _CELL] not in done]
    asked = {"rounds": chosen["rounds"], "cells": missing}
    count_cells("experiments.host_copies.operator", asked, cells, storage, output)


def write_page(chosen: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write the page from what was counted."""
    cells = kept_cells(output)
    first, last = chosen["rounds"]
    lines = [
        "# Copies of a version between two hosts",
        "",
        f"Written by `python -m experiments.host_copies --scale {scale}`; {machine()}.",
        "Two hosts in network namespaces, each with half of the agents, who all read each other: planned d-psgd, and",
        f"live d-asgd. Counted at one host's interface, in both directions, from round {first} to round {last} of all",
        "agents: messages, and TCP's and Ray's own traffic. A copy: the bytes of one version's weights. Every version",
        "that was taken meanwhile counts, live also those that newer ones took the place of on their way to somebody.",
        "",
        "| mode | agents on each host | weights | `inline_bytes` | counted, MB | versions | copies of each |",
        "|---|---|---|---|---|---|---|",
    ]
    default = RaySettings().inline_bytes
    for cell in cells:
        limit = f"{cell['inline_bytes']:,}" + (" (default)" if cell["inline_bytes"] == default else "")
        copies = cell["counted"] / (cell["versions"] * cell["message_bytes"])
        lines.append(
            f"| {cell['mode']} | {cell['agents'] // 2} | {cell['message_bytes'] / 1e6:.2f} MB | {limit} | "
            f"{cell['counted'] / 1e6:.1f} | {cell['versions']} | {copies:.2f} |"
        )
    (output / "RESULTS.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
