"""Models that are kept on the way."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, load_file
from torch import Tensor

from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.run_folder import RunFolder, is_remote


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a consensus model, ``model.safetensors``."""

    path: str
    """A folder of this machine, or a location that pyarrow knows."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state dict, for ``torch.nn.Module.load_state_dict``."""
        if not is_remote(self.path):
            return load_file(Path(self.path) / "model.safetensors")
        from pyarrow import fs

        source, root = fs.FileSystem.from_uri(self.path)
        with source.open_input_file(f"{root}/model.safetensors") as file:
            return load(file.read())


class Checkpoints:
    """Keeps the consensus models that the settings ask for, and drops the others."""

    def __init__(self, folder: RunFolder, settings: CheckpointSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._offered = 0
        self.kept: list[tuple[Checkpoint, dict[str, Any]]] = []

    def offer(self, row: Mapping[str, Any], state_dict: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the model of an evaluation (``row`` is the averaged model's), if the settings ask for it."""
        every = self._settings.every_evaluations
        self._offered += 1
        if every is None or self._offered % every:
            return
        metrics = {name.removeprefix("test_"): value for name, value in row.items() if name.startswith("test_")}
        path = self._folder.keep_checkpoint(row["step"], state_dict(), metrics)
        self.kept.append((Checkpoint(str(path)), metrics))
        limit = self._settings.num_to_keep
        if limit is not None and len(self.kept) > limit:
            self._drop_worst()

    def state(self) -> int:
        """Return how many models were offered."""
        return self._offered

    def restore(self, offered: int, step: int) -> None:
        """Go on after ``step``, with the models that the folder holds up to there."""
        self._offered = offered
        self.kept = []
        for path in sorted((self._folder.path / "checkpoints").glob("step_*")):
            if int(path.name.removeprefix("step_")) > step:
                shutil.rmtree(path)
            else:
                metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
                self.kept.append((Checkpoint(str(path)), metrics))

    def published(self, location: str) -> None:
        """Take in that the run folder has moved to a remote location."""
        self.kept = [
            (Checkpoint(f"{location}/checkpoints/{Path(checkpoint.path).name}"), metrics)
            for checkpoint, metrics in self.kept
        ]

    def _drop_worst(self) -> None:
        score = self._settings.score
        place = 0
        if score is not None:
            sign = 1 if self._settings.score_order == "max" else -1
            place = min(range(len(self.kept)), key=lambda i: sign * self.kept[i][1][score])
        checkpoint, _ = self.kept.pop(place)
        shutil.rmtree(checkpoint.path)
