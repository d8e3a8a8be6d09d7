"""A little real image data: scikit-learn's digits as 8x8 images."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

_digits = load_digits()
_images = torch.from_numpy(_digits.images[:, None] / 16).float()
_labels = torch.from_numpy(_digits.target)
TRAIN = TensorDataset(_images[:1400], _labels[:1400])
TEST = TensorDataset(_images[1400:], _labels[1400:])
