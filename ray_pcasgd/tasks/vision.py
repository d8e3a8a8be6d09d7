"""Image data sets through torchvision, which takes seconds to import: only when they are loaded."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator

from ray_pcasgd.base.settings import refuse_of_strangers
from ray_pcasgd.tasks.images import Standardized, channels_first
from ray_pcasgd.tasks.samples import MapSamples, Samples, TaskData


class _Downloadable(Standardized):
    """A data set that torchvision knows where to get."""

    torchvision_name: ClassVar[str]

    root: Path = Path("data")
    """The folder that holds the data set in torchvision's form."""
    download: bool = False
    """Whether to download it where the folder does not hold it."""

    @field_validator("download")
    @classmethod
    def _own(cls, value: bool, info: ValidationInfo) -> bool:
        if value:
            refuse_of_strangers(value, "it writes to task.data.root", info)
        return value

    def load(self) -> TaskData:
        """Return the data set.

        Raises:
            ValueError: The folder does not hold it, and it is not to be downloaded.

        """
        from torchvision import datasets

        dataset = getattr(datasets, self.torchvision_name)
        if not self.download and not self.root.is_dir():
            raise ValueError(self._missing("no such folder"))
        try:
            train, test = (dataset(str(self.root), train=part, download=self.download) for part in (True, False))
        except (RuntimeError, OSError) as error:
            raise ValueError(self._missing(str(error).splitlines()[0])) from error
        return self.task_data(_samples(train), _samples(test), len(train.classes), tuple(train.classes))

    def _missing(self, reason: str) -> str:
        return (
            f"task.data.root = {str(self.root)!r}: {reason}; allowed is a folder that holds torchvision's "
            f"{self.torchvision_name}, or task.data.download = true"
        )


class CIFAR10(_Downloadable):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 color images of 32x32 pixels, 10 classes."""

    torchvision_name = "CIFAR10"
    name: Literal["cifar10"] = "cifar10"


class CIFAR100(_Downloadable):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 color images of 32x32 pixels, 100 classes."""

    torchvision_name = "CIFAR100"
    name: Literal["cifar100"] = "cifar100"


class FashionMNIST(_Downloadable):
    """FashionMNIST (Xiao et al. 2017): 60,000 and 10,000 gray images of 28x28 pixels, 10 classes."""

    torchvision_name = "FashionMNIST"
    name: Literal["fashion-mnist"] = "fashion-mnist"


class ImageFolder(Standardized):
    """Folders of image files, one folder a class; images are resized and their middle is cut out as a square."""

    name: Literal["image-folder"] = "image-folder"
    train: Path
    """The folder whose folders hold the training images."""
    test: Path
    """The same for the images that are tested on, with the same names of classes."""
    size: int = Field(64, ge=1, le=10_000)
    """Height and width of the images in pixels."""
    in_memory: bool = True
    """Whether all images are decoded once and kept; if not, each is decoded whenever it is drawn."""

    def load(self) -> TaskData:
        """Return the data set.

        Raises:
            ValueError: A folder is missing, holds no images, or the two hold other classes.

        """
        train, test = self._dataset("train"), self._dataset("test")
        if train.classes != test.classes:
            raise ValueError(
                f"task.data.test = {str(self.test)!r}: its classes are {', '.join(test.classes)}; "
                f"allowed are those of task.data.train, {', '.join(train.classes)}"
            )
        samples = [MapSamples(dataset) for dataset in (train, test)]
        first, second = [part.in_memory() for part in samples] if self.in_memory else samples
        return self.task_data(first, second, len(train.classes), tuple(train.classes))

    def _dataset(self, setting: str) -> Any:
        from torchvision import datasets
        from torchvision.transforms import v2

        folder: Path = getattr(self, setting)
        allowed = "allowed is a folder with one folder of images for each class"
        if not folder.is_dir():
            raise ValueError(f"task.data.{setting} = {str(folder)!r}: no such folder; {allowed}")
        transform = v2.Compose([v2.Resize(self.size), v2.CenterCrop(self.size)])
        try:
            return datasets.ImageFolder(str(folder), transform=transform)
        except FileNotFoundError as error:
            raise ValueError(f"task.data.{setting} = {str(folder)!r}: {error}; {allowed}") from error


def _samples(dataset: Any) -> Samples:
    images = channels_first(np.asarray(dataset.data))
    return Samples(images, torch.as_tensor(dataset.targets, dtype=torch.int64))
