"""Studies whose cells an operator counts in the laboratory's network namespaces, one after another."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cluster.cycle import ROOT

_NETLAB = ROOT.parent / "shared" / "lab" / "netlab.sh"


def kept_cells(output: Path) -> list[dict[str, Any]]:
    """Return the cells that were counted before."""
    kept = output / "results.json"
    cells: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    return cells


def count_cells(operator: str, asked: dict[str, Any], cells: Sequence[Any], storage: Path, output: Path) -> None:
    """Let a module count what it is asked for on two hosts; keep each cell as it is found, behind those there are.

    Raises:
        RuntimeError: The laboratory has ended with an error.

    """
    counted = list(cells)
    command = [str(_NETLAB), "2", sys.executable, "-m", operator, json.dumps(asked), str(storage.resolve())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            counted.append(json.loads(line))
            (output / "results.json").write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"the laboratory ended with status {process.returncode}")
