"""What is learned: a GPT of ``transformers``, and the sources of some of Python's own packages as bytes."""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

PACKAGES = ("asyncio", "collections", "email", "http", "importlib", "json", "logging", "unittest", "urllib", "xml")
"""Real text that is everywhere, and that no commit changes."""
CONTEXT = 64
"""Bytes of one sample."""
EVERY = 50
"""One of so many files is tested on."""


def files() -> list[Path]:
    """Return the files of the text, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    return sorted(file for package in PACKAGES for file in (library / package).rglob("*.py"))


def windows(chosen: list[Path]) -> list[dict[str, Tensor]]:
    """Return the samples of some files, one after another: ``CONTEXT`` bytes each, which do not overlap."""
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in chosen)), dtype=torch.uint8)
    whole = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT).long()
    return [{"input_ids": window, "labels": window} for window in whole]


def train() -> list[dict[str, Tensor]]:
    """Return the samples of all other files."""
    return windows([file for place, file in enumerate(files()) if place % EVERY])


def test() -> list[dict[str, Tensor]]:
    """Return the samples of one of ``EVERY`` files."""
    return windows(files()[::EVERY])


def gpt(width: int, layers: int, heads: int) -> GPT2LMHeadModel:
    """Return a new GPT over bytes; about ``12 * layers * width**2`` parameters."""
    size = {"vocab_size": 256, "n_positions": CONTEXT, "n_embd": width, "n_layer": layers, "n_head": heads}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**size, **rates, bos_token_id=0, eos_token_id=0))


def evaluate(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss, and what perplexity is measured of: every byte but the first, given those before it."""
    outputs = model(**batch)
    return outputs.loss, {"perplexity": (outputs.logits[:, :-1], batch["labels"][:, 1:])}
