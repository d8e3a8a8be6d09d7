"""The factor that keeps the small gradients of fp16 above 0: that of ``torch.amp.GradScaler``, as a value."""

from typing import NamedTuple

_GROWTH_STEPS = 2000


class LossScale(NamedTuple):
    """By what a loss is multiplied before its backward pass, and its gradient divided after it.

    It is halved where a scaled gradient is not finite, and doubled after 2000 steps one after another whose gradients
    were: the defaults of ``torch.amp.GradScaler``.
    """

    factor: float = 65536.0
    """A power of two, so that it changes the digits of no gradient that is large enough."""
    steady_steps: int = 0
    """Steps with finite gradients since the factor changed."""

    @property
    def may_shrink(self) -> bool:
        """Whether a gradient that is not finite may be one by the factor alone.

        **Choice**: down to 1, below which ``GradScaler`` goes on halving without end. What is not finite at 1 is a
        gradient that is not finite, and is treated as with any other precision.
        """
        return self.factor > 1

    def following(self, is_finite: bool) -> "LossScale":
        """Return the scale of the next step, by whether the gradient of this one was finite."""
        if not is_finite:
            return LossScale(self.factor / 2)
        if self.steady_steps + 1 < _GROWTH_STEPS:
            return LossScale(self.factor, self.steady_steps + 1)
        return LossScale(self.factor * 2)
