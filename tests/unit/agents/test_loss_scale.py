"""The scale of fp16's losses: the arithmetic of ``torch.amp.GradScaler``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.loss_scale import LossScale


class Reference:
    """What ``GradScaler.update`` calls, with its default numbers."""

    def __init__(self, factor: float, steady_steps: int) -> None:
        self.factor, self.steady = torch.tensor([factor]), torch.tensor([steady_steps], dtype=torch.int32)

    def follow(self, is_finite: bool) -> tuple[float, int]:
        torch._amp_update_scale_(self.factor, self.steady, torch.tensor([float(not is_finite)]), 2.0, 0.5, 2000)
        return float(self.factor), int(self.steady)


@given(
    st.integers(0, 40).map(lambda exponent: 2.0**exponent),
    st.integers(0, 1999),
    st.lists(st.tuples(st.integers(1, 2500), st.integers(1, 3)), max_size=3),
)
def test_it_follows_torchs_scale(factor: float, steady_steps: int, runs: list[tuple[int, int]]) -> None:
    scale, reference = LossScale(factor, steady_steps), Reference(factor, steady_steps)
    for number_finite, number_not in runs:
        for is_finite in [True] * number_finite + [False] * number_not:
            scale = scale.following(is_finite)
            assert scale == reference.follow(is_finite)


def test_its_start_is_torchs_and_it_shrinks_to_one() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert LossScale().factor == scaler.get_scale()
    assert scaler.get_growth_interval() == 2000
    scale, halvings = LossScale(), 0
    while scale.may_shrink:
        scale, halvings = scale.following(False), halvings + 1
    assert scale == LossScale(1.0)
    assert halvings == pytest.approx(16)
