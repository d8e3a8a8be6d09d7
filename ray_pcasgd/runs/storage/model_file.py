"""A model's state dict as a file that runs no code: safetensors, or PyTorch's own where that cannot hold it."""

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ray_pcasgd.base.own_files import remove_files, write_whole
from ray_pcasgd.base.state import unpickled
from ray_pcasgd.runs.settings.errors import one_line

SAFETENSORS, TORCH = "model.safetensors", "model.pt"
MODEL_FILES = (SAFETENSORS, TORCH)
"""The names of a model's file, of which there is one."""

_LONGEST = 120
"""Characters of a reason that are shown."""


def encode(state: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[str, bytes, str]:
    """Return the name of a state dict's file, its content, and why it is not a safetensors file, if it is not.

    What neither format holds without running code when it is read is left out, and named.
    """
    try:
        if "__metadata__" in state:
            raise ValueError("__metadata__ is no name for a tensor there")
        return SAFETENSORS, save(_in_order(state), metadata=dict(metadata)), ""
    except Exception as error:  # whatever the user's own module has for state
        reason = one_line(error)[:_LONGEST]
    kept = {name: value for name, value in state.items() if _is_loadable(value)}
    left_out = [name for name in state if name not in kept]
    if left_out:
        reason += f"; left out, because no file holds it without running code: {', '.join(left_out)}"
    return TORCH, _as_torch(kept), reason


def write_model(
    folder: Path,
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
    configuration_files: Mapping[str, bytes] | None = None,
) -> str:
    """Write a state dict's file into a folder, and return why it is not ``model.safetensors``, if it is not.

    ``configuration_files``, by their names, are written first. The file's metadata say that its tensors are PyTorch's,
    which ``transformers`` asks for.

    Raises:
        OSError: it cannot be written.

    """
    name, content, reason = encode(state, {"format": "pt", **metadata})
    for own, text in (configuration_files or {}).items():
        write_whole(folder / own, text)
    write_whole(folder / name, content)
    (other,) = {*MODEL_FILES} - {name}
    if (folder / other).exists():
        remove_files(folder, [other])
    return reason


def read_model(content_of: Callable[[str], bytes | None]) -> dict[str, Any]:
    """Return a state dict from what ``content_of`` returns for the name of its file: ``None`` where there is no file.

    Raises:
        FileNotFoundError: there is neither file.

    """
    if (content := content_of(SAFETENSORS)) is not None:
        return dict(load(content))
    if (content := content_of(TORCH)) is not None:
        return _from_torch(content)
    raise FileNotFoundError(f"neither {SAFETENSORS} nor {TORCH}")


def _in_order(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict whose plain tensors have their numbers in memory as they are, in the order of the indices."""

    def ordered(value: Any) -> Any:
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        return value.resolve_conj().resolve_neg().contiguous() if is_plain else value

    return {name: ordered(value) for name, value in state.items()}


def _as_torch(state: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(state), file)
    return file.getvalue()


def _from_torch(content: bytes) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors of rarer kinds
        return dict(unpickled(io.BytesIO(content)))


def _is_loadable(value: Any) -> bool:
    try:
        _from_torch(_as_torch({"": value}))
    except Exception:
        return False
    return True
