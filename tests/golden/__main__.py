"""Golden runs: ``python -m tests.golden freeze FILE`` on one commit, ``python -m tests.golden check FILE`` on another.

Only what is the same on every machine is in the repository (``tests/golden/frozen.json``, by ``freeze --portable``).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.golden.freezing import freeze, names
from tests.golden.surface import surface

PORTABLE = ("schedule", "test_loss")


def taken(portable: bool) -> dict[str, Any]:
    """Return what all cases give."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{case} / {batched}": freeze(case, batched, Path(folder))._asdict() for case, batched in names()}
        if portable:
            return {name: {key: run[key] for key in PORTABLE} for name, run in runs.items()}
        return {"runs": runs, "surface": surface(Path(folder))}


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Return where two trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{place}/{key}")]
    return [] if before == now else [f"{place}: {before!r:.200} -> {now!r:.200}"]


def main() -> int:
    """Freeze, or compare and return how many differences there are."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("what", choices=["freeze", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--portable", action="store_true", help="only what is the same on every machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    now = json.loads(json.dumps(taken(options.portable)))
    if options.what == "freeze":
        options.file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return 0
    found = differences(json.loads(options.file.read_text(encoding="utf-8")), now)
    print("\n".join(found) or "equal")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
