"""Which points of a sweep run together, and what is said while they do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import Result

from ray_pcasgd.base.curves import Constant, PiecewiseConstant, continued
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.sweep.budget import SampleBudget
from ray_pcasgd.sweep.grid import packs_of_results
from ray_pcasgd.sweep.packing import check_batched, packs_of, read_packs, write_packs
from ray_pcasgd.sweep.progress import SweepProgress
from ray_pcasgd.sweep.settings import Range, load_sweep
from ray_pcasgd.sweep.trials import with_past
from ray_pcasgd.sweep.tuner import within_ranges

BASE = load_config({"engine": "local", "num_agents": 3, "task": {"model": {"hidden": [8]}}})
THETAS = {"algorithm.theta": [0, 0.1, 0.2, 0.3]}


def packs(cores: int = 1, base: dict[str, Any] | None = None, **settings: Any) -> Any:
    return packs_of(load_sweep(settings), load_config(BASE, changes=base or {}), cores)


def test_points_that_differ_in_numbers_make_packs_and_seeds_their_own() -> None:
    made = packs(space=THETAS | {"step_size": [0.1, 0.2]}, seeds=2)
    jobs = [job for pack in made for job in pack]
    assert len(jobs) == len({job.name for job in jobs}) == 16
    assert all(len({job.seed for job in pack}) == 1 for pack in made)
    assert {(job.point["algorithm.theta"], job.point["step_size"], job.seed) for job in jobs} == {
        (theta, eta, seed) for theta in THETAS["algorithm.theta"] for eta in (0.1, 0.2) for seed in (0, 1)
    }


def test_more_cores_make_smaller_packs_but_none_too_small() -> None:
    space = {"step_size": [k / 100 for k in range(1, 49)]}
    sizes = {cores: [len(pack) for pack in packs(cores, space=space)] for cores in (1, 2, 8)}
    assert sizes[1] == [16] * 3
    assert sizes[2] == [8] * 6
    assert min(sizes[8]) == max(sizes[8]) == 4


def test_what_else_differs_keeps_points_apart() -> None:
    made = packs(space={"batch_size": [8, 16], **THETAS})
    assert sorted(len(pack) for pack in made) == [4, 4]
    assert all(len({job.point["batch_size"] for job in pack}) == 1 for pack in made)
    space = {"algorithm": ["pc-asgd", "c-asgd", "ad-psgd"], "step_size": [0.1, 0.2, 0.3, 0.4]}
    rules = packs(base={"links": []}, space=space)
    assert sorted(len(pack) for pack in rules) == [1, 1, 1, 1, 4, 4]


def test_where_stacking_does_not_pay_trials_run_one_by_one() -> None:
    assert packs(space={"step_size": [0.1, 0.2]}) is None
    assert packs(space=THETAS, batched="never") is None
    assert packs(space={"step_size": {"low": 0.1, "high": 1}}, search="random") is None
    assert packs(space=THETAS, scheduler="asha") is None
    assert packs(base={"engine": "ray"}, space=THETAS) is None


@pytest.mark.parametrize(
    ("settings", "base", "message"),
    [
        ({"space": THETAS, "scheduler": "asha"}, {}, "batched = 'always': scheduler.name = 'asha': allowed"),
        ({"space": {"step_size": {"low": 0.1, "high": 1}}, "search": "random"}, {}, "search.name = 'random': allowed"),
        ({"space": THETAS}, {"engine": "ray"}, "engine.name = 'ray': allowed is 'local'"),
    ],
)
def test_packs_that_are_asked_for_and_cannot_be_made(settings: Any, base: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_batched(load_sweep(settings | {"batched": "always"}), load_config(BASE, changes=base))


def test_a_pack_that_was_lost_before_it_reported_is_the_one_of_which_there_is_no_result() -> None:
    made = packs(space={"step_size": [k / 100 for k in range(1, 49)]})
    assert len(made) == 3
    said = [Result({"config": {"pack": number}}, None, None, "") for number in (2, 0)]
    lost = Result({"trial_id": "1"}, None, None, "")
    assert packs_of_results([said[0], lost, said[1]], made) == [made[2], made[1], made[0]]


def test_packs_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_packs(tmp_path) is None
    write_packs(tmp_path, None)
    assert read_packs(tmp_path) is None
    made = packs(space=THETAS)
    write_packs(tmp_path, made)
    assert read_packs(tmp_path) == made


# What is said.


def test_a_line_says_how_many_are_done_and_which_is_best(capsys: pytest.CaptureFixture[str]) -> None:
    made = packs(space=THETAS)
    now = 0.0
    progress = SweepProgress("test_accuracy", "max", 4, made, clock=lambda: now)
    (pack,) = made
    measured = {job.name: {"test_accuracy": place / 10} for place, job in enumerate(pack)}
    trial = SimpleNamespace(config={"pack": 0}, last_result={"errors": {pack[0].name: "it diverged"}}, error_file="")
    now = 61.0
    progress.on_trial_result(0, [trial], trial, {"points": measured})
    assert capsys.readouterr().out == (
        "0 of 4 trials done, best test accuracy 30.0 % at algorithm.theta=0.3 seed=0, 1:01\n"
    )
    progress.on_trial_complete(0, [trial], trial)
    assert capsys.readouterr().out == "0000-seed0 failed: it diverged\n"
    assert progress.line().startswith("4 of 4 trials done, 1 failed, best")


def test_less_is_better_where_the_mode_says_so() -> None:
    progress = SweepProgress("test_loss", "min", 2, None, clock=lambda: 0.0)
    for value in (0.5, 0.2, 0.9):
        trial = SimpleNamespace(config={"step_size": value, "__trial_index__": 0})
        progress.on_trial_result(0, [trial], trial, {"test_loss": value})
    assert "best test loss 0.2 at step_size=0.2 seed=0," in progress.line()


def test_a_budget_counts_the_samples_of_all_trials() -> None:
    budget = SampleBudget(1000, BASE)  # 3 agents, batch 16: 48 samples a step
    assert not budget("a", {"step": 10})
    assert not budget("b", {"step": 10.0})
    assert not budget.stop_all()
    budget("b", {"step": 11, "points": {"x": {}}})
    assert budget.stop_all()
    packed = SampleBudget(1000, BASE)
    packed("a", {"step": 10, "points": {"x": {}, "y": {}, "z": {}}})
    assert packed.stop_all()


# Population-based training.


def test_a_trial_that_goes_on_with_other_numbers_has_a_past() -> None:
    past = load_config(BASE, changes={"step_size": 0.1, "algorithm": {"name": "pc-asgd", "theta": 0.2}})
    then = with_past(load_config(past, changes={"step_size": 0.3}), past, 50)
    assert then.step_size == PiecewiseConstant(values=(0.1, 0.3), at_steps=(50,))
    assert then.algorithm == past.algorithm
    later = with_past(load_config(past, changes={"step_size": 0.4, "algorithm": {"theta": 0.9}}), then, 80)
    assert later.step_size == PiecewiseConstant(values=(0.1, 0.3, 0.4), at_steps=(50, 80))
    assert later.algorithm.model_dump()["theta"]["values"] == (0.2, 0.9)
    assert [later.step_size.at(step) for step in (0, 49, 50, 79, 80, 99)] == [0.1, 0.1, 0.3, 0.3, 0.4, 0.4]


def test_a_curve_that_goes_on_forgets_what_it_had_ahead() -> None:
    curve = PiecewiseConstant(values=(1.0, 2.0, 3.0), at_steps=(10, 20))
    assert continued(curve, 15, 5.0) == PiecewiseConstant(values=(1.0, 2.0, 5.0), at_steps=(10, 15))
    assert continued(curve, 10, 5.0) == PiecewiseConstant(values=(1.0, 5.0), at_steps=(10,))
    assert continued(curve, 30, 3.0) == curve
    assert continued(Constant(value=1.0), 0, 2.0).at(0) == 2.0


def test_changed_numbers_stay_within_their_ranges() -> None:
    space = {"step_size": Range(low=0.01, high=1.0), "algorithm.theta": (0, 0.5)}
    assert within_ranges(space, {"step_size": 1.2, "algorithm.theta": 0.5}) == {"step_size": 1, "algorithm.theta": 0.5}
    assert within_ranges(space, {"step_size": 0.001, "algorithm.theta": 0})["step_size"] == 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"space": {"batch_size": [1]}},
            "space.batch_size: allowed with scheduler.name = 'population' are step",
        ),
        ({"space": THETAS, "seeds": 2}, "seeds = 2: allowed with scheduler.name = 'population' is 1"),
        ({"space": THETAS, "search": "optuna"}, "search.name = 'optuna': allowed with"),
    ],
)
def test_what_a_population_cannot_vary_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_sweep(settings | {"scheduler": "population"})


@pytest.mark.parametrize(
    ("interval", "base", "message"),
    [
        (30, {}, "scheduler.interval_steps = 30: allowed are multiples of evaluate_every = 50"),
        (50, {"algorithm": "ad-psgd"}, "scheduler.name = 'population': allowed with rules between peers"),
        (50, {"engine": "ray"}, "scheduler.name = 'population': allowed with rules between peers"),
    ],
)
def test_what_a_population_cannot_train_is_refused(interval: int, base: dict[str, Any], message: str) -> None:
    sweep = load_sweep({"space": THETAS, "scheduler": {"name": "population", "interval_steps": interval}})
    with pytest.raises(SettingsError, match=message):
        sweep.check_with(load_config(BASE, changes=base))
