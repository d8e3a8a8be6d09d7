"""Determinism on GPUs: torch is asked for kernels that give the same bits each time.

A run then repeats its bits on GPUs of one type, with the same versions of CUDA and PyTorch. On CPUs nothing changes:
their kernels give the same bits anyhow.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ray_pcasgd.base.text import one_line

logger = logging.getLogger("ray_pcasgd")

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def configure(device: str | torch.device) -> None:
    """Let cuBLAS choose the same kernels in every process, where the device is a GPU.

    It reads this as a process first uses it, so it has to be set before. What the user has set stays.
    """
    if torch.device(device).type == "cuda":
        os.environ.setdefault(_WORKSPACE, ":4096:8")


@contextmanager
def deterministic(device: str | torch.device) -> Iterator[None]:
    """Compute with deterministic kernels, where there are such, if the device is a GPU; as before afterwards.

    Of an operation that has none, PyTorch warns by its name. Some that have one, such as the backward pass of
    attention, use it only where nothing else is allowed: see ``require_determinism``.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    configure(device)
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling what is allocated with NaN would find reads of uninitialized memory, at a kernel for each tensor.
    cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = flags


def require_determinism(compute: Callable[[], object]) -> None:
    """Allow nothing but deterministic kernels from now on, unless ``compute``, which has no effect, cannot do so.

    Then one line says which operation it is, and that the run may not repeat its bits.
    """
    torch.use_deterministic_algorithms(True)
    try:
        compute()
    except RuntimeError as error:
        torch.use_deterministic_algorithms(True, warn_only=True)
        if "not have a deterministic implementation" not in str(error):
            raise
        logger.warning("on GPUs this run may not repeat its bits: %s", one_line(error, 200))
