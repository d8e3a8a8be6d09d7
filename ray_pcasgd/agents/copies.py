"""Public copies: what all who read an agent know of it, kept alike by itself and by them from differences alone."""

import torch
from torch import Tensor

from ray_pcasgd.agents.dense_wire import Draw, Format
from ray_pcasgd.base.state import State


class PublicCopy:
    """An agent's own: ``x^(t) = x^(t-1) + Q(z(t) - x^(t-1))`` at its version ``z(t)``, shape (D,)."""

    def __init__(self, form: Format, weights: Tensor) -> None:
        self._form = form
        self.weights = weights
        """x^, shape (D,); never written to."""
        self.difference: Tensor | None = None
        """Q(z - x^) of the present version, as it travels; ``None`` where the copy itself has to."""

    def begin(self, weights: Tensor) -> None:
        """Be the weights themselves, which nobody knows yet."""
        self.weights, self.difference = weights, None

    def follow(self, weights: Tensor, draw: Draw) -> None:
        """Come to the next version, as near to its weights as the format allows."""
        self.difference = self._form.encode(weights - self.weights, draw)
        self.weights = self.weights + self._form.decode(self.difference, weights.numel())


class HeldCopies:
    """Those of an agent's neighbors, as far as their messages were taken in; to the bit what their agents have."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._held: dict[int, tuple[int, Tensor]] = {}

    def version(self, neighbor: int) -> int:
        """Return the version at which a neighbor's copy is; -1 where there is none."""
        return self._held[neighbor][0] if neighbor in self._held else -1

    def weights(self, neighbor: int) -> Tensor:
        """Return a neighbor's copy, shape (D,)."""
        return self._held[neighbor][1]

    def put(self, neighbor: int, version: int, weights: Tensor) -> None:
        """Take in a whole copy, whatever was known before."""
        self._held[neighbor] = version, weights

    def add(self, neighbor: int, version: int, difference: Tensor) -> None:
        """Take in the difference that leads to a version.

        Raises:
            ValueError: the copy is not at the version before, or the difference is damaged; the copy stays as it is.

        """
        held = self.version(neighbor)
        if held != version - 1:
            known = f"version {held}" if held >= 0 else "no version"
            raise ValueError(f"it differs from version {version - 1}, and {known} is known; allowed is that one")
        weights = self.weights(neighbor)
        # Out of place, since others may still look at the copy as it was.
        self.put(neighbor, version, weights + self._form.opened("difference", difference, weights.numel()))

    def state(self) -> State:
        """Return what ``restore`` needs."""
        return {"versions": {k: held[0] for k, held in self._held.items()},
                "weights": {k: held[1] for k, held in self._held.items()}}  # fmt: skip

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from a state."""
        weights = state["weights"]
        self._held = {k: (version, weights[k].to(device)) for k, version in state["versions"].items()}
