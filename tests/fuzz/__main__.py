"""Fuzz of settings: ``python -m tests.fuzz --cases 10000``; of settings files: ``python -m tests.fuzz files``.

Cases run in processes of their own, with bounded time and memory; seed and number make a case again
(``--seed 0 --first 4711 --cases 1``). The status is 1 where something was found.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.working import Process


def main() -> int:
    """Run the fuzz, and return how it ended."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return _run(options, Path(folder))


def _run(options: argparse.Namespace, folder: Path) -> int:
    found: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    workers = [Process(options, folder / str(number)) for number in range(options.workers)]
    waiting = list(range(options.first, options.first + options.cases))[::-1]
    while waiting or any(worker.number is not None for worker in workers):
        for worker in workers:
            if worker.number is None and waiting:
                worker.ask(waiting.pop())
            if worker.number is not None and (answer := worker.answer()) is not None:
                number, outcome = answer
                kinds[outcome.kind] += 1
                if outcome.is_finding:
                    found.append({"case": number, **outcome._asdict()})
                    print(json.dumps(found[-1]), flush=True)
                if options.verbose:
                    print(number, *outcome, flush=True)
                if kinds.total() % 500 == 0:
                    print(f"{kinds.total()} cases: {dict(kinds)}", file=sys.stderr, flush=True)
    for worker in workers:
        worker.end()
    print(f"{kinds.total()} cases of seed {options.seed}: {dict(kinds)}; {len(found)} findings")
    for (kind, where), count in Counter((one["kind"], one["where"]) for one in found).most_common():
        print(f"{count:5} {kind:10} {where}")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["settings", "files"], default="settings")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of a case")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after which a worker is killed")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="memory of a worker beyond what it has at first")
    parser.add_argument("--verbose", action="store_true", help="print what became of every case")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
