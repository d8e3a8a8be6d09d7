"""A tiny language model of transformers, and text for it as Hugging Face's data sets have it.

Both libraries are imported inside the functions: importing them takes seconds, and most tests that import this module
do not use them.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import GPT2LMHeadModel

WORDS = 40
LENGTH = 10


def _texts(first: int, number: int) -> "Dataset":
    """Return sequences of words, each a few further than the one before it."""
    from datasets import Dataset

    starts, strides = torch.arange(first, first + number)[:, None], 1 + torch.arange(first, first + number)[:, None] % 3
    words = ((starts + strides * torch.arange(LENGTH)) % WORDS).tolist()
    return Dataset.from_dict({"input_ids": words, "labels": words})


def train() -> "Dataset":
    return _texts(0, 90)


def test() -> "Dataset":
    return _texts(90, 30)


def gpt2(dropout: float = 0.1) -> "GPT2LMHeadModel":
    """Return a model whose output layer is its table of words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    size = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**size, **rates, bos_token_id=0, eos_token_id=0))


def step(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean loss of the words in the second half."""
    labels = batch.pop("labels")  # which must not take it from others
    outputs = model(**batch)
    half = LENGTH // 2
    return torch.nn.functional.cross_entropy(
        outputs.logits[:, half - 1 : -1].reshape(-1, WORDS), labels[:, half:].reshape(-1)
    )


def evaluate(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss, and how many words are guessed."""
    outputs = model(**batch)
    guesses, words = outputs.logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
    return outputs.loss, {"guessed": (guesses == words).float().mean(), "perplexity": (outputs.logits[:, :-1], words)}


DATA = {"name": "custom", "train": "tests.engines.language:train", "test": "tests.engines.language:test"}
MODEL = {"name": "custom", "factory": "tests.engines.language:gpt2"}
TASK: dict[str, Any] = {"data": DATA, "model": MODEL}
PERPLEXITY = {"name": "custom", "function": "torchmetrics.text:Perplexity", "label": "perplexity"}
STEPPED: dict[str, Any] = TASK | {
    "step": "tests.engines.language:step",
    "evaluate": "tests.engines.language:evaluate",
    "metrics": [PERPLEXITY],
}
