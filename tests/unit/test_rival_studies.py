"""What the studies of rivals compute by themselves: asynchrony's momentum, stable steps, the adversary, verdicts."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.convergence.problem import Digits
from experiments.rivals import adversary, convex, federated, momentum
from experiments.rivals.momentum_law import (
    CURVATURES,
    DIGITS,
    QUADRATIC,
    Moves,
    as_measured,
    fitted,
    run_of,
    softmax_gradients,
)
from experiments.rivals.paired import compared, points
from experiments.rivals.quadratic import planned, task
from experiments.rivals.stable import LARGEST, converges, largest, radius
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.rules.shared_memory import slowdown


def law(workers: int, step_size: float, updates: int) -> np.ndarray:
    """Return the law's mean weights: ``d_t = (1 - 1/P) d_(t-1) - (a / P) h x_t``, and ``d_0 = - a h x_0``."""
    curvatures = np.array(CURVATURES)
    x = [np.ones(len(curvatures))]
    change = -step_size * curvatures
    for _ in range(updates):
        x.append(x[-1] + change)
        change = (1 - 1 / workers) * change - step_size / workers * curvatures * x[-1]
    return np.stack(x)


@pytest.mark.parametrize("workers", [8, 16])
def test_asynchrony_adds_momentum(workers: int) -> None:
    """Planned runs of the package under ``asgd``; of P workers of exponential times 1 - 1/P, in the mean."""
    step_size = 0.2
    runs = [run_of(QUADRATIC, workers, seed, step_size) for seed in range(40)]
    found = fitted(runs, step_size)
    assert found.momentum == pytest.approx(1 - 1 / workers, abs=0.04)
    assert found.share == pytest.approx(1 / workers, abs=0.04)
    weights = np.stack([run.weights for run in runs])
    expected = law(workers, step_size, weights.shape[1] - 1)
    error = weights.std(0) / math.sqrt(len(runs))
    assert (np.abs(weights.mean(0) - expected) <= 5 * error + 1e-5).all()
    # So many runs are enough to tell it from the law of twice as many workers.
    other = law(2 * workers, step_size, weights.shape[1] - 1)
    assert (np.abs(weights.mean(0) - other) > 5 * error + 1e-5).any()


def test_alone_there_is_no_momentum_and_yellowfin_s_estimate_is_right() -> None:
    runs = [run_of(QUADRATIC, 1, seed, 0.2) for seed in range(20)]
    found = fitted(runs, 0.2)
    assert found.momentum == pytest.approx(0, abs=1e-5)
    assert found.share == pytest.approx(1, abs=1e-5)
    assert as_measured(runs, 0.2) == pytest.approx(0, abs=1e-4)


def test_the_fit_is_not_misled_by_noise_of_the_mean() -> None:
    """Heavy-ball runs whose weights jump besides, which least squares would take for less momentum."""
    draw, curvatures, number = generator(1, "noise"), np.tile(CURVATURES, 100), 200
    x, change = [np.ones((number, len(curvatures)))], np.zeros((number, len(curvatures)))
    for _ in range(30):
        change = 0.6 * change - 0.1 * curvatures * x[-1]
        x.append(x[-1] + change + 0.2 * draw.standard_normal(change.shape))
    runs = [Moves(weights, curvatures * weights[:-1]) for weights in np.stack(x, axis=1)]
    found = fitted(runs, 0.1)
    assert found.momentum_error < 0.03
    assert found.momentum == pytest.approx(0.6, abs=3 * found.momentum_error)
    moves = np.diff(np.stack([run.weights for run in runs]), axis=1).mean(0)
    pulls = -0.1 * np.stack([run.gradients for run in runs]).mean(0)
    columns = np.stack([moves[:-1].ravel(), pulls[1:].ravel()], axis=1)
    plain = np.linalg.lstsq(columns, moves[1:].ravel(), rcond=None)[0]
    assert plain[0] < 0.6 - 5 * found.momentum_error


def test_the_gradients_are_those_of_the_loss() -> None:
    inputs, labels = Digits().tensors
    layer = torch.nn.Linear(64, 10, bias=False).double()
    flat = layer.weight.detach().reshape(-1).numpy()
    torch.nn.functional.cross_entropy(layer(inputs.double()), labels).backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.reshape(-1).numpy()
    np.testing.assert_allclose(softmax_gradients(flat[None])[0], expected, atol=1e-12)
    run = run_of(DIGITS, 1, 3, 0.5)
    # Mini-batches, so not the whole gradient, but along it.
    assert run.weights.shape == (29, 640)
    assert float(np.sum((run.weights[0] - run.weights[1]) * run.gradients[0])) > 0


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("delay", [1, 4])
def test_runs_converge_up_to_the_step_size_that_the_roots_have(delay: int, compensate: bool) -> None:
    most = largest(lambda step: radius(delay, 0.9, compensate, step) < 1, 1e-6)
    assert 0 < most < LARGEST / 2
    assert converges(delay, 0.9, compensate, 0.97 * most, 600)
    assert not converges(delay, 0.9, compensate, 1.03 * most, 600)


def test_the_roots_of_plain_nesterov_are_those_of_its_known_bound() -> None:
    """Without delay it is stable up to ``(2 + 2 a) / (1 + 2 a)``."""
    most = largest(lambda step: radius(0, 0.9, True, step) < 1, 1e-6)
    assert most == pytest.approx((2 + 2 * 0.9) / (1 + 2 * 0.9), rel=1e-5)


def test_halving_the_step_size_each_epoch_repairs_what_the_adversary_does() -> None:
    own = {"repair_delay": 40, "epochs": 4, "starts": [0.2], "seeds": [0]}
    found = adversary.repair(own)
    halved = found[found["steps"] == "halved"]
    assert halved["step_size"].tolist() == [0.2, 0.1, 0.05, 0.025]
    assert (halved["slowdown"] / halved["closed_form"] - 1).abs().max() < 1e-4
    assert halved["slowdown"].iloc[0] > 5
    assert halved["slowdown"].iloc[-1] < 1.1
    constant = found[found["steps"] == "constant"]
    assert (constant["slowdown"] / slowdown(40, 0.2) - 1).abs().max() < 1e-4
    assert halved["left"].iloc[-1] < constant["left"].iloc[-1]


def test_lateness_at_random_is_at_most_the_adversary_s() -> None:
    for kind in (adversary.NONE, adversary.HELD, adversary.SLOW):
        own = adversary.settings_of(kind, 6)
        rows = planned(own | {"num_steps": 200, "step_size": 0.1, "task": task([1.0]), "seed": 3}).schedule
        late = [row.reads[0].staleness for row in rows if row is not None and row.agent == own["num_agents"]]
        assert max(late) == (0 if kind == adversary.NONE else 6)
    drawn = adversary.weights(adversary.DRAWN, 6, 0.01, 40)
    assert drawn[-1] < 1
    assert drawn[1] == pytest.approx(0.99, abs=1e-6)


def of_methods(**excess: tuple[float, ...]) -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, "excess": one}
        for method, values in excess.items()
        for seed, one in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("one", "other", "told", "ratio"),
    [
        ((1.0, 2.0, 4.0), (2.0, 4.4, 8.0), "nearer", 0.484),
        ((2.0, 4.4, 8.0), (1.0, 2.0, 4.0), "farther", 2.065),
        ((1.0, 4.0, 4.0), (2.0, 2.0, 8.0), "cannot be told", 0.794),
        ((1.0,), (2.0,), "cannot be told", 0.5),
        ((1.0, math.nan), (2.0, 2.0), "farther", math.inf),
        ((1.0, 1.0), (2.0, math.nan), "nearer", 0.0),
    ],
)
def test_who_is_nearer_is_told_seed_by_seed(one: Any, other: Any, told: str, ratio: float) -> None:
    found = compared(of_methods(one=one, other=other), "one", "other")
    assert found.told == told
    assert found.ratio == pytest.approx(ratio, abs=1e-3)


def test_of_two_that_diverge_none_is_nearer_and_an_optimum_that_is_reached_is_no_divergence() -> None:
    both = compared(of_methods(one=(1.0, math.nan), other=(math.inf, 2.0)), "one", "other")
    assert (both.told, str(both)) == ("cannot be told", "no number (both diverged)")
    reached = compared(of_methods(one=(0.0, 0.0), other=(1.0, 1.0)), "one", "other")
    assert reached.told == "nearer"
    assert "diverged" not in str(reached)


def test_points_are_paired_by_seed() -> None:
    one, other = (pd.Series(values, index=[1, 2, 3]) for values in ((0.9, 0.8, 0.7), (0.88, 0.78, 0.681)))
    assert points(one, other).mean == pytest.approx(1.967, abs=1e-3)
    assert points(one, other).sign == 1
    assert points(one, other[[3, 2, 1]]).sign == 1
    assert points(other, one).sign == -1
    assert points(one, pd.Series((0.8, 0.9, 0.7), index=[1, 2, 3])).sign == 0
    assert points(one, pd.Series((math.nan, math.nan, math.nan), index=[1, 2, 3])).mean == pytest.approx(80)


def test_fedglomo_s_heading_says_what_it_is_at_equal_gradients_and_at_equal_rounds() -> None:
    def final(gradients: float, rounds: float) -> pd.DataFrame:
        parts = []
        for budget, ratio in ((federated.GRADIENTS, gradients), (federated.ROUNDS, rounds)):
            own = dict.fromkeys(federated.BUDGETS[budget], (1.0, 1.1, 0.9))
            own[federated.FEDGLOMO] = (ratio, 1.12 * ratio, 0.9 * ratio)
            parts.append(of_methods(**own).assign(budget=budget))
        return pd.concat(parts)

    claim = "FedGLOMO nearer the optimum than FedAvg: "
    assert federated.heading(final(2, 0.5)) == (
        f"{claim}does not reproduce at equal numbers of gradients, reproduces at equal numbers of rounds"
    )
    assert federated.heading(final(0.5, 0.5)) == (
        f"{claim}reproduces, at equal numbers of gradients and at equal numbers of rounds"
    )
    assert federated.heading(final(1, 1)).startswith(f"{claim}cannot be told, at equal")
    lines = federated.verdicts(final(2, 0.5)).splitlines()
    assert lines[1].startswith("- Equal gradients: FedGLOMO ends 2.01 (")
    assert lines[1].endswith("times as far above the least as FedAvg: farther.")
    assert "- Equal rounds: FedGLOMO ends 0.503 (" in "\n".join(lines)


def test_methods_of_federated_learning_meet_at_equal_gradients_or_at_equal_rounds() -> None:
    own = {"config": {"num_agents": 10, "local_steps": 10, "batch_size": 8}, "gradients": 1900}
    passes = -(-1797 // 10 // 8)
    assert federated.rounds_of(own, federated.FEDAVG) == 190
    assert federated.rounds_of(own, federated.FEDLOMO) == 1900 // (passes + 18)
    assert federated.rounds_of(own, federated.FEDGLOMO) == 1900 // (2 * (passes + 18))
    assert federated.rounds_of(own, federated.NARROW) == federated.rounds_of(own, federated.FEDGLOMO)
    assert federated.rounds_of(own, federated.FEDGLOMO_BATCH) == 1900 // 38


def test_the_page_of_convex_rivals_says_who_ends_nearer() -> None:
    excess = {convex.ASGD: 2.0, convex.HEAVY: 4.0, convex.AHEAD: 3.0, convex.SVRG: 0.5, convex.KSYNC: 3.01}
    rows = of_methods(**{name: (one, 1.1 * one * (1 + 0.05 * (name == convex.AHEAD))) for name, one in excess.items()})
    text = convex.claims(rows.assign(batch_size=16))
    assert "Mini-batches of 16: AsySVRG nearer the optimum than ASGD: reproduces; its distance is 0.25 (" in text
    assert "compensation nearer the optimum than ASGD: **does not reproduce**; its distance is 1.54 (" in text
    assert "compensation nearer the optimum than K-sync, K = 4: **cannot be told**; its distance is 1.02 (" in text


def test_yellowfin_s_page_says_what_can_be_told() -> None:
    closed, opened = momentum.YELLOWFINS

    def final(of_closed: tuple[float, ...]) -> pd.DataFrame:
        found = {momentum.TUNED: (0.97, 0.98, 0.96), momentum.PLAIN: (0.9, 0.9, 0.9)}
        found |= {closed: of_closed, opened: (0.7, 0.6, 0.65)}
        return pd.DataFrame(
            [
                {"gathering": gathering, "method": method, "seed": seed, "test_accuracy": one}
                for gathering in momentum.GATHERINGS
                for method, values in found.items()
                for seed, one in enumerate(values)
            ]
        )

    assert momentum.claim(final((0.6, 0.7, 0.65))).startswith("What does not reproduce")
    assert momentum.claim(final((0.98, 0.97, 0.96))) == "The claim reproduces"
    assert momentum.claim(final((0.99, 0.2, 0.7))).startswith("What cannot be told")
    text = momentum.verdict(final((0.6, 0.7, 0.65)))
    assert f"- asgd: {closed} against {momentum.TUNED} -32.0 points (standard error 2.6): behind." in text
    assert f"{momentum.TUNED}: K-sync against sync +0.0 points (standard error 0.0): cannot be told." in text
