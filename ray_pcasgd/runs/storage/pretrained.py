"""The configuration files of a Hugging Face transformers model, which ``from_pretrained`` reads."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

PRETRAINED_FILES = ("config.json", "generation_config.json")
"""The names of the files."""

_LIBRARY = "transformers"


def configuration_files(module: nn.Module) -> dict[str, bytes]:
    """Return the configuration of a ``transformers.PreTrainedModel`` as files, by their names; of others, none.

    **Choice**: where the module is of a class derived from one of the library's, ``architectures`` names that one: a
    reader has it, too.
    """
    model: Any = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    # Of the library's classes, without importing it for those who do not use it.
    theirs = [kind for kind in type(model).__mro__ if kind.__module__.partition(".")[0] == _LIBRARY]
    if not any(kind.__name__ == "PreTrainedModel" for kind in theirs):
        return {}
    config = copy.deepcopy(model.config)
    config.architectures = [theirs[0].__name__]
    with TemporaryDirectory(prefix="ray_pcasgd_") as folder:
        config.save_pretrained(folder)
        if model.can_generate() and getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)
        written = [Path(folder) / name for name in PRETRAINED_FILES]
        return {path.name: path.read_bytes() for path in written if path.is_file()}
