"""The runtime theory: known figures, integration against closed forms, and the planner against both."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ray_pcasgd.report.theory_page import check_theory, theory_table, write_theory
from ray_pcasgd.rules.gathering import ASGD, AdaSync, Gathering, KAsync, KBatchAsync, KBatchSync, KSync, NSoftsync, Sync
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.law_base import BaseLaw, Sampler
from ray_pcasgd.schedule.laws import (
    ConstantLaw,
    Exponential,
    Law,
    LogNormal,
    Outage,
    Pareto,
    ShiftedExponential,
    UniformLaw,
)
from ray_pcasgd.schedule.runtime_theory import (
    Bound,
    error_bound,
    integrated_order_statistic,
    mean_staleness,
    order_statistic,
    plan_updates,
    seconds_per_update,
    speed_up,
)
from ray_pcasgd.schedule.scheduler import waits_for_losses
from tests.speed import slow_unless
from tests.unit.schedule.test_plan_servers import planner

EXPONENTIAL, SHIFTED, PARETO = Exponential(mean=1), ShiftedExponential(shift=1, mean=1), Pareto(shape=2.5, scale=1)


@pytest.mark.parametrize(("law", "expected"), [(EXPONENTIAL, 21.7), (SHIFTED, 14.9), (Pareto(shape=2, scale=1), 20.4)])
def test_the_speed_up_of_async_over_sync_has_its_known_values(law: Law, expected: float) -> None:
    assert speed_up(law, 8) == pytest.approx(expected, abs=0.05)


@given(
    law=st.sampled_from([EXPONENTIAL, SHIFTED, PARETO, Pareto(shape=3, scale=0.5), UniformLaw(low=1, high=3)]),
    num_workers=st.integers(1, 16),
    data=st.data(),
)
def test_closed_forms_equal_numerical_integration(law: Law, num_workers: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_workers))
    assert integrated_order_statistic(law, k, num_workers) == pytest.approx(
        order_statistic(law, k, num_workers), rel=2e-3
    )


def test_order_statistics_against_samples() -> None:
    """Of a law that has no closed form; four standard errors."""
    draws = np.sort(np.random.default_rng(0).lognormal(math.log(2.0), 0.7, (40_000, 8)), axis=1)
    for k in range(1, 9):
        error = draws[:, k - 1].std() / math.sqrt(len(draws))
        assert abs(order_statistic(LogNormal(median=2.0, sigma=0.7), k, 8) - draws[:, k - 1].mean()) < 4 * error


def test_what_has_no_finite_mean_is_infinite() -> None:
    assert order_statistic(Pareto(shape=1.0, scale=1.0), 8, 8) == math.inf
    assert order_statistic(Pareto(shape=1.0, scale=1.0), 7, 8) < math.inf


def k_batches_by_simulation(law: BaseLaw, k: int, num_workers: int, rounds: int) -> tuple[float, float]:
    """Return mean and standard error of the time until P fresh workers have finished K mini-batches between them."""
    draw = law.sampler(np.random.default_rng(1))
    results = []
    for _ in range(rounds):
        ends = [draw(0.0) for _ in range(num_workers)]
        for _ in range(k):
            first = min(range(num_workers), key=ends.__getitem__)
            now = ends[first]
            ends[first] += draw(0.0)
        results.append(now)
    return float(np.mean(results)), float(np.std(results) / math.sqrt(rounds))


@pytest.mark.parametrize("law", [EXPONENTIAL, SHIFTED, PARETO, UniformLaw(low=0.5, high=1.5)], ids=lambda law: law.name)
@pytest.mark.parametrize("k", [1, 5, 8])
def test_k_batch_sync_against_samples(law: Law, k: int) -> None:
    mean, error = k_batches_by_simulation(law, k, 8, 3000)
    assert abs(seconds_per_update(KBatchSync(k=k), law, 8).seconds - mean) < 4 * error


POLICIES = {"k-sync": KSync, "k-batch-sync": KBatchSync, "k-batch-async": KBatchAsync}


@pytest.mark.parametrize("num_workers", [8, slow_unless(False, 16)])
@pytest.mark.parametrize("law", [EXPONENTIAL, SHIFTED], ids=["exponential", "shifted"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_planner_agrees_with_the_theory_within_two_percent(name: str, law: Law, num_workers: int) -> None:
    """For K of a fast, a middle and a slow update here; experiments/runtime_theory has each of them."""
    for k in (2, num_workers // 2 + 1, num_workers - 2 if num_workers > 8 else num_workers):
        gathering = POLICIES[name](k=k)
        planned = plan_updates(gathering, law, num_workers, 24_000 // (k * num_workers) * 4)
        expected = seconds_per_update(gathering, law, num_workers)
        assert expected.kind == "exact"
        # The sample's own error is part of what is seen: two percent, or three standard errors where those are more.
        assert abs(planned.seconds / expected.seconds - 1) < max(0.02, 3 * planned.deviation / expected.seconds), k


@pytest.mark.parametrize("k", [1, 4, 8])
def test_pareto_k_sync_agrees_with_numerical_integration_within_the_sample_s_error(k: int) -> None:
    planned = plan_updates(KSync(k=k), PARETO, 8, 3000)
    assert abs(planned.seconds - integrated_order_statistic(PARETO, k, 8)) < 3.5 * planned.deviation


def test_k_async_is_exact_for_the_memoryless_law_and_bounded_for_others() -> None:
    exact, bounded = (seconds_per_update(KAsync(k=4), law, 8) for law in (EXPONENTIAL, SHIFTED))
    assert (exact.kind, bounded.kind) == ("exact", "at most")
    assert plan_updates(KAsync(k=4), EXPONENTIAL, 8, 8000).seconds == pytest.approx(exact.seconds, rel=0.02)
    assert plan_updates(KAsync(k=4), SHIFTED, 8, 2000).seconds < bounded.seconds


@pytest.mark.parametrize(
    "gathering",
    [ASGD(), KAsync(k=2), KAsync(k=8), KBatchAsync(k=2), KBatchAsync(k=3), NSoftsync(n=4), Sync(), KSync(k=3)],
    ids=str,
)
@pytest.mark.parametrize("law", [EXPONENTIAL, SHIFTED, PARETO], ids=["exponential", "shifted", "pareto"])
def test_the_mean_staleness_is_that_of_the_theory_whatever_the_law(gathering: Gathering, law: Law) -> None:
    planned = plan_updates(gathering, law, 8, 2000)
    assert planned.staleness.mean() == pytest.approx(mean_staleness(gathering, 8), rel=0.01, abs=1e-9)


def test_other_policies_are_cases_of_these() -> None:
    assert seconds_per_update(ASGD(), SHIFTED, 8).seconds == 2 / 8
    assert seconds_per_update(NSoftsync(n=2), SHIFTED, 8) == seconds_per_update(KBatchAsync(k=4), SHIFTED, 8)
    assert seconds_per_update(Sync(), PARETO, 8) == seconds_per_update(KSync(k=8), PARETO, 8)
    adaptive = AdaSync(base="k-sync", every_seconds=1)
    assert seconds_per_update(adaptive, SHIFTED, 8, k=5) == seconds_per_update(KSync(k=5), SHIFTED, 8)
    assert seconds_per_update(KBatchSync(k=9), ConstantLaw(value=2.0), 8).seconds == 4.0


def test_the_error_bound_falls_with_time_to_a_floor_that_falls_with_k() -> None:
    time = np.array([1.0, 10.0, 1e9])
    few, many = (error_bound(Bound(), k, 1.0, 1.0, time) for k in (1, 8))
    assert (np.diff(few) < 0).all()
    assert few[-1] == pytest.approx(0.1, rel=1e-5)
    assert many[-1] == pytest.approx(0.1 / 8, rel=1e-4)
    stale = error_bound(Bound(staleness_penalty=0.5), 1, 1.0, 0.2, time)
    assert stale == pytest.approx(few / 0.6)


def test_table_and_picture_are_written(tmp_path: Path) -> None:
    table = theory_table(EXPONENTIAL, 4, 200)
    paths = write_theory(table, 4, tmp_path, Bound())
    assert [path.name for path in paths] == ["theory.parquet", "theory.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert set(table["policy"]) == {"sync", "asgd", "k-sync", "k-batch-sync", "k-async", "k-batch-async"}


@pytest.mark.parametrize(
    "law", [ConstantLaw(value=2.0), UniformLaw(low=2, high=2), LogNormal(median=2, sigma=0)], ids=lambda law: law.name
)
def test_a_law_of_one_value_has_it_as_its_mean(law: Law) -> None:
    """And the planner takes as long as the theory says, where that is exact."""
    assert [order_statistic(law, k, 8) for k in (1, 4, 8)] == [2.0, 2.0, 2.0]
    table = theory_table(law, 4, 400)
    exact = table[table["kind"] == "exact"]
    np.testing.assert_allclose(exact["ratio"], 1.0, rtol=0.01)
    assert set(table["kind"]) == {"exact", "at most"}
    assert (table["ratio"] < 1.01).all()


def test_a_file_of_equal_values_is_a_law_of_one_value(tmp_path: Path) -> None:
    (tmp_path / "delays.csv").write_text("delay\n3\n3\n")
    law = load_config(None, [f"compute.law={{name: measured, path: {tmp_path}/delays.csv}}"]).compute.law
    assert seconds_per_update(KBatchSync(k=5), law, 4).seconds == 6.0


@pytest.mark.parametrize(
    "assignment",
    [
        "compute.law=0",
        "compute.law=uniform(0, 0)",
        "compute.law=pareto(1, 1)",
        "compute.law=outage(1, 1)",
        "compute.stragglers={1: 2.0}",
    ],
)
def test_laws_of_which_the_theory_says_nothing_are_refused(assignment: str) -> None:
    with pytest.raises(SettingsError, match=r"^compute"):
        check_theory(load_config(None, [assignment]))


class Gamma(BaseLaw):
    """A law of the user's own."""

    name: Literal["gamma"] = "gamma"
    shape: float

    def sampler(self, random: np.random.Generator) -> Sampler:
        return lambda _: float(random.gamma(self.shape))

    def expectation(self) -> float:
        return self.shape

    def theory_distribution(self) -> Any:
        return stats.gamma(self.shape)


class Unknown(Gamma):
    def theory_distribution(self) -> Any:
        return BaseLaw.theory_distribution(self)


class HalfBatches(Gathering):
    """A policy of the user's own: ``KBatchAsync`` with half as many gradients as workers."""

    name: Literal["half"] = "half"
    waits: ClassVar[bool] = False

    def num_gradients(self, num_workers: int) -> int:
        return (num_workers + 1) // 2


class Doubling(HalfBatches):
    """A policy of the user's own that adapts K as AdaSync does."""

    every_seconds: float

    def num_gradients(self, num_workers: int) -> int:
        return 1

    @property
    def adapts_every(self) -> float:
        return self.every_seconds

    def adapted(self, num_workers: int, k: int, ratio: float) -> int:
        return AdaSync(base="k-batch-async", every_seconds=1).adapted(num_workers, k, ratio)


def test_the_theory_knows_a_law_of_ones_own_by_its_distribution() -> None:
    law = Gamma(shape=2)
    draws = np.sort(np.random.default_rng(0).gamma(2, size=(40_000, 4)), axis=1)
    for k in (1, 2, 4):
        error = draws[:, k - 1].std() / math.sqrt(len(draws))
        assert abs(order_statistic(law, k, 4) - draws[:, k - 1].mean()) < 4 * error
    mean, error = k_batches_by_simulation(law, 3, 4, 2000)
    assert abs(seconds_per_update(KBatchSync(k=3), law, 4).seconds - mean) < 4 * error
    assert seconds_per_update(KAsync(k=2), law, 4).kind == "about"
    with pytest.raises(ValueError, match=r"^compute\.law\.name = 'gamma': allowed for the theory are laws with a "):
        order_statistic(Unknown(shape=2), 1, 2)


def test_planner_and_theory_need_no_more_of_a_policy_than_it_says_itself() -> None:
    own, same = HalfBatches(), KBatchAsync(k=3)
    assert own.base_kind == same.base_kind == "k-batch-async"
    assert list(planner(own, 5, compute=ComputeTimes(law=SHIFTED))) == list(
        planner(same, 5, compute=ComputeTimes(law=SHIFTED))
    )
    assert seconds_per_update(own, SHIFTED, 5) == seconds_per_update(same, SHIFTED, 5)
    assert mean_staleness(own, 5) == mean_staleness(same, 5)


def test_a_policy_of_ones_own_may_adapt_k() -> None:
    policies: list[Gathering] = [Doubling(every_seconds=2.0), AdaSync(base="k-batch-async", every_seconds=2.0)]
    schedules = []
    for policy in policies:
        plan = planner(policy, 5, compute=ComputeTimes(law=SHIFTED), num_steps=20)
        assert waits_for_losses(plan)
        rows, iterator = [], iter(plan)
        for row in iterator:
            assert row is not None
            rows.append(row)
            iterator.tell(row, 0.9**row.end)
        schedules.append(rows)
    assert schedules[0] == schedules[1]
    assert max(len(row.reads) for row in schedules[0] if row.agent == 5) == 5


def test_an_outage_has_no_order_statistics() -> None:
    with pytest.raises(ValueError, match="independent"):
        order_statistic(Outage(mean_up=1, mean_down=1), 1, 2)
