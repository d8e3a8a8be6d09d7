"""Runs that many tests begin from or compare with: trained once, and copied to where a test wants them."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray_pcasgd.schedule.parquet import read_rows, write_rows

Made = TypeVar("Made")

FOLDER = Path(tempfile.mkdtemp(prefix="ray_pcasgd_tests_"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

_made: dict[str, tuple[Path, Any, Any]] = {}


def once(make: Callable[[Path], Made], kind: str, settings: Any) -> tuple[Path, Made]:
    """Return the storage folder of a run of a kind with such settings and what ``make`` has returned of it.

    Nobody may change what is in it.
    """
    key = f"{kind}: {settings!r}"
    if key not in _made:
        storage = FOLDER / str(len(_made))
        # The settings are kept, too: an object among them is told from others by where it lies in memory.
        _made[key] = storage, make(storage), settings
    return _made[key][:2]


def placed(recorded: Path, storage: Path) -> Path:
    """Copy the only run of a storage folder into another one, as if it had been trained there."""
    (run,) = recorded.iterdir()
    copy = Path(shutil.copytree(run, storage / run.name))
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(recorded), str(storage)))
    return copy


def untold(schedule: Path) -> str:
    """Return a copy of a schedule that does not say how it was gathered, as older ones do not."""
    rows, metadata = read_rows(schedule)
    copy = schedule.with_name("untold.parquet")
    write_rows(copy, rows, {name: text for name, text in metadata.items() if name not in ("gathering", "format")})
    return str(copy)
