"""Trying one case: it ends in a result, or in an error of settings that names one; anything else is a finding."""

import io
import math
import shutil
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.cli.app import main
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows
from tests.fuzz.generating import Case, Resources

FINE = ("ran", "failed", "refused", "planned")
"""Kinds of outcomes that are no findings."""


class Outcome(NamedTuple):
    """What became of a case."""

    kind: str
    """ran, failed, refused, planned; or what is wrong: traceback, silent, riddle, record, status; hang, killed."""
    detail: str
    """A line: of the error, or what is wrong."""
    where: str = ""
    """Of a traceback, its last place in the package."""

    @property
    def is_finding(self) -> bool:
        """Whether something is wrong with it."""
        return self.kind not in FINE


def make_resources(folder: Path) -> Resources:
    """Write the files that settings may name into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("To be, or not to be, that is the question. " * 30, encoding="utf-8")
    (folder / "delays.csv").write_text("delay\n0.5\n2\n1.25\n", encoding="utf-8")
    (folder / "there.csv").write_text("agent,start,end\n0,0,2.5\n0,3,\n", encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    encoded = []
    for image in pixels:
        Image.fromarray(image).save(buffer := io.BytesIO(), "png")
        encoded.append({"bytes": buffer.getvalue(), "path": ""})
    table = pd.DataFrame({"image": encoded, "label": np.arange(30) % 3})
    table.to_parquet(folder / "images.parquet", index=False)
    schedules = []
    for number, algorithm in enumerate(["pc-asgd", "sgp", "ad-psgd", "server"]):
        settings = {"algorithm": algorithm, "num_agents": 3 + number % 2, "num_steps": 4, "name": f"recorded-{number}"}
        shutil.rmtree(folder / f"recorded-{number}", ignore_errors=True)
        Trainer(settings, storage_path=str(folder), engine="local").fit()
        schedules.append(folder / f"recorded-{number}" / "schedule.parquet")
    return Resources(folder, tuple(schedules))


def examine(case: Case, resources: Resources, by_command: bool = False) -> Outcome:
    """Try a case, in Python or through the command line; what it leaves behind is removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _by_command(case, resources) if by_command else _in_python(case)
        except SettingsError as error:
            return _refused(error)
        except Exception as error:
            return Outcome("traceback", _line(error), _where(error))
        finally:
            shutil.rmtree(resources.folder / "runs", ignore_errors=True)


def _in_python(case: Case) -> Outcome:
    config = load_config(case.tree, case.assignments)
    if not isinstance(config.engine, LocalSettings) or _takes_long(config):
        make_plan(config)
        return Outcome("planned", "")
    return _checked(config, Trainer(config).fit())


def _takes_long(config: Config) -> bool:
    """Return whether settings are right, but of a run that takes longer than a case may."""
    numbers = [config.num_agents, config.num_steps / 2, config.batch_size / 20, config.num_epochs or 0]
    numbers += [getattr(config.algorithm, name, 0) / 2 for name in ("period", "shards", "micro_batches")]
    numbers += [max(getattr(config.task.model, "hidden", ()), default=0) / 20, config.task.augmentation.crop_padding]
    numbers += [getattr(config.task.model, name, 0) for name in ("layers", "width", "depth", "growth", "threads")]
    return max(numbers) > _MOST


_MOST = 20
"""Agents, or what takes as long."""


def _checked(config: Config, result: Result) -> Outcome:
    """Return what a run came to, if its files say the same and hold together."""
    path = Path(result.path)
    try:
        rows, _ = read_rows(path / "schedule.parquet")
        again = load_config(path / "config.yaml")
        make_plan(again)
    except Exception as error:
        return Outcome("record", f"what the run has written cannot be read: {_line(error)}", _where(error))
    if result.error is not None:
        return Outcome("failed", _line(result.error))
    if not rows or again.algorithm.name != config.algorithm.name:
        return Outcome("record", "the run's files are of another run")
    tested = {name: value for name, value in result.metrics.items() if name.startswith("test_")}
    wrong = [name for name, value in tested.items() if not math.isfinite(value)]
    weights = load_file(path / "model.safetensors")
    wrong += [name for name, tensor in weights.items() if not torch.isfinite(tensor.float()).all()]
    return Outcome("silent", f"finished, but {', '.join(wrong[:3])} not finite") if wrong else Outcome("ran", "")


def _by_command(case: Case, resources: Resources) -> Outcome:
    """Run ``ray-pcasgd train`` in this process, and hold its status against what it says."""
    file = resources.folder / "case.yaml"
    try:
        file.write_text(write_yaml(case.tree), encoding="utf-8")
    except Exception:
        return _in_python(case)  # values that YAML has no form for
    options = [part for assignment in case.assignments for part in ("--set", assignment)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(["train", str(file), *options, "--set", "engine=local"])
    except SystemExit as ended:
        status = ended.code
    lines = err.getvalue().splitlines()
    is_told = bool(lines) and all(line.startswith("error: ") for line in lines)
    if status == 0 and not lines:
        return Outcome("ran", "")
    if status == 2 and is_told:
        return _refused(SettingsError("\n".join(line.removeprefix("error: ") for line in lines)))
    if status == 1 and is_told and len(lines) == 1:
        return Outcome("failed", lines[0])
    return Outcome("status", f"status {status} with {lines[-1] if lines else 'no word'!r}")


def _refused(error: SettingsError) -> Outcome:
    """Return an error of settings as an outcome, if it is one that helps."""
    lines = str(error).splitlines()
    for line in lines:
        # Between a setting's name and what is allowed, every line has a colon.
        if not line.strip() or ": " not in line or len(line) > 1500 or "Traceback" in line:
            return Outcome("riddle", line[:300])
    return Outcome("refused", lines[0]) if lines else Outcome("riddle", "an error without a word")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "ray_pcasgd" in frame.filename and "tests" not in frame.filename]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"
