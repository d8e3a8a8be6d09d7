"""A run's model file in the user's own hands: plain PyTorch, safetensors, and Hugging Face's transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from ray_pcasgd import Trainer
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.storage.pretrained import configuration_files

WORDS, LENGTH = 17, 6


class Tied(nn.Module):
    """A language model whose first and last layers share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)
        self.head = nn.Linear(4, WORDS, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(inputs))) * self.scale  # type: ignore[no-any-return]


class LogitsOfGPT2(GPT2LMHeadModel):
    """GPT-2 that returns what the loss takes."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).logits


def gpt2() -> LogitsOfGPT2:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return LogitsOfGPT2(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, **none))


def words() -> tuple[TensorDataset, TensorDataset]:
    inputs = torch.arange(40 * LENGTH).reshape(40, LENGTH) * 7 % WORDS
    whole = (inputs, (inputs + 7) % WORDS)
    train, test = ([part[place] for part in whole] for place in (slice(30), slice(30, None)))
    return TensorDataset(*train), TensorDataset(*test)


def trained(model: Any, path: Path, **settings: Any) -> Result:
    task = {"data": words(), "model": model}
    sizes = {"num_agents": 2, "num_steps": 6, "evaluate_every": 3, "batch_size": 4, "engine": "local"}
    result = Trainer(sizes | settings, task=task, storage_path=str(path), name="first").fit()
    assert result.error is None
    return result


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_with_tied_weights_loads_into_the_users_own_class(compiled: bool, tmp_path: Path) -> None:
    result = trained((lambda: torch.compile(Tied(), backend="eager")) if compiled else Tied, tmp_path)
    state = load_file(Path(result.path) / "model.safetensors")
    own = Tied()
    assert state.keys() == own.state_dict().keys()
    own.load_state_dict(state)
    assert own.head.weight is own.embedding.weight
    assert torch.equal(state["head.weight"], state["embedding.weight"])
    assert not (Path(result.path) / "config.json").exists()
    inputs, targets = words()[1].tensors
    loss = nn.functional.cross_entropy(own(inputs).flatten(0, 1).double(), targets.flatten())
    assert loss.item() == pytest.approx(result.metrics["test_loss"], rel=1e-6)


def test_transformers_loads_a_runs_folder_and_a_kept_model_with_nothing_missing(tmp_path: Path) -> None:
    result = trained(gpt2, tmp_path, checkpoint={"every_evaluations": 1})
    kept, metrics = result.best_checkpoints[0]
    for folder, loss in ((result.path, result.metrics["test_loss"]), (kept.path, metrics["loss"])):
        model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values()), told
        assert type(model) is GPT2LMHeadModel
        assert model.lm_head.weight is model.transformer.wte.weight
        inputs, targets = words()[1].tensors
        with torch.no_grad():
            found = nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1).double(), targets.flatten())
        assert found.item() == pytest.approx(loss, rel=1e-6)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            assert file.metadata()["format"] == "pt"
        assert json.loads((Path(folder) / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
        assert (Path(folder) / "generation_config.json").is_file()
    own = gpt2()
    own.load_state_dict(load_file(Path(result.path) / "model.safetensors"))


def test_kept_models_that_are_dropped_take_their_configuration_along(tmp_path: Path) -> None:
    result = trained(gpt2, tmp_path, checkpoint={"every_evaluations": 1, "num_to_keep": 1})
    assert [path.name for path in (Path(result.path) / "checkpoints").iterdir()] == ["step_00000006"]


def test_what_a_models_own_configuration_raises_costs_that_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no configuration")

    monkeypatch.setattr(PreTrainedConfig, "save_pretrained", fail)
    result = trained(gpt2, tmp_path)
    events = [json.loads(line) for line in (Path(result.path) / "events.jsonl").read_text().splitlines()]
    (event,) = (event for event in events if event["kind"] == "model_format")
    assert "no configuration" in event["detail"]
    assert not (Path(result.path) / "config.json").exists()
    assert (Path(result.path) / "model.safetensors").is_file()


def test_other_modules_have_no_files_beside_them() -> None:
    assert configuration_files(Tied()) == {}
    assert configuration_files(gpt2().transformer.wte) == {}
