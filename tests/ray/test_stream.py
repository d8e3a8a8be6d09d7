"""Training data that stay on the disk, read through Ray Data, one stream an agent."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.faults.injecting import Fault, kill
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks.parquet import ImageParquet
from ray_pcasgd.tasks.ray_stream import StreamBatches, StreamedImages

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray Data's own settings
]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory, cifar_folder: Path) -> Path:
    """Real images, in seven row groups of unequal sizes."""
    from pyarrow import parquet

    path = tmp_path_factory.mktemp("stream") / "train.parquet"
    table = parquet.ParquetFile(cifar_folder / "train.parquet").read_row_group(0).slice(0, 700)
    with parquet.ParquetWriter(path, table.schema) as writer:
        place = 0
        for rows in (90, 110, 100, 100, 95, 105, 100):
            writer.write_table(table.slice(place, rows), row_group_size=rows)
            place += rows
    return path


def settings_of(small_file: Path, cifar_folder: Path, **data: Any) -> dict[str, Any]:
    test = str(cifar_folder / "test.parquet")
    images = {"name": "image-parquet", "train": str(small_file), "test": test, "test_limit": 200, "streamed": True}
    return {
        "engine": {"name": "ray", "cpus_per_agent": 4},  # all of the cluster's: what reads for them needs none
        "num_agents": 2,
        "num_steps": 60,
        "evaluate_every": 30,
        "batch_size": 32,
        "links": [{"delay": 2}],
        "task": {"data": images | data, "model": {"name": "small-cnn", "channels": [4]}},
        "checkpoint": {"state_seconds": 0},
    }


def fit(settings: dict[str, Any], folder: Path, callback: Callback | None = None) -> Result:
    return Trainer(settings, storage_path=str(folder), callbacks=[callback or Callback()]).fit()


def loaded(settings: dict[str, Any]) -> StreamedImages:
    data = ImageParquet(**settings["task"]["data"]).load()
    assert isinstance(data.train, StreamedImages)
    return data.train


def test_an_epoch_has_each_image_of_the_shard_once(small_file: Path, cifar_folder: Path) -> None:
    images = loaded(settings_of(small_file, cifar_folder))
    shard = np.array([1, 4, 6])  # 110, 95 and 100 images
    expected = Counter(image.tobytes() for number in shard for image in images.read(int(number))[0])
    batches = StreamBatches(images, shard, 61, seed=0, agent=0)
    epochs = []
    for _ in range(2):
        taken = [batches.next() for _ in range(5)]
        epochs.append([image.tobytes() for inputs, _ in taken for image in (inputs * 255).round().byte().numpy()])
        assert Counter(epochs[-1]) == expected
    assert epochs[0] != epochs[1]  # each epoch has an order of its own


def test_a_stream_goes_on_from_the_number_of_its_batches(small_file: Path, cifar_folder: Path) -> None:
    images = loaded(settings_of(small_file, cifar_folder))
    whole = StreamBatches(images, np.array([0, 2, 3]), 40, seed=3, agent=1)
    batches = [whole.next() for _ in range(12)]
    for place in (5, 7, 11):
        again = StreamBatches(images, np.array([0, 2, 3]), 40, seed=3, agent=1)
        again.restore(place)
        assert all(torch.equal(a, b) for a, b in zip(again.next(), batches[place], strict=True))
    other = StreamBatches(images, np.array([0, 2, 3]), 40, seed=4, agent=1)
    assert not torch.equal(other.next()[0], batches[0][0])


@pytest.mark.slow
def test_a_planned_run_on_streams_outlives_an_agent_to_the_bit(
    small_file: Path, cifar_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(small_file, cifar_folder)
    whole = fit(settings, tmp_path)
    fault = Fault(20, kill(1))
    disturbed = fit(settings, tmp_path, fault)
    assert whole.error is None
    assert disturbed.error is None
    assert "run_restarted" in fault.kinds()
    assert whole.checkpoint
    assert disturbed.checkpoint
    weights = whole.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in disturbed.checkpoint.state_dict().items())
    losses = whole.metrics_dataframe["train_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_agents": 8}, "num_agents = 8: allowed are 1 to 7, the row groups of streamed files"),
        ({"engine": {"name": "local"}}, "engine.name = 'local': allowed with task.data.streamed is ray"),
        ({"task": {"loading": {"workers": 2}}}, "task.loading.workers = 2: allowed with task.data.streamed is 0"),
        ({"task": {"validation_share": 0.1}}, "task.validation_share = 0.1: allowed with streamed data is 0"),
        ({"task": {"data": {"train": "nowhere-*.parquet"}}}, "no such file"),
        ({"task": {"data": {"label_column": "y"}}}, "task.data.label_column = 'y': not in"),
        ({"partition": "dirichlet"}, "dirichlet"),
        (
            {"algorithm": "fedglomo", "optimizer": "sgd"},
            "task.data.streamed = true: allowed with algorithm.name = 'fedglomo' is false, or algorithm.first",
        ),
        ({"batch_size": 600}, "batch_size = 600: allowed are up to"),
    ],
    ids=str,
)
def test_what_streams_cannot_do_is_refused(
    changes: dict[str, Any], said: str, small_file: Path, cifar_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        Trainer(settings_of(small_file, cifar_folder), storage_path=str(tmp_path), **changes).fit()
