"""Determinism on GPUs: torch is asked for kernels that give the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(device: str | torch.device) -> Iterator[None]:
    """Compute with deterministic kernels where the device is a GPU, and as before afterwards.

    So a run repeats its bits on a GPU of the same type with the same versions of CUDA and PyTorch. An operation that
    has no deterministic kernel is used as it is; PyTorch then warns of it by name. On CPUs nothing changes: their
    kernels give the same bits anyhow.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    # Read by cuBLAS when a process first uses it; what the user has set stays.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling what is allocated with NaN finds reads of uninitialized memory; it costs a kernel for each tensor.
    cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = flags
