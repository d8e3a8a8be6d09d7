"""What is taken from weighted sums, whoever computes them: in C, by PyTorch's operations, or on a GPU."""

from typing import NamedTuple

from torch import Tensor

from ray_pcasgd.base.numerics import Vectors


class Prediction(NamedTuple):
    """What is taken from each of B sums: ``theta_b sum_k d_k (rate_rk + bend_rk d_k h_k)``, r the place of b.

    A neighbor whose rate is 0 adds nothing.
    """

    directions: Vectors
    """d_k, K vectors of shape (D,)."""
    drifts: Vectors
    """h_k, K vectors of shape (D,)."""
    rates: Tensor
    """Shape (R, K)."""
    bends: Tensor | None
    """Shape (R, K); ``None`` for zeros, with which the drifts are not read."""
    thetas: Tensor
    """Shape (B,); where it is 0, nothing is taken, whatever the rest comes to."""
    places: tuple[int, ...]
    """Of each sum the row of the rates."""
