"""Folders of Hugging Face's library ``datasets``: what it has saved itself, and JSON, CSV and Parquet files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from torch import Tensor

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks.hugging_face import HuggingFace
from tests.comparing import assert_same_to_the_bit


def digits(first: int, last: int) -> datasets.Dataset:
    whole = load_digits()
    columns = {"pixels": (whole.data / 16)[first:last].tolist(), "label": whole.target[first:last].tolist()}
    return datasets.Dataset.from_dict(columns | {"note": [f"digit {n}" for n in range(first, last)]})


def in_pairs(items: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([item["pixels"] for item in items]), torch.tensor([item["label"] for item in items])


def save(folder: Path, splits: dict[str, datasets.Dataset]) -> None:
    datasets.DatasetDict(splits).save_to_disk(folder)


def write(form: str) -> Callable[[Path, dict[str, datasets.Dataset]], None]:
    ends = {"json": "jsonl", "parquet": "parquet"}

    def written(folder: Path, splits: dict[str, datasets.Dataset]) -> None:
        folder.mkdir()
        for name, dataset in splits.items():
            getattr(dataset, f"to_{form}")(folder / f"{name}.{ends[form]}")

    return written


FORMS = {"saved": save, "json": write("json"), "parquet": write("parquet")}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    FORMS[request.param](tmp_path / "data", {"train": digits(0, 300), "test": digits(300, 400)})
    return tmp_path / "data"


def test_all_forms_train_from_yaml_to_the_bits_of_the_data_set_itself(folder: Path, tmp_path: Path) -> None:
    collate = f"{__name__}:in_pairs"
    settings = {
        "task": {"data": {"name": "hugging-face", "path": str(folder), "collate": collate}, "model": {"hidden": [8]}},
        "engine": "local",
        "num_agents": 2,
        "num_steps": 12,
        "batch_size": 16,
        "partition": {"name": "dirichlet", "alpha": 1.0},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    from_yaml = Trainer(read_yaml(tmp_path / "settings.yaml"), storage_path=str(tmp_path)).fit()
    data = {"name": "custom", "train": digits(0, 300), "test": digits(300, 400), "collate": in_pairs}
    task = {"data": data, "model": {"hidden": [8]}}
    assert_same_to_the_bit(from_yaml, Trainer(settings, task=task, storage_path=str(tmp_path)).fit())


def test_items_are_mappings_of_the_columns_that_are_asked_for(folder: Path) -> None:
    data = HuggingFace(path=folder, columns=("pixels", "label")).load()
    batch = data.train.take([3, 5])
    assert list(batch) == ["pixels", "label"]
    assert torch.equal(batch["pixels"], torch.tensor(load_digits().data[[3, 5]] / 16).float())
    assert len(data.test) == 100
    assert data.train.labels().tolist() == load_digits().target[:300].tolist()


def test_a_part_of_a_split_is_taken_of_files(tmp_path: Path) -> None:
    write("json")(tmp_path / "data", {"train": digits(0, 300)})
    settings = {"path": tmp_path / "data", "train": "train[:250]", "test": "train[250:]", "columns": ("pixels",)}
    data = HuggingFace(**settings).load()
    assert (len(data.train), len(data.test)) == (250, 50)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"path": "nowhere"},
            "task.data.path = 'nowhere': no such folder; allowed is one that save_to_disk",
        ),
        ({"test": "validation"}, "task.data.test = 'validation'"),
        ({"columns": ["words"]}, "task.data.columns: 'words' is none of pixels, label, note"),
        ({}, "sample 0 has a str for note; allowed are tensors, arrays, numbers"),
        ({"path": "empty"}, "task.data.train = 'train' of 'empty': .*doesn't contain any data files"),
        ({"path": "one"}, "task.data.path = 'one': it holds one data set; allowed is a DatasetDict of splits"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_in_one_line(
    changes: dict[str, Any], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    digits(0, 10).save_to_disk("one")
    task = {"data": {"name": "hugging-face", "path": str(folder)} | changes}
    with pytest.raises(SettingsError, match=said) as raised:
        Trainer(task=task, engine="local", storage_path=str(tmp_path)).fit()
    assert "\n" not in str(raised.value)
