"""Models that are kept while a run is running."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ray_pcasgd.base.own_files import is_file, remove_whole
from ray_pcasgd.base.plain_json import read_mapping
from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.storage.model_file import MODEL_FILES, read_model
from ray_pcasgd.runs.storage.names import CHECKPOINTS, KEPT_FILES, KEPT_METRICS, KEPT_MODEL
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, location_in, parent_of


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a consensus model: ``model.safetensors``, or ``model.pt`` where that cannot hold it."""

    path: str
    """A folder of this machine, or a location that pyarrow knows."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state dict, for ``torch.nn.Module.load_state_dict``; nothing in it is executed."""
        if not is_remote(self.path):
            folder = Path(self.path)
            return read_model(lambda name: (folder / name).read_bytes() if is_file(folder / name) else None)
        storage, name = parent_of(self.path)
        remote = RemoteStorage(storage)
        return read_model(lambda file: remote.read(name, file))


def kept_in(location: str) -> dict[int, Checkpoint]:
    """Return the models that a run has kept while it was running, by their steps.

    Raises:
        OSError: the run's folder cannot be read.

    """
    if is_remote(location):
        storage, run = parent_of(location)
        names = RemoteStorage(storage).names_in(f"{run}/{CHECKPOINTS}")
    else:
        names = sorted(path.name for path in (Path(location) / CHECKPOINTS).glob("step_*"))

    def place(name: str) -> str:
        inside = f"{CHECKPOINTS}/{name}"
        return location_in(location, inside) if is_remote(location) else str(Path(location) / inside)

    found = [(KEPT_MODEL.fullmatch(name), name) for name in names]
    return {int(match[1]): Checkpoint(place(name)) for match, name in found if match}


Kept = tuple[Checkpoint, dict[str, Any]]
"""A model, and the test metrics of its evaluation."""


class Checkpoints:
    """Keeps the consensus models that the settings ask for, and drops the others."""

    def __init__(self, folder: RunFolder, settings: CheckpointSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._offered = 0
        self.kept: list[Kept] = []

    def offer(
        self,
        row: Mapping[str, Any],
        state_dict: Callable[[], Mapping[str, Any]],
        configuration_files: Callable[[], Mapping[str, bytes]] = dict,
    ) -> Kept | None:
        """Keep the model of an evaluation (``row`` is the averaged model's), and return it, if the settings ask for it.

        ``configuration_files`` returns files by their names, which are kept together with it.

        Raises:
            OSError: it cannot be kept; what was kept before is as it was.

        """
        every = self._settings.every_evaluations
        self._offered += 1
        if every is None or self._offered % every:
            return None
        metrics = {name.removeprefix("test_"): value for name, value in row.items() if name.startswith("test_")}
        path = self._folder.keep_checkpoint(row["step"], state_dict(), metrics, configuration_files())
        self.kept = [one for one in self.kept if one[0].path != str(path)] + [kept := (Checkpoint(str(path)), metrics)]
        limit = self._settings.num_to_keep
        while limit is not None and len(self.kept) > limit:
            self._drop_worst()
        return kept if kept in self.kept else None

    def state(self) -> int:
        """Return how many models were offered."""
        return self._offered

    def restore(self, offered: int, step: int) -> list[str]:
        """Go on after ``step``, with the models that the folder holds up to it; return the problems of others.

        Those after it are dropped: the run comes by these steps again.
        """
        self._offered = offered
        self.kept = []
        problems: list[str] = []
        for own_step, path in self._folder.kept_models():
            if own_step > step:
                remove_whole(path, KEPT_FILES)
                continue
            metrics = read_mapping(path / KEPT_METRICS)
            if metrics is None or not any(is_file(path / name) for name in MODEL_FILES):
                problems.append(f"the model in {path} is not whole; it is left there, and does not count as kept")
                continue
            self.kept.append((Checkpoint(str(path)), {name: _number(value) for name, value in metrics.items()}))
        return problems

    def published(self, location: str) -> None:
        """Take in that the run folder has moved to a remote location."""
        within = location_in(location, CHECKPOINTS)
        self.kept = [
            (Checkpoint(location_in(within, Path(checkpoint.path).name)), metrics) for checkpoint, metrics in self.kept
        ]

    def there(self) -> list[Kept]:
        """Return the models that were kept, without those that went away with their folder."""
        return [one for one in self.kept if is_remote(one[0].path) or Path(one[0].path).is_dir()]

    def _drop_worst(self) -> None:
        score = self._settings.score
        place = 0
        if score is not None:
            place = min(range(len(self.kept)), key=lambda place: self._rank(self.kept[place][1].get(score)))
        checkpoint, _ = self.kept.pop(place)
        remove_whole(Path(checkpoint.path), KEPT_FILES)

    def _rank(self, score: Any) -> float:
        """Return how good a score is; one that is not a number is the worst."""
        value = _number(score)
        return -math.inf if math.isnan(value) else value if self._settings.score_order == "max" else -value


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else math.nan
