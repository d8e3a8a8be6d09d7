"""Kills a run's driver at its k-th operation on files, for one k after another, and has it resumed until it ends.

A program of its own, since it forks; its arguments are a folder, the distance of the k, and how many random cases more.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ray_pcasgd.base.plain_json import read_mapping
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.trainer import Trainer, resume

SETTINGS: dict[str, Any] = {
    "engine": "local",
    "name": "first",
    "num_agents": 3,
    "num_steps": 12,
    "evaluate_every": 3,
    "task": {"model": {"hidden": [8]}},
    "checkpoint": {"state_seconds": 0, "every_evaluations": 1, "num_to_keep": 2},
}
NEVER = 10**9


def killed_at(operation: int) -> list[int]:
    """Let this process be killed at its so manieth operation on files; return what counts them."""
    counted = [0]
    for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "open"):
        real = getattr(os, name)

        def count(*arguments: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            counted[0] += 1
            if counted[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, count)
    return counted


def forked(act: Callable[[], Any]) -> int:
    """Return the exit status of a child that does something: 0, 1 where it raises, or the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def first(storage: Path, operation: int) -> None:
    killed_at(operation)
    Trainer(SETTINGS, storage_path=str(storage)).fit()


def again(run: Path, operation: int) -> None:
    killed_at(operation)
    assert resume(run).error is None


def problem(storage: Path, operations: Sequence[int], weights: dict[str, torch.Tensor]) -> str:
    """Return what is wrong with a run whose driver was killed at these operations, one in each of its processes."""
    run = storage / "first"
    status = forked(lambda: first(storage, operations[0]))
    for operation in (*operations[1:], NEVER):
        result = read_mapping(run / "result.json")
        if not status or not (run / "config.yaml").exists() or (result and result["error"] is None):
            break
        status = forked(lambda operation=operation: again(run, operation))  # type: ignore[misc]
    if not (run / "config.yaml").exists():
        return ""  # it was killed before it was there
    result = read_mapping(run / "result.json")
    if result is None or result["error"] is not None:
        return f"it does not go on: {status}"
    found = Checkpoint(str(run)).state_dict()
    if not all(torch.equal(found[name], value) for name, value in weights.items()):
        return "another model"
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    return "" if kept == ["step_00000009", "step_00000012"] else f"kept are {kept}"


def main(folder: Path, distance: int, num_random: int) -> None:
    torch.set_num_threads(1)
    whole = Trainer(SETTINGS, storage_path=str(folder / "whole")).fit()
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()

    def count() -> None:
        counted = killed_at(NEVER)
        Trainer(SETTINGS, storage_path=str(folder / "counted")).fit()
        (folder / "count").write_text(str(counted[0]))

    assert forked(count) == 0
    number = int((folder / "count").read_text())
    chosen = random.Random(0)
    cases = [[operation] for operation in range(1, number + 1, distance)]
    cases += [[chosen.randint(1, number) for _ in range(chosen.randint(2, 5))] for _ in range(num_random)]
    for case, operations in enumerate(cases):
        storage = folder / str(case)
        if wrong := problem(storage, operations, weights):
            print(f"killed at {operations}: {wrong}", flush=True)
        shutil.rmtree(storage, ignore_errors=True)
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
