"""What users see of the package, apart from what runs give: names, settings, commands, files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray_pcasgd
from ray_pcasgd import Config, Trainer

COMMANDS = (
    *("train", "compare", "replay", "report", "evaluate", "sweep", "theory"),
    *("status", "watch", "delay", "leave", "join", "settings", "new"),
)

_MODULE = re.compile(r"ray_pcasgd__(?:\w+__)?(\w+__[A-Z])")
"""Pydantic's name of a class that is not the only one of its name: its module may move, the file's name counts."""


def surface(folder: Path) -> dict[str, Any]:
    """Return public names, the settings' schema, every command's help, and the files of a run's folder."""
    result = Trainer(engine="local", num_steps=2, storage_path=str(folder), name="files").fit()
    return {
        "names": sorted(ray_pcasgd.__all__),
        "settings": json.loads(_MODULE.sub(r"\1", json.dumps(Config.model_json_schema()))),
        "help": {command: _help(command) for command in COMMANDS},
        "files": sorted(path.name for path in Path(result.path).iterdir()),
    }


def _help(command: str) -> str:
    arguments = [sys.executable, "-m", "ray_pcasgd", command, "--help"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
