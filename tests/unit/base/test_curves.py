import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.base.curves import (
    Constant,
    Cosine,
    Curve,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    WarmupStableDecay,
)

NUMBERS = st.floats(-10, 10)
STEPS = st.integers(1, 50)
CURVES = st.one_of(
    st.builds(Constant, value=NUMBERS),
    st.builds(Linear, start=NUMBERS, end=NUMBERS, steps=STEPS),
    st.builds(Cosine, start=NUMBERS, end=NUMBERS, steps=STEPS),
    st.builds(
        MultiStep,
        start=NUMBERS,
        factor=st.floats(0.01, 3.0),
        at_steps=st.sets(STEPS, max_size=4).map(lambda s: tuple(sorted(s))),
    ),
    st.builds(
        WarmupStableDecay,
        value=NUMBERS,
        start=NUMBERS,
        end=NUMBERS,
        warmup=st.integers(0, 9),
        stable=st.integers(0, 9),
        decay=STEPS,
        shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
    ),
    st.builds(
        OneCycle,
        peak=NUMBERS,
        steps=st.integers(2, 50),
        rising=st.floats(0.01, 0.99),
        start_factor=st.floats(0.5, 50),
        end_factor=st.floats(0.5, 50),
        shape=st.sampled_from(["linear", "cosine"]),
    ),
    st.builds(InverseSqrt, peak=st.floats(0, 10), warmup=STEPS),
)


def parse(value: object) -> object:
    return TypeAdapter[Curve](Curve).validate_python(value)


@pytest.mark.parametrize("value", [0.5, 2])
def test_a_bare_number_is_a_constant(value: float) -> None:
    curve = parse(value)
    assert curve == Constant(value=value)
    assert curve.at(0) == curve.at(10**6) == value


def test_curves_are_told_apart_by_name() -> None:
    assert parse({"name": "cosine", "start": 1.0, "steps": 3}) == Cosine(start=1.0, end=0.0, steps=3)
    assert parse({"name": "constant", "value": 3}) == Constant(value=3)


def test_a_line_runs_from_start_to_end_and_stays_there() -> None:
    curve = Linear(start=1.0, end=0.0, steps=4)
    assert [curve.at(step) for step in range(7)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]


def test_a_cosine_falls_by_half_a_wave_and_stays_there() -> None:
    curve = Cosine(start=3.0, end=1.0, steps=4)
    expected = [3.0, 2 + math.sqrt(0.5), 2.0, 2 - math.sqrt(0.5), 1.0, 1.0]
    assert [curve.at(step) for step in range(6)] == pytest.approx(expected)


def test_multi_step_multiplies_from_each_of_its_steps_on() -> None:
    curve = MultiStep(start=8.0, factor=0.5, at_steps=(2, 4))
    assert [curve.at(step) for step in range(6)] == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    assert MultiStep(start=8.0, at_steps=()).at(100) == 8.0


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "rising"), [(40, 0.3), (10, 0.2), (7, 0.5), (9, 0.9)])
def test_one_cycle_is_that_of_torch(steps: int, rising: float, shape: str) -> None:
    curve = OneCycle(peak=0.3, steps=steps, rising=rising, start_factor=10.0, end_factor=50.0, shape=shape)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=steps,
        pct_start=rising,
        anneal_strategy="cos" if shape == "cosine" else "linear",
        div_factor=10.0,
        final_div_factor=50.0,
        cycle_momentum=False,
    )
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        if len(expected) < steps:
            schedule.step()
    assert [curve.at(step) for step in range(steps)] == pytest.approx(expected, rel=1e-9)
    assert curve.at(10**6) == curve.at(steps - 1) == pytest.approx(0.3 / 500)


def test_warmup_stable_decay_is_a_trapezoid() -> None:
    curve = WarmupStableDecay(value=4.0, warmup=2, stable=3, decay=4, end=2.0)
    assert [curve.at(step) for step in range(11)] == [0.0, 2.0, 4.0, 4.0, 4.0, 4.0, 3.5, 3.0, 2.5, 2.0, 2.0]
    wave, root = (curve.model_copy(update={"shape": shape}) for shape in ("cosine", "1-sqrt"))
    assert [wave.at(step) for step in (5, 7, 9)] == pytest.approx([4.0, 3.0, 2.0])
    assert [root.at(step) for step in (5, 6, 9)] == pytest.approx([4.0, 3.0, 2.0])
    assert WarmupStableDecay(value=4.0, start=9.0, warmup=0, stable=0, decay=1).at(0) == 4.0


def test_an_inverse_square_root_rises_to_its_peak_and_falls() -> None:
    curve = InverseSqrt(peak=8.0, warmup=4)
    assert [curve.at(step) for step in (0, 1, 3, 15, 63)] == [2.0, 4.0, 8.0, 4.0, 2.0]


@settings(max_examples=200)
@given(curve=CURVES, step=st.integers(0, 100))
def test_extremes_bound_every_value(curve: Curve, step: int) -> None:
    slack = 1e-9
    assert min(curve.extremes()) - slack <= curve.at(step) <= max(curve.extremes()) + slack


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"name": "linear", "start": 0.0, "end": 1.0, "steps": 0}, "steps"),
        ({"name": "cosine", "start": 0.0, "steps": -1}, "steps"),
        ({"name": "multi-step", "start": 1.0, "at_steps": [4, 2]}, r"at_steps = \[4, 2\]: allowed are rising steps"),
        ({"name": "multi-step", "start": 1.0, "at_steps": [2, 2]}, r"at_steps = \[2, 2\]"),
        ({"name": "multi-step", "start": 1.0, "at_steps": [0]}, r"at_steps = \[0\]"),
        ({"name": "multi-step", "start": 1.0, "factor": 0.0, "at_steps": [1]}, "factor"),
        ({"name": "square", "value": 1.0}, "square"),
        ({"name": "one-cycle", "peak": 1.0, "steps": 1}, "steps"),
        ({"name": "one-cycle", "peak": 1.0, "steps": 9, "rising": 1.0}, "rising"),
        ({"name": "warmup-stable-decay", "value": 1.0, "warmup": 1, "stable": 1, "decay": 0}, "decay"),
        ({"name": "inverse-sqrt", "peak": 1.0, "warmup": 0}, "warmup"),
        ({"name": "constant", "value": math.nan}, "value"),
        ({"name": "constant", "value": 1.0, "end": 2.0}, "end"),
        ("fast", "Curve|valid"),
    ],
)
def test_settings_out_of_range_are_named(value: object, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        parse(value)
