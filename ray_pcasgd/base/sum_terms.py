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

    def check(self) -> None:
        """Raise ``ValueError`` where there are not as many of the one as of the other."""
        read = {"directions": self.directions} | ({} if self.bends is None else {"drifts": self.drifts})
        for name, given in read.items():
            if len(given) != self.rates.shape[1]:
                raise ValueError(f"there are {len(given)} {name} for {self.rates.shape[1]} rates; allowed are as many")
