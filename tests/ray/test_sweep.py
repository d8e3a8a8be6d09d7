"""Sweeps on real Ray: trials on both engines, what fails, what is stopped, and what an interruption leaves."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer, fit_together
from ray_pcasgd.sweep.nodes import Mark
from ray_pcasgd.sweep.results import error_line
from ray_pcasgd.sweep.running import sweep
from ray_pcasgd.sweep.trials import run_trial
from ray_pcasgd.tune import resources, trainable

pytestmark = pytest.mark.usefixtures("ray_cluster")
BASE = {"engine": "local", "num_agents": 3, "num_steps": 20, "evaluate_every": 10, "task": {"model": {"hidden": [8]}}}


IN_EPOCHS: dict[str, Any] = {key: value for key, value in BASE.items() if key != "num_steps"}
"""Of 480 samples, the largest shard, an epoch is 30 steps of 16; 300 steps, which is no setting of theirs, are more."""


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"storage_path": str(folder), "name": "tried", "config": BASE} | changes


def test_a_grid_is_run_and_its_best_point_trains(tmp_path: Path) -> None:
    space = {"algorithm.theta": [0, 0.5], "step_size": [0.05, 0.2]}
    base = IN_EPOCHS | {"num_epochs": 0.6}
    result = sweep(settings(tmp_path, config=base, space=space, seeds=2, max_concurrent=2))
    assert len(result.trials) == 8
    assert result.trials["error"].isna().all()
    assert result.trials["finished"].all()
    assert set(result.trials["step"]) == {18}
    assert set(result.points["stopped"]) == {0}
    # A grid's points run together, and have their results one by one.
    assert len(list((tmp_path / "tried").glob("run_trial_*"))) == 2
    assert len(result.grid) == result.grid.num_terminated == 8
    shown = result.grid.get_best_result()
    best_row = result.trials.loc[result.trials["test_accuracy"].idxmax()]
    assert shown.config is not None
    assert shown.metrics is not None
    assert shown.metrics["test_accuracy"] == best_row["test_accuracy"]
    assert all(shown.config[key] == best_row[key] for key in (*space, "seed"))
    assert Path(shown.path, "metrics.parquet").is_file()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tried" / "trials.parquet"), result.trials)
    best = result.trials.groupby(list(space))["test_accuracy"].mean().idxmax()
    assert result.best == {"algorithm.theta": best[0], "step_size": best[1]}
    assert (tmp_path / "tried" / "report.html").exists()
    # A trial is the very run that its settings give by themselves.
    row = result.trials.iloc[-1]
    assert (row["algorithm.theta"], row["step_size"], row["seed"]) == (0.5, 0.2, 1)
    alone = Trainer(
        load_config(tmp_path / "tried" / "best.yaml"),
        algorithm={"name": "pc-asgd", "theta": 0.5},
        step_size=0.2,
        seed=1,
        storage_path=str(tmp_path),
        name="alone",
    ).fit()
    assert alone.metrics["test_loss"] == row["test_loss"]


def test_a_trial_by_itself_whose_length_is_in_epochs_has_finished(tmp_path: Path) -> None:
    base = IN_EPOCHS | {"num_epochs": 0.2}
    result = sweep(settings(tmp_path, config=base, space={"step_size": [0.05]}, batched="never"))
    assert result.trials["finished"].all()
    assert result.trials["step"].tolist() == [6]
    assert result.points["stopped"].tolist() == [0]


@pytest.mark.slow
def test_optuna_proposes_points_and_their_seeds_are_averaged(tmp_path: Path) -> None:
    space = {"step_size": {"low": 0.01, "high": 1, "log": True}, "algorithm": ["d-asgd", "c-asgd"]}
    result = sweep(settings(tmp_path, space=space, seeds=2, search={"name": "optuna", "num_points": 3}))
    assert len(result.points) == 3
    assert result.trials["seed"].tolist().count(0) == result.trials["seed"].tolist().count(1) == 3
    assert result.trials["step_size"].between(0.01, 1).all()


@pytest.mark.slow
def test_successive_halving_stops_the_worse(tmp_path: Path) -> None:
    base = BASE | {"num_steps": 60, "evaluate_every": 5}
    space = {"step_size": [0.1, 1e-5, 1e-6, 1e-7]}
    result = sweep(
        settings(tmp_path, config=base, space=space, scheduler={"name": "asha", "reduction": 4}, max_concurrent=1)
    )
    finished = result.trials.set_index("step_size")["finished"]
    assert finished[0.1]
    assert not finished[1e-7]
    assert result.best == {"step_size": 0.1}


@pytest.mark.slow
def test_trials_on_the_ray_engine_take_room_for_all_their_agents_at_once(tmp_path: Path) -> None:
    """A trial that has no room for all of its agents waits, instead of holding a part of it: two need 12 CPUs of 8."""
    engine = {"name": "ray", "cpus_per_agent": 2.0}
    base = BASE | {"engine": engine, "num_steps": 10}
    result = sweep(settings(tmp_path, config=base, space={"algorithm.theta": [0, 0.2]}))
    assert result.trials["error"].isna().all()
    planned = result.trials.set_index("algorithm.theta").loc[0.2]
    changes = {"num_steps": 10, "algorithm": {"theta": 0.2}, "storage_path": str(tmp_path)}
    local = Trainer(load_config(BASE, changes=changes)).fit()
    assert planned["test_loss"] == local.metrics["test_loss"]


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_table(tmp_path: Path) -> None:
    base = BASE | {"num_steps": 300, "evaluate_every": 20}
    space = {"algorithm.theta": [0, 0.1, 0.2, 0.3, 0.4, 0.5]}
    common = {"config": base, "space": space, "checkpoint_seconds": 1e-3, "max_concurrent": 1}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, **common)))
    command = [sys.executable, "-m", "ray_pcasgd", "sweep"]
    environment = os.environ | {"RAY_ADDRESS": ""}
    folder = tmp_path / "tried"
    with subprocess.Popen([*command, str(file)], env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(folder.glob("runs/*.pt")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (folder / "trials.parquet").exists()
    subprocess.run([*command, str(folder), "--resume"], env=environment, check=True)
    resumed = pd.read_parquet(folder / "trials.parquet")
    assert resumed["finished"].all()
    changes = [{"algorithm": {"theta": theta}, "name": f"{theta}"} for theta in space["algorithm.theta"]]
    whole = fit_together([load_config(base, changes=own | {"storage_path": str(tmp_path)}) for own in changes])
    metrics = ["test_loss", "test_accuracy", "consensus_distance"]
    np.testing.assert_allclose(resumed[metrics], [[run.metrics[name] for name in metrics] for run in whole], rtol=1e-4)
    assert any("resumed" in path.read_text() for path in folder.glob("runs/*/events.jsonl"))


def assert_same_results(together: tune.ResultGrid, alone: tune.ResultGrid) -> None:
    """Tune's own methods say the same of points that ran in packs as of points that ran one by one."""
    by_config = [{str(one.config): one for one in (grid[k] for k in range(len(grid)))} for grid in (together, alone)]
    assert by_config[0].keys() == by_config[1].keys()
    for name, own in by_config[0].items():
        other = by_config[1][name]
        assert (own.error is None) == (other.error is None)
        if own.error is None:
            assert own.metrics_dataframe is not None
            assert other.metrics_dataframe is not None
            columns = ["step", "test_loss", "test_accuracy", "training_iteration"]
            frames = [frame[columns].astype(float) for frame in (own.metrics_dataframe, other.metrics_dataframe)]
            pd.testing.assert_frame_equal(*frames, rtol=1e-4)
    assert (together.num_errors, together.num_terminated) == (alone.num_errors, alone.num_terminated) == (2, 4)
    for metric, mode in (("test_loss", "min"), ("test_accuracy", "max")):
        for scope in ("last", "all", "avg", "last-5-avg"):
            assert (
                together.get_best_result(metric, mode, scope).config
                == alone.get_best_result(metric, mode, scope).config
            )
    for arguments in ((), ("test_loss", "min"), ("test_loss", "max")):
        frames = [
            grid.get_dataframe(*arguments).set_index(["config/algorithm.theta", "config/step_size"])
            for grid in (together, alone)
        ]
        done = [frame[frame["step"] > 0].sort_index()[["step", "test_loss"]].astype(float) for frame in frames]
        pd.testing.assert_frame_equal(*done, rtol=1e-4)


@pytest.mark.slow
def test_points_run_together_come_to_the_same_as_each_alone(tmp_path: Path) -> None:
    space = {"algorithm.theta": [0, 0.5], "step_size": [0.1, 1e20, 0.2]}
    together = sweep(settings(tmp_path, space=space, batched="always"))
    alone = sweep(settings(tmp_path, name="alone", space=space, batched="never"))
    assert len(together.grid) == len(alone.grid) == 6
    assert len(list((tmp_path / "tried").glob("run_trial_*"))) < 6
    assert_same_results(together.grid, alone.grid)
    # Of a run that failed early, how far it came depends on when it was asked.
    columns = [*space, "seed", "finished", "error"]
    pd.testing.assert_frame_equal(together.trials[columns], alone.trials[columns])
    assert together.trials["error"].dropna().str.contains("agent 0 has loss").all()
    done = together.trials["finished"]
    assert done.tolist() == [True, True, False, True, True, False]
    np.testing.assert_allclose(together.trials["test_loss"][done], alone.trials["test_loss"][done], rtol=1e-4)
    assert together.best == alone.best
    # TensorBoard's files hold every point.
    events = b"".join(path.read_bytes() for path in (tmp_path / "tried").glob("*/events.out.tfevents.*"))
    assert all(f"points/000{number}-seed0/test_accuracy".encode() in events for number in (0, 2, 3, 5))


@pytest.mark.slow
def test_paths_in_settings_are_looked_up_from_where_the_sweep_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Trainer(load_config(BASE, changes={"name": "first", "storage_path": "runs"})).fit()
    base = BASE | {"schedule": "runs/first/schedule.parquet"}
    for number in (1, 4):  # one by one, and together
        space = {"algorithm.theta": [0.1 * k for k in range(number)], "num_steps": [10, 20]}
        result = sweep(settings(tmp_path, name=f"points-{number}", config=base, space=space))
        assert result.trials["error"].isna().all()
        assert result.trials["finished"].all()
        assert (result.trials["step"] == result.trials["num_steps"]).all()


@pytest.mark.slow
def test_a_population_exchanges_states_and_its_best_settings_train_to_the_same(tmp_path: Path) -> None:
    space = {"step_size": {"low": 0.01, "high": 1, "log": True}, "algorithm.theta": [0, 0.3, 0.6]}
    result = sweep(
        settings(
            tmp_path,
            config=BASE | {"num_steps": 30},
            space=space,
            search={"name": "random", "num_points": 2},
            scheduler={"name": "population", "interval_steps": 10, "quantile": 0.5},
        )
    )
    assert result.trials["finished"].all()
    best = load_config(tmp_path / "tried" / "best.yaml")
    assert any("stairs" in path.read_text() for path in tmp_path.glob("tried/runs/*/config.yaml"))
    again = Trainer(best, storage_path=str(tmp_path), name="again").fit()
    assert again.metrics["test_loss"] in result.trials["test_loss"].tolist()
    assert again.metrics["test_accuracy"] == result.trials["test_accuracy"].max()


# Tune leaves the files of a sweep open that is stopped as a whole.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sample_budget_ends_the_sweep(tmp_path: Path) -> None:
    space = {"algorithm.theta": [0, 0.1, 0.2, 0.3]}
    one_run = 20 * 3 * 16
    limits = {"max_concurrent": 1, "samples": one_run + 1, "checkpoint_seconds": 1e-3}
    result = sweep(settings(tmp_path, space=space, batched="never", **limits))
    assert not list(tmp_path.glob("tried/runs/*.pt"))
    assert 1 <= result.trials["finished"].sum() < 4
    assert result.best is not None


def test_a_point_that_cannot_be_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"at the point algorithm.theta = 2: algorithm.theta"):
        sweep(settings(tmp_path, space={"algorithm.theta": [0.1, 2]}))
    assert not (tmp_path / "tried").exists()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # so does it with trials that are stopped
def test_a_sweep_takes_objects_of_tunes_own(tmp_path: Path) -> None:
    class Ended(tune.Callback):
        """Counts trials."""

        trials: ClassVar[list[str]] = []

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.trials.append(trial.trial_id)

    given = settings(
        tmp_path, space={"step_size": {"low": 0.01, "high": 0.1}}, search={"name": "random", "num_points": 2}, seeds=2
    )
    given["max_concurrent"] = 1  # in one process, one after another
    halving = ASHAScheduler(time_attr="step", max_t=20, grace_period=10)
    drawing = OptunaSearch(metric="test_accuracy", mode="max", sampler=optuna.samplers.RandomSampler(seed=5))
    result = sweep(given, callbacks=[Ended()], search_alg=drawing, scheduler=halving)
    assert result.trials["error"].isna().all()
    drawn = optuna.samplers.RandomSampler(seed=5)._rng.rng.uniform(0.01, 0.1, size=2)
    assert sorted(result.trials["step_size"].unique()) == pytest.approx(sorted(drawn))
    assert result.trials.groupby("step_size")["seed"].apply(list).tolist() == [[0, 1], [0, 1]]
    assert len(Ended.trials) == len(result.grid) == 4
    with pytest.raises(SettingsError, match=r"search_alg or scheduler: .* search space"):
        sweep(
            given | {"name": "refused"},
            search_alg=OptunaSearch({"step_size": optuna.distributions.FloatDistribution(0.01, 0.1)}),
        )
    with pytest.raises(SettingsError, match=r"search.name = 'grid': allowed with search_alg is 'random'"):
        sweep(settings(tmp_path, space={"step_size": [0.1]}), search_alg=OptunaSearch())
    with pytest.raises(SettingsError, match=r"callbacks: 3 is none; allowed are objects of ray.tune.Callback"):
        sweep(settings(tmp_path, space={"step_size": [0.1]}), callbacks=[3])  # type: ignore[list-item]
    assert not (tmp_path / "refused").exists()
    with pytest.raises(SettingsError, match=r"batched = 'always': allowed with search_alg or scheduler"):
        sweep(settings(tmp_path, space={"step_size": [0.1]}, batched="always"), scheduler=halving)


def test_a_tuner_of_ones_own_trains_with_what_trainable_returns(tmp_path: Path) -> None:
    base = {**BASE, "storage_path": str(tmp_path / "elsewhere")}
    grid = tune.Tuner(
        tune.with_resources(trainable(base), resources(base)),
        param_space={"algorithm.theta": tune.grid_search([0.5]), "seed": 3},
        tune_config=tune.TuneConfig(metric="test_accuracy", mode="max"),
        run_config=tune.RunConfig(name="own", storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert grid.num_errors == 0
    best = grid.get_best_result()
    alone = Trainer(
        BASE, algorithm={"theta": best.config["algorithm.theta"]}, seed=3, storage_path=str(tmp_path / "alone")
    ).fit()
    assert best.metrics is not None
    assert best.metrics["test_loss"] == alone.metrics["test_loss"]
    (run,) = Path(best.path).glob("*/result.json")
    assert run.is_file()
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(SettingsError, match="num_stepz"):
        trainable({"num_stepz": 3})


@pytest.mark.slow
@pytest.mark.parametrize(("mounts", "said"), [("own", "refused"), ("shared", "finished")])
def test_a_sweep_is_refused_where_a_node_does_not_see_its_folder(mounts: str, said: str, tmp_path: Path) -> None:
    if mounts == "own" and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounts of a process's own need root")
    storage = tmp_path / "storage"
    storage.mkdir()
    command = [sys.executable, "-m", "tests.ray.two_nodes", str(storage), mounts]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_ADDRESS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    line = result.stdout.splitlines()[-1]
    assert line.startswith(said), result.stdout + result.stderr
    if mounts == "own":
        assert re.fullmatch(
            rf"refused storage_path = '{storage}': the sweep's folder is not seen by node [0-9.]+, whose runs would be "
            "lost; allowed are a folder that all nodes share, and remote storage, as s3://bucket/sweeps",
            line,
        )
        assert list(storage.iterdir()) == []
    else:
        assert line == "finished [True, True]"


def test_a_trial_that_does_not_see_the_sweep_s_folder_fails_and_says_so(tmp_path: Path) -> None:
    """As on a node that joined the cluster after the sweep had started."""
    function = tune.with_parameters(
        run_trial,
        base=load_config(BASE),
        folder=str(tmp_path / "runs"),
        checkpoint_seconds=60.0,
        directory=str(tmp_path),
        mark=Mark(str(tmp_path), "another"),
    )
    config = tune.RunConfig(name="own", storage_path=str(tmp_path), verbose=0)
    (result,) = tune.Tuner(function, param_space={"step_size": 0.1}, run_config=config).fit()
    assert re.match(r"node [0-9.]+ does not see the sweep's folder /", error_line(result.error))
    assert not (tmp_path / "runs").exists()


ON_A_GPU = """
import ray
from ray_pcasgd.sweep.running import sweep

ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
settings = {"engine": {"name": "local", "device": "cuda"}, "num_agents": 3, "num_steps": 10}
result = sweep({"storage_path": STORAGE, "config": settings, "space": {"step_size": [0.1]}})
print(result.trials["error"].tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, and uses it")
def test_a_sweep_leaves_it_to_the_trials_nodes_whether_there_is_a_gpu(tmp_path: Path) -> None:
    """The cluster says that it has a GPU, which is not so: the sweep is planned, and the trial itself finds it out."""
    script = ON_A_GPU.replace("STORAGE", repr(str(tmp_path)))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    said = "engine.device = 'cuda': allowed on this machine is 'cpu'; it has no GPU"
    assert result.stdout.splitlines()[-1] == str([said])


def test_a_sweep_on_gpus_is_refused_on_a_cluster_without_one(tmp_path: Path) -> None:
    base = BASE | {"engine": {"name": "local", "device": "cuda"}}
    with pytest.raises(SettingsError, match=r"^engine.device = 'cuda': allowed on this cluster is 'cpu'; none of its"):
        sweep(settings(tmp_path, config=base, space={"step_size": [0.1]}))
    with pytest.raises(SettingsError, match=r"engine.device = 'cuda:1': allowed in a sweep are 'cpu' and 'cuda'"):
        sweep(
            settings(
                tmp_path, config=BASE | {"engine": {"name": "local", "device": "cuda:1"}}, space={"step_size": [0.1]}
            )
        )
    assert list(tmp_path.iterdir()) == []
