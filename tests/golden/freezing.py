"""What a case gives: its schedule's hash, and digests of weights, metrics and rows in their order."""

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ray_pcasgd import Trainer
from tests.golden.cases import ALONE, BASE, BATCHED, CASES


class Frozen(NamedTuple):
    """What a run gave."""

    schedule: str
    """The same on every machine."""
    test_loss: float
    """To six digits, the same on every machine; what follows is so on one machine alone."""
    weights: str
    metrics: str
    rows: str


def names() -> Iterator[tuple[str, str]]:
    """Yield each case together with the way in which it is stacked."""
    for case in CASES:
        for batched in BATCHED:
            if case not in ALONE or batched == "never":
                yield case, batched


def freeze(case: str, batched: str, folder: Path, device: str = "cpu", **more: Any) -> Frozen:
    """Run a case, and return what it gave."""
    engine = {"name": "local", "batched": batched, "device": device}
    run = f"{case}-{batched}".replace(" ", "-").replace(",", "")
    result = Trainer(BASE | CASES[case], engine=engine, storage_path=str(folder), name=run, **more).fit()
    assert result.error is None, (case, result.error)
    assert result.checkpoint is not None
    state = sorted(result.checkpoint.state_dict().items())
    weights = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in state)
    metrics = result.metrics_dataframe.drop(columns="wall_seconds").to_csv(index=False).encode()
    rows = repr(_rows(Path(result.path) / "schedule.parquet")).encode()
    loss = float(f"{result.metrics['test_loss']:.6g}")
    return Frozen(result.schedule_hash, loss, *map(_digest, (weights, metrics, rows)))


def _rows(path: Path) -> Any:
    # Its home has moved between the commits that are compared.
    for home in ("schedule.parquet", "schedule.trace"):
        try:
            return importlib.import_module(f"ray_pcasgd.{home}").read_rows(path)[0]
        except ImportError:
            continue
    raise AssertionError("no module reads schedules")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
