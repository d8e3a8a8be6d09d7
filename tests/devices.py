"""The devices that tests compute on: the CPU, and a GPU where there is one (``python -m pytest -k cuda tests``)."""

import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
GPUS = DEVICES[1:]
"""Of tests that say something about GPUs alone; pytest skips them where there is none."""
