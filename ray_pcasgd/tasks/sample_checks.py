"""Checks of samples that need no model, or only its number of outputs."""

import torch
from torch import Tensor

from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.tasks.samples import AnySamples, Samples
from ray_pcasgd.tasks.task import TaskData


def require_samples(data: TaskData) -> None:
    """Raise ``ValueError`` where samples are missing, or inputs hold numbers that are not finite."""
    for setting, samples in (("train", data.train), ("test", data.test)):
        if len(samples) == 0:
            raise ValueError(f"task.data: there are no {setting} samples; allowed is at least one")
        if isinstance(samples, Samples):
            # Targets that are not finite may be missing ones, of which the user's own loss knows.
            require_finite(f"the input of {setting} sample", samples.inputs)


def require_labels(data: TaskData, number: int, ignored: int) -> None:
    """Raise ``ValueError`` where a label of the train or test samples is not one of the model's ``number`` outputs."""
    for setting, samples in (("train", data.train), ("test", data.test)):
        labels = labels_of(samples)
        if labels is None:
            continue
        wrong = ((labels < 0) | (labels >= number)) & (labels != ignored)
        if wrong.any():
            place = int(wrong.reshape(len(labels), -1).any(1).nonzero()[0])
            label = int(labels[place][wrong[place]].reshape(-1)[0])
            raise ValueError(
                f"task.data: the label of {setting} sample {place} is {label}; allowed are 0 to {number - 1}, of which "
                f"the model's {number} outputs are the scores"
            )


def labels_of(samples: AnySamples) -> Tensor | None:
    """Return all labels that are at hand."""
    if isinstance(samples, Samples):
        return samples.targets if is_integer(samples.targets) else None
    labels = samples.labels()
    return None if labels is None else torch.from_numpy(labels)


def is_integer(values: Tensor) -> bool:
    """Return whether values are numbers of something: neither images nor measurements."""
    return not (values.is_floating_point() or values.is_complex()) and values.dtype not in (torch.bool, torch.uint8)


def require_finite(what: str, values: Tensor) -> None:
    """Raise ``ValueError`` where some numbers are not finite; their place is named after ``what``."""
    if values.is_floating_point() and not is_finite(values):
        place = int((~values.isfinite()).reshape(len(values), -1).any(1).nonzero()[0])
        raise ValueError(f"task.data: {what} {place} has numbers that are not finite; allowed are finite ones")
