"""What nobody has set fits what somebody has: one setting changed by itself works, or the error says what to add."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.config import Config
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.labels import labels_of, value_text
from ray_pcasgd.rules import PCASGD
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.runs.plan.fitting import with_compensation
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.plan.variants import make_variants
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, read_yaml
from ray_pcasgd.runs.settings.reference import kind_of, kinds_in
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.trainer import Trainer


def names(setting: str) -> list[str]:
    return [str(kind_of(kind)) for kind in kinds_in(Config.model_fields[setting].annotation)]


def result(path: Path, **settings: Any) -> Any:
    return Trainer(engine="local", storage_path=str(path), **({"num_steps": 2, "evaluate_every": 2} | settings)).fit()


@pytest.mark.parametrize("num_agents", [1, 2, 3])
@pytest.mark.parametrize("algorithm", [name for name in names("algorithm") if name != "custom"])
def test_every_algorithm_runs_by_its_name_alone(algorithm: str, num_agents: int, tmp_path: Path) -> None:
    # To stand an attacker takes more neighbors than so few agents have, and is refused.
    settings = {"name": "bridge", "attackers": 0} if algorithm == "bridge" else algorithm
    done = result(tmp_path, algorithm=settings, num_agents=num_agents)
    assert done.error is None
    servers = algorithm in ("server", "elastic-averaging", "diloco", "fedasync", "fedglomo", "svrg")
    assert done.metrics_dataframe["agent"].nunique() == num_agents + servers


def test_one_agent_is_one_cluster_and_others_are_in_two() -> None:
    clusters = [make_plan(load_config({"engine": "local", "num_agents": number})).clusters for number in (1, 2, 5)]
    assert clusters == [(0,), (0, 1), (0, 0, 0, 1, 1)]
    assert make_plan(load_config({"engine": "local", "num_agents": 5, "clusters": 1})).clusters == (0,) * 5
    with pytest.raises(SettingsError, match="clusters = 2: allowed are 1 to num_agents = 1"):
        make_plan(load_config({"engine": "local", "num_agents": 1, "clusters": 2}))


def test_ad_psgd_takes_delays_without_a_unit_as_seconds_and_refuses_steps() -> None:
    links = make_plan(load_config({"engine": "local", "algorithm": "ad-psgd"})).config.links
    assert [(link.delay.model_dump()["value"], link.unit) for link in links] == [(10, "seconds")]
    with pytest.raises(
        SettingsError, match=r"links.0.unit = 'steps': allowed with ad-psgd is seconds, or a delay such"
    ):
        make_plan(load_config({"engine": "local", "algorithm": "ad-psgd", "links": [{"delay": "10 steps"}]}))


LIVE = {"name": "ray", "mode": "live"}
PREDICTING = ("p-asgd", "pc-asgd", "pc-asgd-pv")


def written(folder: Path, algorithm: Any, **settings: Any) -> dict[str, Any]:
    """Return the algorithm as a run writes it before it starts."""
    plan = make_plan(load_config({"algorithm": algorithm, "storage_path": str(folder), "links": [], **settings}))
    path = RunFolder.create(plan.config).path
    found: dict[str, Any] = read_yaml(path / "config.yaml")["algorithm"]
    assert load_config(path / "config.yaml").algorithm == plan.config.algorithm
    fitting = with_compensation(plan.config).algorithm
    assert all(spec.recipe.rule == fitting for spec in plan.specs if isinstance(spec, AgentSpec))
    return found


@pytest.mark.parametrize("name", PREDICTING)
def test_predictions_are_bounded_in_live_runs_unless_they_are_not_to_be(name: str, tmp_path: Path) -> None:
    for engine, chosen in (("local", False), ({"name": "ray"}, False), (LIVE, True)):
        assert written(tmp_path, name, engine=engine)["bounded"] is chosen
        for bounded in (True, False):
            assert written(tmp_path, {"name": name, "bounded": bounded}, engine=engine)["bounded"] is bounded


def test_what_a_live_run_was_told_stays_when_its_settings_run_elsewhere(tmp_path: Path) -> None:
    algorithm = written(tmp_path, {"name": "pc-asgd", "theta": 0.3}, engine=LIVE)
    assert written(tmp_path, algorithm, engine="local")["bounded"] is True
    assert written(tmp_path, algorithm | {"bounded": None}, engine="local")["bounded"] is False
    rules = [PCASGD.model_validate(algorithm | {"bounded": value}) for value in (True, False, None)]
    assert [rule.has_bound for rule in rules] == [True, False, False]


@pytest.mark.parametrize("name", PREDICTING)
def test_a_compensation_that_nobody_gave_fits_the_optimizer_also_of_a_replay(name: str, tmp_path: Path) -> None:
    """What a run under one optimizer has written says nothing about a run under another one."""

    def acting(algorithm: Any, optimizer: str) -> Any:
        plan = make_plan(load_config({"algorithm": algorithm, "optimizer": optimizer, "engine": "local"}))
        (rule,) = {spec.recipe.rule for spec in plan.specs if isinstance(spec, AgentSpec)}
        assert isinstance(rule, PredictingRule)
        return rule.coefficients(0, 0)["lambda_0"]

    for first, second, fitting in (("sgd", "adamw", 0.0), ("adamw", "sgd", 0.04), ("sgd", "sgd", 0.04)):
        assert acting(written(tmp_path, name, optimizer=first), second) == fitting
        given = written(tmp_path, {"name": name, "compensation": 0.5}, optimizer=first)
        assert acting(given, second) == 0.5


def test_a_step_size_that_nobody_gave_is_shown_and_is_the_optimizers_also_of_a_replay(tmp_path: Path) -> None:
    first = result(tmp_path, name="first", optimizer="adamw", num_agents=2)
    text = (Path(first.path) / "config.yaml").read_text()
    assert "\nstep_size: null  # 0.001, as usual with adamw\n" in text
    of_torch = {"name": "torch", "optimizer": "torch.optim:RMSprop"}
    other = result(tmp_path, name="other", optimizer=of_torch, num_agents=2)
    assert "\nstep_size: null  # 0.01, as usual with RMSprop\n" in (Path(other.path) / "config.yaml").read_text()
    second = Trainer(load_config(Path(first.path) / "config.yaml", ["optimizer=sgd", "name=second"])).fit()
    third = result(tmp_path, name="third", optimizer="adamw", step_size=0.02, num_agents=2)
    runs = [load_run(Path(one.path)) for one in (first, second, third)]
    shown = [value_text(run.config["step_size"]) for run in runs]
    assert shown == ["0.001", "0.1", "0.02"]
    assert labels_of([runs[0].config, runs[2].config])[1].endswith("step_size 0.02")
    assert "# " not in (Path(third.path) / "config.yaml").read_text()
    plan = make_plan(load_config(Path(second.path) / "config.yaml"))
    assert {spec.recipe.step_size.at(0) for spec in plan.specs} == {0.1}


def test_variants_of_a_sweep_that_nobody_gave_a_step_size_have_the_usual_one() -> None:
    configs = [
        load_config({"engine": "local", "optimizer": "adamw", "algorithm": {"name": "pc-asgd", "theta": theta}})
        for theta in (0.2, 0.3)
    ]
    assert [plan.specs[0].recipe.step_size.at(0) for plan in make_variants(configs)] == [0.001, 0.001]


def test_a_rule_of_one_s_own_is_left_as_it_is() -> None:
    own = {"name": "custom", "rule": "tests.unit.runs.test_fitting_defaults:Foreseeing"}
    for engine in ("local", LIVE):
        algorithm = make_plan(load_config({"algorithm": own, "engine": engine})).config.algorithm
        assert isinstance(algorithm, Foreseeing)
        assert algorithm.bounded is None
        assert not algorithm.has_bound


class Foreseeing(PredictingRule):
    """Predicts all that is late, by its own step."""

    name: Literal["foreseeing"] = "foreseeing"

    def step(self, state: Any, own: Own, reads: Reads, probe: Any = None) -> tuple[Any, Update]:
        """Return the predicting step."""
        rows = self.rows(own, reads)
        blend = self.blend_at(torch.ones_like(own.mixing), rows, own, reads)
        state, (weights,) = self.blends((blend,), state, rows, own, reads)
        return state, Update(weights, {})


@pytest.mark.parametrize("topology", names("topology"))
@pytest.mark.parametrize("num_agents", [1, 2, 8])
def test_a_topology_by_its_name_alone_works_or_says_what_to_add(topology: str, num_agents: int) -> None:
    changes = topology in ("one-peer-exponential", "hierarchical")
    algorithm = "sgp" if topology.startswith("directed") else "d-psgd" if changes else "pc-asgd"
    try:
        tree = {"engine": "local", "algorithm": algorithm, "num_agents": num_agents, "topology": topology}
        make_plan(load_config(tree))
    except SettingsError as error:
        assert topology in ("torus", "erdos-renyi", "regular", "edges", "directed-edges", "custom")
        assert all("is required; allowed is a" in line for line in str(error).splitlines())


@pytest.mark.parametrize("partition", names("partition"))
@pytest.mark.parametrize("num_agents", [1, 2, 3, 4, 5, 200])
def test_a_partition_fits_few_agents_and_many(partition: str, num_agents: int) -> None:
    plan = make_plan(
        load_config({"engine": "local", "topology": "ring", "num_agents": num_agents, "partition": partition})
    )
    sizes = [len(spec.shard) for spec in plan.specs]
    assert sum(sizes) == len(plan.data.train)
    assert min(sizes) >= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 1},
        {"evaluate_every": 1000},
        {"warmup_steps": 1000},
        {"batch_size": 1000},  # more than a shard
        {"num_agents": 40, "batch_size": 64},
        {"checkpoint": {"every_evaluations": 1}},
        {"seed": 2**63 - 1},
    ],
    ids=str,
)
def test_one_number_changed_by_itself_works(settings: dict[str, Any], tmp_path: Path) -> None:
    assert result(tmp_path, **settings).error is None


# num_epochs in place of num_steps: digits have 1438 training samples.


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_epochs": 1, "num_agents": 8, "batch_size": 16}, 12),  # 180 / 16
        ({"num_epochs": 2.5, "num_agents": 8, "batch_size": 16}, 29),  # 450 / 16
        ({"num_epochs": 0.1, "num_agents": 8, "batch_size": 18}, 1),  # 18 / 18, though 0.1 in binary is more
        ({"num_epochs": 1, "num_agents": 1, "batch_size": 1438}, 1),
        ({"num_epochs": 1, "num_agents": 1, "batch_size": 1437}, 2),
        ({"num_epochs": 1e-6}, 1),
        ({"num_epochs": 1, "num_agents": 4, "partition": {"name": "dirichlet", "alpha": 0.1}}, None),
    ],
)
def test_epochs_are_passes_over_the_largest_shard(settings: dict[str, Any], steps: int | None) -> None:
    plan = make_plan(load_config({"engine": "local", **settings}))
    largest = max(len(spec.shard) for spec in plan.specs)
    passed = settings["num_epochs"] * largest
    expected = plan.config.num_steps if steps is None else steps
    assert plan.config.num_steps == expected == plan.specs[0].recipe.num_steps
    assert plan.config.num_epochs is None
    assert (plan.config.num_steps - 1) * plan.config.batch_size < passed + 1e-9
    assert passed <= plan.config.num_steps * plan.config.batch_size + 1e-9


def test_a_run_notes_the_steps_that_its_epochs_made_and_runs_again(tmp_path: Path) -> None:
    done = Trainer(engine="local", storage_path=str(tmp_path), num_agents=2, num_epochs=0.1, evaluate_every=5).fit()
    written = load_config(Path(done.path) / "config.yaml")
    assert (written.num_steps, written.num_epochs) == (5, None)  # 71.9 / 16
    again = Trainer(load_config(Path(done.path) / "config.yaml", ["name=again"])).fit()
    assert again.schedule_hash == done.schedule_hash
    assert again.metrics["test_loss"] == done.metrics["test_loss"]


def test_of_steps_and_epochs_the_later_one_counts_and_together_they_are_refused(tmp_path: Path) -> None:
    def length(source: Any = None, assignments: Any = (), changes: Any = None) -> tuple[int, float | None]:
        plan = make_plan(load_config(source, [*assignments, "engine=local", "num_agents=2"], changes))
        return plan.config.num_steps, plan.config.num_epochs

    (tmp_path / "epochs.yaml").write_text("num_epochs: 1\n")
    assert length(tmp_path / "epochs.yaml") == (45, None)
    assert length(tmp_path / "epochs.yaml", ["num_steps=7"]) == (7, None)
    assert length({"num_steps": 7}, ["num_epochs=1"]) == (45, None)
    assert length({"num_steps": 7}, changes={"num_epochs": 1}) == (45, None)
    assert length({"num_epochs": 1}, ["num_epochs=null"]) == (300, None)
    assert length(load_config({"num_epochs": 1}), changes={"seed": 1}) == (45, None)
    assert length({"num_steps": 7, "num_epochs": None}) == (7, None)
    expected = "num_epochs = 1: allowed is one of num_steps = 7 and num_epochs"
    for source, assignments in (({"num_steps": 7, "num_epochs": 1}, []), (None, ["num_steps=7", "num_epochs=1"])):
        with pytest.raises(SettingsError, match=expected):
            load_config(source, assignments)
    with pytest.raises(ValueError, match=expected):
        Config(num_steps=7, num_epochs=1)


def test_settings_with_epochs_can_be_written_and_read_before_a_run(tmp_path: Path) -> None:
    config = load_config({"num_epochs": 1.5, "storage_path": str(tmp_path)})
    assert load_config(RunFolder.create(config).path / "config.yaml") == config
    assert load_config(config.model_dump(mode="json")) == config


def test_variants_take_the_steps_that_their_epochs_make() -> None:
    configs = [load_config({"engine": "local", "num_epochs": 1, "step_size": eta}) for eta in (0.1, 0.2)]
    assert [plan.config.num_steps for plan in make_variants(configs)] == [12, 12]
