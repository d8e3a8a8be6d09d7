"""The study of ASGD's rivals: its search, what its servers take, where methods settle, and what its pages say."""

import heapq
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.convergence.problem import CLASSES, Digits, optimum, squared_error
from experiments.differences import Difference, difference, quantile
from experiments.rivals import bias, claims, pairs, search
from experiments.rivals.noise import NOISES
from experiments.rivals.page import NEAR, bias_section, write_page
from experiments.rivals.study import HERE, METHODS, SHARDS, job, progress
from experiments.running import Job, settings_of

SPEEDS = (1.0, 1.7123457, 3.1234568, 7.3456789, 11.1357913)
"""No two workers finish at the same moment."""
CHOICE = search.Choice(("shards", "method"), "test_loss")
OWN = {"step_sizes": [0.1, 0.2], "tuning_seeds": [0, 11]}


def as_if_measured(jobs: Iterable[Job], storage: Path, processes: int) -> pd.DataFrame:
    """Return a loss that is least at a step size of 0.8 with alike shards, and of 0.05 with skewed ones."""
    rows = [dict(job.labels) for job in jobs]
    best = dict(zip(SHARDS, (0.8, 0.05), strict=True))
    return pd.DataFrame([row | {"test_loss": abs(math.log(row["step_size"] / best[row["shards"]]))} for row in rows])


def searched(monkeypatch: pytest.MonkeyPatch, widenings: int) -> pd.DataFrame:
    monkeypatch.setattr(search, "measured", as_if_measured)
    settings = settings_of(HERE, "smoke")
    cases = [(shards, "sync SGD") for shards in SHARDS]

    def one(*case: Any) -> Job:
        return job(settings, *case)

    return search.search(one, cases, CHOICE, OWN | {"widenings": widenings}, Path("runs"), 1)


def test_a_search_goes_on_until_no_choice_is_at_an_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = searched(monkeypatch, 5)
    alike, skewed = SHARDS
    assert sorted(runs.loc[runs["shards"] == alike, "step_size"].unique()) == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert sorted(runs.loc[runs["shards"] == skewed, "step_size"].unique()) == [0.025, 0.05, 0.1, 0.2]
    assert set(runs.groupby(["shards", "step_size"])["seed"].apply(tuple)) == {(0, 11)}
    assert CHOICE.chosen(runs) == {(alike, "sync SGD"): 0.8, (skewed, "sync SGD"): 0.05}
    assert CHOICE.table(runs).startswith("No choice is at an edge of what was tried.\n")
    assert "| – |" in CHOICE.table(runs)


def test_a_search_that_ends_before_says_who_is_at_an_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = searched(monkeypatch, 2)
    alike, skewed = SHARDS
    assert CHOICE.beyond(runs) == [((alike, "sync SGD"), 1.6)]
    assert CHOICE.table(runs).startswith(f"At an edge of what was tried: {alike}, sync SGD.\n")
    assert skewed in CHOICE.table(runs)


def test_a_step_size_with_which_one_seed_diverges_is_not_chosen() -> None:
    losses = {0.1: (0.5, 0.5), 0.2: (0.1, float("nan")), 0.4: (0.9, 0.9)}
    rows = [
        {"shards": "alike", "method": "ASGD", "step_size": step, "test_loss": loss}
        for step, found in losses.items()
        for loss in found
    ]
    assert CHOICE.chosen(pd.DataFrame(rows)) == {("alike", "ASGD"): 0.1}


def arrivals(updates: int) -> Iterable[tuple[int, int]]:
    """Yield who delivers under ASGD, and how many updates late, as written from its definition."""
    heap = [(seconds, worker, 0) for worker, seconds in enumerate(SPEEDS)]
    for version in range(updates):
        now, worker, begun = heapq.heappop(heap)
        yield worker, version - begun
        heapq.heappush(heap, (now + SPEEDS[worker], worker, version + 1))


@pytest.mark.parametrize(
    ("method", "weight"),
    [
        ("ASGD", lambda tau: 1.0),
        ("ASGD, polynomial", lambda tau: (1 + tau) ** -0.5),
        ("ASGD, hinge", lambda tau: 1.0 if tau <= 6 else 1 / (10 * (tau - 6) + 1)),
        ("ASGD, exponential", lambda tau: math.exp(-0.2 * tau)),
    ],
)
def test_a_worker_counts_by_how_often_and_how_late_it_delivers(method: str, weight: Any) -> None:
    expected = [0.0] * len(SPEEDS)
    for worker, tau in arrivals(300):
        expected[worker] += weight(tau) / 300
    done = progress(method, SPEEDS, updates=300)
    assert done.updates == 300
    assert done.taken == 300 // len(SPEEDS)
    assert done.pulls == pytest.approx(expected, rel=1e-6)


def test_a_server_that_waits_for_the_first_four_never_takes_the_fifth_and_one_that_waits_for_all_takes_them_alike() -> (
    None
):
    assert progress("K-sync, K = 4", SPEEDS, seconds=100).pulls == (0.25,) * 4 + (0.0,)
    assert progress("K-sync, K = 4", SPEEDS, seconds=100).updates == int(100 / SPEEDS[3])
    for method in ("sync SGD", "Malenia", "Ringleader", "IA2SGD"):
        assert progress(method, SPEEDS, seconds=100).pulls == pytest.approx((0.2,) * 5)
    assert progress("sync SGD", SPEEDS, seconds=100)[:2] == (int(100 / SPEEDS[4]),) * 2
    assert progress("sync SGD", SPEEDS, seconds=1).taken == 1  # a run has a step


SHARD_ROWS = (np.arange(0, 500), np.arange(500, 600), np.arange(600, 1797))


def test_the_minimum_of_the_plain_mean_is_that_of_the_convergence_study() -> None:
    torch.testing.assert_close(
        bias.minimum(SHARD_ROWS, [1 / 3] * 3, 0.1), optimum("least squares", SHARD_ROWS, 0.1).weights
    )


def test_the_gradient_of_the_weighted_losses_is_zero_at_their_minimum() -> None:
    pulls = (0.7, 0.05, 0.1)
    weights = bias.minimum(SHARD_ROWS, pulls, 0.1).requires_grad_()
    matrix, shift = weights[:-CLASSES].view(CLASSES, -1), weights[-CLASSES:]
    inputs, labels = Digits().tensors
    objective = 0.05 * weights.square().sum()
    for pull, rows in zip(pulls, SHARD_ROWS, strict=True):
        objective = objective + pull * squared_error(inputs[rows].double() @ matrix.T + shift, labels[rows])
    (gradient,) = torch.autograd.grad(objective, weights)
    assert gradient.norm() < 1e-10


@pytest.mark.parametrize(("method", "near", "far"), [("ASGD", "paced", "plain"), ("IA2SGD", "plain", "paced")])
def test_asgd_settles_where_fast_workers_want_it_and_ia2sgd_at_the_plain_mean(method: str, near: str, far: str) -> None:
    own = settings_of(HERE, "smoke")["bias"] | {"movement": 16}
    own["config"]["optimizer"] = {"weight_decay": 0.5}  # so that it settles soon
    found = bias.settled(own, method, 1)
    assert found[near] < 0.3
    assert found[far] > 0.8
    assert found["own"] == pytest.approx(found[near], abs=0.1)


@pytest.mark.parametrize(
    ("values", "sign"),
    [((1.0, 1.1, 0.9), 1), ((-1.0, -1.1, -0.9), -1), ((1.0, -0.5, 0.2), 0), ((5.0,), 0), ((0.0, 0.0), 0)],
)
def test_a_difference_is_told_where_student_s_interval_leaves_zero_out(values: tuple[float, ...], sign: int) -> None:
    found = difference(values)
    assert found.sign == sign
    assert found.mean == pytest.approx(np.mean(values))
    if len(values) > 1:
        assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    assert [round(quantile(count), 3) for count in (1, 2, 3, 5)] == [math.inf, 12.706, 4.303, 2.776]


def told(seconds: int, accuracy: int) -> bool:
    differences = (Difference(1.0 * sign, 0.1, sign) for sign in (seconds, accuracy))
    return claims.Verdict("alike", "ASGD", "sync SGD", *differences).reproduces


def test_a_claim_reproduces_where_one_measure_is_for_it_and_none_against() -> None:
    assert told(-1, 0)
    assert told(0, 1)
    assert told(-1, 1)
    assert not any(told(seconds, accuracy) for seconds in (0, 1) for accuracy in (-1, 0))
    assert not told(-1, -1)
    assert not told(1, 1)


def write_results(folder: Path, seeds: tuple[int, ...]) -> None:
    """Write results of runs of which each method's is the better the earlier it stands in ``METHODS``."""
    finals, searched, curves = [], [], []
    for place, (shards, method) in enumerate((shards, method) for shards in SHARDS for method in METHODS):
        labels = {"shards": shards, "method": method, "updates": 9, "taken": 3}
        for step in (0.1, 0.2, 0.4):
            loss = abs(step - 0.2)
            searched.append(labels | {"step_size": step, "seed": 0, "validates": True, "test_loss": loss})
        for seed in seeds:
            end = 0.98 - 0.005 * (place % len(METHODS)) + 0.001 * seed
            run = {"step_size": 0.2, "seed": seed, "validates": False, "test_loss": 0.3, "test_accuracy": end}
            finals.append(labels | run)
            for seconds, share in ((100.0, 0.9), (200.0, 0.95), (400.0, 1.0)):
                curve = {"seconds": seconds, "test_accuracy": share * end, "test_loss": 0.3}
                curves.append({"shards": shards, "method": method, "seed": seed} | curve)
    pd.DataFrame(searched + finals).to_parquet(folder / "results.parquet")
    pd.DataFrame(curves).to_parquet(folder / "curves.parquet")
    apart = {"Malenia": 0.0, "Ringleader": 0.01, "IA2SGD": 0.02, "ASGD": 1.0}
    rows = [
        {"method": method, "seed": seed, "seconds": 10.0, "slow_half": 0.1, "own": 0.01, "step_size": 0.1, "updates": 9}
        | {"plain": apart.get(method, 0.6), "paced": 1 - apart.get(method, 0.6)}
        for method in METHODS
        for seed in seeds
    ]
    pd.DataFrame(rows).to_parquet(folder / "bias.parquet")


def test_the_page_says_first_what_does_not_reproduce(tmp_path: Path) -> None:
    settings = settings_of(HERE, "cpu")
    write_results(tmp_path, tuple(settings["seeds"]))
    write_page(settings, tmp_path, "cpu")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    first, second = text.index("## What does not reproduce"), text.index("## What reproduces")
    assert first < second
    assert first < text.index("| alike | ASGD before sync SGD | +") < second
    assert second < text.index("| alike | Ringmaster, R = 8 before Rennala, K = 8 | -")
    assert "No choice is at an edge of what was tried." in text
    assert (tmp_path / "accuracy.svg").stat().st_size > 1000
    assert "It reproduces." in text


def test_the_section_on_the_bias_says_whom_it_is_not_so_for(tmp_path: Path) -> None:
    write_results(tmp_path, (1, 2))
    frame = pd.read_parquet(tmp_path / "bias.parquet")
    frame.loc[frame["method"] == "IA2SGD", "plain"] = 2 * NEAR
    text = bias_section(settings_of(HERE, "cpu"), frame)
    assert "**It does not reproduce for IA2SGD.**" in text
    assert "- At that of the losses weighted by pace: ASGD.\n" in text


def test_the_page_of_pairs_says_where_a2cid2_is_not_as_good_as_twice_the_rate() -> None:
    accuracies = {"AD-PSGD": (0.80, 0.81), "AD-PSGD, twice the rate": (0.90, 0.91), "A2CiD2": (0.85, 0.862)}
    rows = [
        {"agents": agents, "shards": "alike", "method": method, "seed": seed}
        | {"agents_mean_test_accuracy": value + 0.1 * (agents == 32 and method == "A2CiD2")}
        for agents in (16, 32)
        for method, found in accuracies.items()
        for seed, value in enumerate(found)
    ]
    (not_so, line), (so, _) = pairs.of_digits(pd.DataFrame(rows))
    assert (not_so, so) == (-1, 1)
    assert line == (
        "Digits, 16 agents, shards alike: 85.6 % with A2CiD2; -4.9 (0.1) against 90.5 % at twice the rate, behind; "
        "+5.1 (0.1) against 80.5 % at once, ahead."
    )


def test_noise_is_compared_seed_by_seed() -> None:
    distances = {"AD-PSGD": (4.0, 8.0), "AD-PSGD, twice the rate": (1.0, 2.0), "A2CiD2": (2.0, 4.0)}
    rows = [
        {"agents": 16, "noise": noise, "method": method, "seed": seed, "distance": value}
        for noise in NOISES
        for method, found in distances.items()
        for seed, value in enumerate(found)
    ]
    told, line = next(pairs.of_noise(pd.DataFrame(rows)))
    assert told == -1
    assert line == (
        "Noise alone, white, 16 agents: 2.00 (further apart) of the squared distance at twice the rate, 0.50 (nearer) "
        "of that at once."
    )
