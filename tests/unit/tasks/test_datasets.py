import gzip
import io
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pydantic import ValidationError
from torch.utils.data import Dataset, TensorDataset

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.tasks import Task
from ray_pcasgd.tasks.datasets import CustomData, Data, Digits, Text
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.parquet import ImageParquet
from ray_pcasgd.tasks.samples import MapSamples, Samples, TaskData
from ray_pcasgd.tasks.vision import CIFAR10, CIFAR100, FashionMNIST, ImageFolder


def noise(*shape: int) -> np.ndarray:
    return generator(0, "test").integers(256, size=shape, dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def write_parquet(path: Path, images: list[bytes], labels: list[int], as_struct: bool = True) -> str:
    column = [{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(images)] if as_struct else images
    parquet.write_table(pa.table({"img": column, "label": labels}), path)
    return str(path)


def diabetes(first: int, last: int) -> TensorDataset:
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    scaled = (targets - targets.mean()) / targets.std()
    return TensorDataset(torch.from_numpy(inputs / inputs.std(0))[first:last], torch.from_numpy(scaled)[first:last])


def diabetes_train() -> TensorDataset:
    return diabetes(0, 342)


def diabetes_test() -> TensorDataset:
    return diabetes(342, 442)


class Squares(Dataset[tuple[Image.Image, int]]):
    """Gray and color images made on demand; the targets are known beforehand."""

    def __init__(self, mode: str = "RGB") -> None:
        self.mode = mode
        self.targets = [0, 1, 2, 1]
        self.made: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.made.append(index)
        return Image.new(self.mode, (5, 4), (10 * index, 1, 2) if self.mode == "RGB" else 10 * index), self.targets[
            index
        ]


# digits


def test_digits_are_scikit_learns_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    data, again, other = Digits().load(), Digits().load(), Digits(split_seed=1).load()
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.train.inputs.dtype == torch.float32
    assert (data.input_shape, data.num_outputs, data.classes[3]) == ((64,), 10, "3")
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.inputs, other.train.inputs)
    original = load_digits()
    expected = sorted((*(image / 16), label) for image, label in zip(original.data, original.target, strict=True))
    found = []
    for part in (data.train, data.test):
        found += [(*image, label) for image, label in zip(part.inputs.tolist(), part.targets.tolist(), strict=True)]
    assert sorted(found) == expected


# Parquet


def test_cifar_parquet_is_decoded_as_pillow_decodes_it(cifar_folder: Path) -> None:
    paths = {part: str(cifar_folder / f"{part}.parquet") for part in ("train", "test")}
    data = ImageParquet(**paths, limit=300, test_limit=100).load()
    assert (len(data.train), len(data.test), data.num_classes) == (300, 100, 10)
    assert data.train.inputs.shape == (300, 3, 32, 32)
    assert data.train.inputs.dtype == torch.uint8
    for part, samples in (("train", data.train), ("test", data.test)):
        rows = next(parquet.ParquetFile(paths[part]).iter_batches(len(samples))).to_pylist()
        for index in range(len(samples)):
            pixels = np.asarray(Image.open(io.BytesIO(rows[index]["img"]["bytes"])))
            assert np.array_equal(samples.inputs[index].permute(1, 2, 0).numpy(), pixels)
            assert samples.targets[index] == rows[index]["label"]
    normalized = data.normalization(data.train.inputs)
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-4


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_takes_several_files_in_the_order_of_their_names(tmp_path: Path, as_struct: bool) -> None:
    pixels = noise(6, 4, 5, 3)
    images = [encoded(Image.fromarray(image)) for image in pixels]
    for part in (1, 0):
        write_parquet(tmp_path / f"train-{part}.parquet", images[3 * part :][:3], [part] * 3, as_struct)
    test = write_parquet(tmp_path / "test.parquet", images[:2], [4, 0], as_struct)
    data = ImageParquet(train=str(tmp_path / "train-*.parquet"), test=test, mean=(0.5,) * 3, std=(0.2,) * 3).load()
    assert np.array_equal(data.train.inputs.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.num_classes == 5
    assert data.normalization == Normalization((0.5,) * 3, (0.2,) * 3)
    limited = ImageParquet(train=str(tmp_path / "train-*.parquet"), test=test, limit=4).load()
    assert torch.equal(limited.train.inputs, data.train.inputs[:4])
    assert limited.train.targets.tolist() == [0, 0, 0, 1]


def test_parquet_of_gray_images_has_one_channel(tmp_path: Path) -> None:
    pixels = noise(3, 6, 6)
    path = write_parquet(tmp_path / "gray.parquet", [encoded(Image.fromarray(image)) for image in pixels], [0, 1, 1])
    data = ImageParquet(train=path, test=path).load()
    assert np.array_equal(data.train.inputs.numpy(), pixels[:, None])
    assert len(data.normalization.mean) == 1


def test_parquet_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    small, large = (encoded(Image.new("RGB", (size, size))) for size in (4, 5))
    good = write_parquet(tmp_path / "good.parquet", [small, small], [0, 1])
    other = write_parquet(tmp_path / "other.parquet", [large], [0])
    mixed = write_parquet(tmp_path / "mixed.parquet", [small, large], [0, 1])
    broken = write_parquet(tmp_path / "broken.parquet", [small, b"no image"], [0, 1])
    empty = tmp_path / "empty.parquet"
    parquet.write_table(parquet.read_table(good).slice(0, 0), empty)
    (tmp_path / "text.parquet").write_text("no Parquet")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": "absent.parquet"}, "task.data.train = 'absent.parquet': no such file"),
        ({"train": str(tmp_path / "text.parquet")}, "text.parquet is no Parquet file"),
        ({"image_column": "image"}, "task.data.image_column = 'image': not in .*; allowed are img, label"),
        ({"label_column": "fine"}, "task.data.label_column = 'fine': not in .*; allowed are img, label"),
        ({"train": mixed}, r"image 1 has \(5, 5\) pixels; allowed is \(4, 4\)"),
        ({"train": broken}, "task.data.train = .*: image 1 cannot be decoded"),
        ({"test": other}, r"task.data.test = .*: its images have shape \(3, 5, 5\); allowed is \(3, 4, 4\)"),
        ({"test": str(empty)}, "task.data.test = .*: it is empty"),
        ({"mean": (0.5,), "std": (0.5,)}, r"task.data.mean = \(0.5,\): allowed is one for each .*, here 3"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            ImageParquet(**{"train": good, "test": good} | settings).load()
    with pytest.raises(ValidationError, match="std above 0"):
        ImageParquet(train=good, test=good, mean=(0.5,), std=(0.0,))


# torchvision


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(header + values.tobytes())


def test_fashion_mnist_is_read_through_torchvision(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    images, labels = noise(7, 28, 28), np.arange(7, dtype=np.uint8)
    for part, number in (("train", 7), ("t10k", 3)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images[:number])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels[:number])
    data = FashionMNIST(root=tmp_path).load()
    assert np.array_equal(data.train.inputs.numpy(), images[:, None])
    assert data.train.targets.tolist() == list(range(7))
    assert (len(data.test), data.num_classes, data.classes[0]) == (3, 10, "T-shirt/top")


@pytest.mark.parametrize("settings", [CIFAR10, CIFAR100, FashionMNIST])
def test_torchvision_data_that_is_missing_is_named(settings: type[CIFAR10], tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            ValueError, match=rf"task.data.root = '{root}': .*; allowed is .*, or task.data.download = true"
        ):
            settings(root=root).load()


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    for label, number in classes.items():
        (root / label).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(noise(10, 14, 3) // (index + 1)).save(root / label / f"{index}.png")
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_image_folders_are_cut_to_squares(tmp_path: Path, in_memory: bool) -> None:
    train = write_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    test = write_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    data = ImageFolder(train=train, test=test, size=10, in_memory=in_memory).load()
    inputs, targets = data.train.take([0, 4])
    assert inputs.dtype == torch.uint8
    assert targets.tolist() == [0, 1]
    # 14 by 10 pixels at size 10: nothing is scaled, two columns go on each side.
    for image, path in zip(inputs, (train / "cat/0.png", train / "dog/1.png"), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(path))[:, 2:12])
    assert data.classes == ("cat", "dog")
    assert data.train.labels().tolist() == [0, 0, 0, 1, 1]
    assert data.input_shape == (3, 10, 10)
    assert len(data.normalization.mean) == (3 if in_memory else 0)


def test_image_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 1, "dog": 1})
    other = write_folder(tmp_path / "other", {"cat": 1, "frog": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"task.data.test = .*: its classes are cat, frog; allowed are .*, cat, dog"):
        ImageFolder(train=train, test=other).load()
    with pytest.raises(ValueError, match=r"task.data.train = .*: no such folder"):
        ImageFolder(train=tmp_path / "absent", test=train).load()
    with pytest.raises(ValueError, match=r"task.data.test = .*empty'.*; allowed is a folder with one folder of images"):
        ImageFolder(train=train, test=tmp_path / "empty").load()


# text


def test_text_is_cut_into_samples_that_predict_the_next_character(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    text = "".join(chr(97 + index % 7) for index in range(60)) + "é𝄞" + "x" * 18
    path.write_text(text, encoding="utf-8")
    data = Text(path=path, context=5, test_share=0.25).load()
    assert data.classes == tuple(sorted(set(text)))
    assert data.num_outputs == len(set(text))

    def decoded(codes: torch.Tensor) -> str:
        return "".join(data.classes[code] for code in codes.flatten().tolist())

    assert decoded(data.train.inputs) == text[:55]
    assert decoded(data.train.targets) == text[1:56]
    assert decoded(data.test.inputs) == text[60:75]
    assert decoded(data.test.targets) == text[61:76]
    assert data.train.labels() is None


def test_text_that_does_not_do_is_named(tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\xfa" * 100)
    with pytest.raises(ValueError, match=r"task.data.path = 'absent.txt': no such file"):
        Text(path=Path("absent.txt")).load()
    with pytest.raises(
        ValueError, match=r"task.data.context = 64: the text has 8 characters to train on and 1 to test on"
    ):
        Text(path=short).load()
    with pytest.raises(ValueError, match=r"task.data.path = .*allowed is a UTF-8 text file"):
        Text(path=binary).load()


# the user's own


@pytest.mark.parametrize("given", [lambda f: f, lambda f: f(), lambda f: f"{__name__}:{f.__name__}"])
def test_custom_data_comes_as_factory_as_object_or_as_import_path(given: Callable[[Any], Any]) -> None:
    data = CustomData(train=given(diabetes_train), test=given(diabetes_test)).load()
    assert isinstance(data.train, Samples)
    assert torch.equal(data.train.inputs, diabetes_train().tensors[0].float())
    assert data.train.targets.dtype == torch.float32
    assert (len(data.test), data.num_classes, data.num_outputs) == (100, None, 1)


def test_custom_classes_are_counted_and_images_standardized() -> None:
    data = CustomData(train=Squares, test=Squares()).load()
    assert data.num_classes == 3
    assert data.train.inputs.shape == (4, 3, 4, 5)
    assert data.train.inputs[3, :, 0, 0].tolist() == [30, 1, 2]
    assert data.normalization.mean == pytest.approx((15 / 255, 1 / 255, 2 / 255))
    assert CustomData(train=Squares("L"), test=Squares("L"), num_classes=9).load().num_outputs == 9


def test_custom_data_out_of_memory_is_made_when_it_is_taken() -> None:
    train = Squares()
    data = CustomData(train=train, test=Squares(), in_memory=False).load()
    assert isinstance(data.train, MapSamples)
    assert data.num_classes == 3
    train.made.clear()
    inputs, targets = data.train.take(np.array([2, 0]))
    assert train.made == [2, 0]
    assert targets.tolist() == [2, 0]
    assert torch.equal(inputs, data.train.in_memory().take([2, 0])[0])
    assert data.train.subset([3, 1]).take([1])[1].tolist() == [1]
    hidden = CustomData(train=diabetes_train(), test=diabetes_test(), in_memory=False)
    assert hidden.load().num_classes is None


class NoLength:
    def __getitem__(self, index: int) -> int:
        return index


def test_custom_data_that_does_not_do_is_named() -> None:
    good = Squares()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": NoLength}, "task.data.train: NoLength has no __len__; allowed is a map-style data set"),
        ({"train": 7}, "task.data.train: int has no __len__"),
        ({"test": list}, "task.data.test: it is empty"),
        (
            {"test": [{"image": 1}]},
            "task.data.test: its batches are a dict of image; allowed is what task.data.train has",
        ),
        ({"train": [(1.0, 0)], "in_memory": False}, "task.data.num_classes is empty: allowed where the data set has"),
        (
            {"mean": (0.5,), "std": (1.0,)},
            "task.data.mean = .*: allowed is one for each channel of uint8 images, here 3",
        ),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            CustomData(**{"train": good, "test": good} | settings).load()
    with pytest.raises(ValidationError, match="the module 'absent_module' cannot be imported"):
        CustomData(train="absent_module:data", test=good)


# whole tasks


def test_samples_travel_as_numpy_arrays_that_nobody_may_write_to() -> None:
    """As Ray hands them out: arrays over read-only shared memory."""
    samples = Samples(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(samples, protocol=5, buffer_callback=buffers.append)
    read_only = [memoryview(bytes(buffer.raw())) for buffer in buffers]
    assert len(read_only) == 2
    received = pickle.loads(header, buffers=read_only)
    assert torch.equal(received.inputs, samples.inputs)
    assert torch.equal(received.take([5, 0])[1], torch.tensor([5, 0]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train on one thread: on a busy machine two wait for each other far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(task: Task, num_steps: int, step_size: float) -> tuple[TaskData, dict[str, float], dict[str, float]]:
    """Return the data and the test measures before and after plain SGD."""
    data = task.load()
    model = task.build_model(data, seed=0)
    batches = task.batches(data, np.arange(len(data.train)), batch_size=16, seed=0, agent=0)
    before = task.examine(model, data).values
    for _ in range(num_steps):
        inputs, targets = batches.next()
        model.zero_grad()
        task.loss(model(inputs), targets).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= step_size * parameter.grad
    return data, before, task.examine(model, data).values


@pytest.mark.usefixtures("one_thread")
def test_the_embedded_task_is_learned() -> None:
    _, before, after = trained(Task(), 300, 0.1)
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.85


@pytest.mark.usefixtures("one_thread")
def test_a_regression_is_learned() -> None:
    task = Task(
        data=CustomData(train=diabetes_train, test=diabetes_test),
        model={"name": "mlp", "hidden": (16,), "activation": "tanh"},
        loss="mse",
        metrics=("mae",),
    )
    _, before, after = trained(task, 80, 0.05)
    # The targets have variance 1; linear least squares leaves about half of it.
    assert before["loss"] > 0.9
    assert after["loss"] < 0.65
    assert after["mae"] < before["mae"]


@pytest.mark.usefixtures("one_thread")
def test_a_character_level_language_model_is_learned(tmp_path: Path) -> None:
    """On Python's own language reference, which comes with every Python."""
    from pydoc_data.topics import topics

    path = tmp_path / "reference.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:40_000], encoding="utf-8")
    task = Task(
        data=Text(path=path, context=32),
        model={"name": "char-lm", "width": 32, "layers": 1},
    )
    data, before, after = trained(task, 150, 0.2)
    assert before["loss"] == pytest.approx(np.log(data.num_outputs), abs=0.5)
    assert after["loss"] < before["loss"] - 1
    assert after["accuracy"] > 0.2


@pytest.mark.usefixtures("one_thread")
def test_cifar_is_learned_with_augmentation(cifar_folder: Path) -> None:
    task = Task.model_validate(
        {
            "data": {
                "name": "image-parquet",
                "train": str(cifar_folder / "train.parquet"),
                "test": str(cifar_folder / "test.parquet"),
                "limit": 1000,
                "test_limit": 200,
            },
            "model": {"name": "small-cnn", "channels": [16, 32, 32]},
            "augmentation": {"crop_padding": 4, "flip": True},
        }
    )
    _, before, after = trained(task, 150, 0.1)
    assert after["loss"] < before["loss"] - 0.2
    assert after["accuracy"] > 0.2


def test_measures_that_the_targets_do_not_have_are_refused() -> None:
    data: Data = CustomData(train=diabetes_train, test=diabetes_test)
    with pytest.raises(ValueError, match=r"task.loss = 'cross-entropy': the targets are no classes"):
        Task(data=data).load()
    with pytest.raises(ValueError, match=r"task.metrics = 'accuracy': the targets are no classes"):
        Task(data=data, loss="mse").load()


def test_augmentation_that_does_not_suit_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.augmentation = .*: inputs of shape \(64,\) are no images"):
        Task(augmentation={"flip": True}).load()


def test_metrics_must_have_different_names() -> None:
    with pytest.raises(ValidationError, match=r"metrics = .*: allowed are different names"):
        Task(metrics=("accuracy", "accuracy"))


def test_a_task_survives_its_file() -> None:
    task = Task(
        data=CustomData(train=diabetes_train, test=diabetes_test), model="mlp", loss="mse", metrics=("mse", "mae")
    )
    again = Task.model_validate(task.model_dump(mode="json"))
    assert again.data.train == f"{__name__}:diabetes_train"
    assert torch.equal(again.load().train.inputs, task.load().train.inputs)


class InBatches(Dataset[tuple[torch.Tensor, int]]):
    """Makes several items at once, which fails; one by one they can be made, but for a broken one."""

    def __init__(self, broken: int | None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 9

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        if position == self.broken:
            raise OSError("torn")
        return torch.zeros(3), 0

    def __getitems__(self, positions: list[int]) -> list[tuple[torch.Tensor, int]]:
        raise KeyError("no batch")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (None, r"^samples \[2, 5\] cannot be made together \(KeyError: 'no batch'\)$"),
        (5, r"^sample 5 cannot be made \(OSError: torn\)$"),
    ],
)
def test_what_cannot_be_made_at_once_is_not_made_one_by_one_without_a_word(broken: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MapSamples(InBatches(broken)).take([2, 5])
