"""Error feedback: what a sparse wire format has left out of a sender's vectors comes later."""

import torch
from torch import Tensor

from ray_pcasgd.agents.dense_wire import Draw, Format
from ray_pcasgd.base.state import State


class ErrorFeedback:
    """Error feedback of one sender: what a sparse format has left out is added to what is sent next.

    ``m_t = C(u_t + e_t)``, ``e_{t+1} = u_t + e_t - m_t``, so that all that was sent and what is left are all that was
    to be sent (Stich, Cordonnier, Jaggi 2018, arXiv 1809.07599, 'Sparsified SGD with Memory').
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self.left: Tensor | None = None
        """e, shape (D,); ``None`` before anything was left out."""
        self._sent: tuple[int, Tensor] | None = None
        """The version that was encoded last, and as what."""

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return a vector of shape (D,) as it travels; asked twice for a version, the same."""
        version = draw[3]
        if self._sent is None or self._sent[0] != version:
            whole = vector if self.left is None else vector + self.left
            encoded = self._form.encode(whole, draw)
            self.left = whole - self._form.decode(encoded, vector.numel())
            self._sent = version, encoded
        return self._sent[1]

    def state(self) -> State:
        """Return what ``restore`` needs."""
        return {"left": self.left, "sent": None if self._sent is None else list(self._sent)}

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from a state."""
        left, sent = state["left"], state["sent"]
        self.left = None if left is None else left.to(device)
        self._sent = None if sent is None else (int(sent[0]), sent[1].to(device))

    def forget(self) -> None:
        """Begin anew."""
        self.left = self._sent = None
