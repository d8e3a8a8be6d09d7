"""Whatever is wrong with settings is refused before a run, in one line: the setting, its value, what is allowed."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pandas as pd
import pytest
import torch
from torch.optim import Adam

from ray_pcasgd.config import AnyAlgorithm
from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.schedule.parquet import write_rows


def names_in(union: Any) -> list[str]:
    """Return the names of a union's members, in their order."""
    if get_origin(union) is Annotated:
        return names_in(get_args(union)[0])
    if get_origin(union) is UnionType or get_origin(union) is Union:
        return [name for member in get_args(union) for name in names_in(member)]
    return list(get_args(union.model_fields["name"].annotation))


ALGORITHMS = ", ".join([*names_in(AnyAlgorithm), "custom"])
PATH4 = [[0, 1], [1, 2], [2, 3]]


def refusal(*assignments: str, **settings: Any) -> str:
    """Return the lines with which a run is refused."""
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config({"engine": "local", **settings}, assignments))
    lines = str(caught.value).splitlines()
    assert lines
    assert all(line == line.strip() and line for line in lines)
    return str(caught.value)


def test_an_optimizer_of_pytorch_as_an_object_is_told_how_to_be_written() -> None:
    hint = "; write {name: torch, optimizer: 'torch.optim.adam:Adam'}"
    made = Adam([torch.zeros(1, requires_grad=True)])
    assert refusal(optimizer=Adam).endswith(f"OwnOptimizer{hint}")
    assert refusal(optimizer=made).endswith(f"lion, yellowfin, torch, custom{hint}")
    # Its own words, which are many, are said once.
    assert refusal(optimizer={"name": "torch", "optimizer": made}).count("Parameter Group") == 1


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("num_agent=3", "num_agent = 3: no such setting; did you mean num_agents?"),
        ("optimizer.momentun=0.5", "optimizer.momentun = 0.5: no such setting; did you mean optimizer.momentum?"),
        ("algorithm.thta=0.5", "algorithm.thta = 0.5: no such setting; did you mean algorithm.theta?"),
        ("task.model.hiden=[3]", "task.model.hiden = [3]: no such setting; did you mean task.model.hidden?"),
        ("task.modle.name=mlp", "task.modle = {'name': 'mlp'}: no such setting; did you mean task.model?"),
        ("links.0.unti=steps", "links.0.unti = 'steps': no such setting; did you mean links.0.unit?"),
        (
            "optimizer.beta=1",
            "optimizer.beta = 1: no such setting; did you mean betas, a setting of optimizer.name = 'adamw' or 'adam' "
            "or 'lion'?",
        ),
        ("optimizer.kwargs={}", "optimizer.kwargs = {}: no such setting; write optimizer.settings"),
        ("gradient_clipping=2", "gradient_clipping = 2: allowed is a mapping of settings; write {norm: 2}"),
        (
            "optimizer={name: adamw, betas: [0.9]}",
            "optimizer.betas = [0.9]: allowed is a pair of numbers from 0 below 1",
        ),
        ("optimizer={name: adamw, eps: 1e-60}", "optimizer.eps = 1e-60: allowed are values from 1.17549e-38 on"),
        ("gradient_clipping={norm: 1e-60}", "gradient_clipping.norm = 1e-60: allowed are values from 1.17549e-38 on"),
        (
            "algorithm={name: pc-asgd-pv, candidates: [[0.5], [0.1, 2]]}",
            "algorithm.candidates.0 = [0.5]: allowed is a number or a pair of numbers from 0 up to 1",
        ),
        (
            "algorithm={name: pc-asgd, prediction: own-drift, compensation: relative}",
            "algorithm.compensation = relative 0.2: allowed with prediction = 'own-drift' is null; it has none",
        ),
        (
            "engine.mode=live",
            "engine.mode = 'live': no such setting; it is a setting of engine.name = 'ray', not of 'local'",
        ),
        (
            "algorithm.compensation.decay=1",
            "algorithm.compensation.decay = 1: no such setting; it is a setting of algorithm.compensation.name = "
            "'adaptive', not of 'constant'",
        ),
        (
            "task.metrics=[{name: top-accuracy, kk: 2}]",
            "task.metrics.0.kk = 2: no such setting; did you mean task.metrics.0.k?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(assignment: str, expected: str) -> None:
    assert refusal(assignment) == expected


def test_a_key_that_is_near_to_none_is_answered_with_all() -> None:
    assert refusal("xyzzy=1").startswith(
        "xyzzy = 1: no such setting; allowed are accumulate, algorithm, barrier, batch_size, "
    )


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("algorithm=pc-asg", f"algorithm = 'pc-asg': allowed are {ALGORITHMS}; did you mean pc-asgd?"),
        ("algorithm.name=pc-asg", f"algorithm.name = 'pc-asg': allowed are {ALGORITHMS}; did you mean pc-asgd?"),
        ("algorithm.name=null", f"algorithm.name = null: allowed are {ALGORITHMS}"),
        ("engine=loca", "engine = 'loca': allowed are ray, local; did you mean local?"),
        ("task.loss=mes", "task.loss = 'mes': allowed are cross-entropy, mse, custom; did you mean mse?"),
        ("barrier=al", "barrier = 'al': allowed are none, all, bounded, sampled; did you mean all?"),
        ("barrier.staleness=1", "barrier.name: is required; allowed are none, all, bounded, sampled"),
        (
            "step_size=abc",
            "step_size = 'abc': allowed are numbers, constant, linear, cosine, multi-step, stairs, "
            "warmup-stable-decay, one-cycle, inverse-sqrt",
        ),
        (
            "links.0.delay.name=unifom",
            "links.0.delay.name = 'unifom': allowed are constant, uniform, exponential, shifted-exponential, pareto, "
            "log-normal, outage, measured, trace, custom; did you mean uniform?",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_there_are(assignment: str, expected: str) -> None:
    assert refusal(assignment) == expected


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("num_agents=two", "num_agents = 'two': allowed is a whole number"),
        ("num_agents=2.5", "num_agents = 2.5: allowed is a whole number"),
        ("num_agents=null", "num_agents = null: allowed is a whole number"),
        ("num_steps=-3", "num_steps = -3: allowed are values from 1 on"),
        ("num_steps=0", "num_steps = 0: allowed are values from 1 on"),
        ("warmup_steps=-1", "warmup_steps = -1: allowed are values from 0 on"),
        ("name=5", "name = 5: allowed is text; put it in quotes"),
        (
            "name=../x",
            "name = '../x': allowed is text of the form ^[A-Za-z0-9][A-Za-z0-9._-]*$; write letters, digits and the "
            "signs . _ -, the first a letter or a digit",
        ),
        (
            "algorithm=3",
            f"algorithm = 3: allowed are {ALGORITHMS}; write a name such as pc-asgd, or {{name: pc-asgd, theta: 0.3}}",
        ),
        (
            "optimizer=adan",
            "optimizer = 'adan': allowed are sgd, adamw, adam, lion, yellowfin, torch, custom; did you mean adam?",
        ),
        ("optimizer.nesterov=maybe", "optimizer.nesterov = 'maybe': allowed are true and false"),
        ("optimizer.momentum=1", "optimizer.momentum = 1: allowed are values below 1"),
        ("optimizer.momentum=.nan", "optimizer.momentum = nan: allowed are finite numbers"),
        ("optimizer.nesterov=true", "optimizer.nesterov = true: allowed is false where momentum is 0"),
        ("step_size=.inf", "step_size = inf: allowed are finite numbers"),
        ("step_size=-0.1", "step_size = -0.1: allowed are values from 0 on"),
        ("step_size={name: linear, start: 0.1, end: -1, steps: 3}", "step_size = -1: allowed are values from 0 on"),
        (
            "links=5",
            "links = 5: allowed is a list; write [{delay: 10}] for all links, or [{between: clusters, delay: 200ms}]",
        ),
        ("links=[5]", "links.0 = 5: allowed is a mapping of settings; write {delay: 5}"),
        ("links=[{}]", "links.0.delay: is required, or bandwidth; write delay: 200ms, or bandwidth: 20 Mbit/s"),
        (
            "links=[{bandwidth: 20}]",
            "links.0.bandwidth = 20: allowed are a number and a unit, as 200 Mbit/s or 25 MB/s: bit/s or B/s, with k, "
            "M, G or T before it; write '20 bit/s' where bits a second are meant",
        ),
        (
            "links=[{bandwidth: 20 Mbps}]",
            "links.0.bandwidth = '20 Mbps': allowed are a number and a unit, as 200 Mbit/s or 25 MB/s: bit/s or B/s, "
            "with k, M, G or T before it; write 20 Mbit/s",
        ),
        ("links=[{bandwidth: 0 B/s}]", "links.0.bandwidth = '0 B/s': allowed are finite numbers above 0"),
        ("links=[{bandwidth: 9e9 Tbit/s}]", "links.0.bandwidth = '9e9 Tbit/s': allowed are 1 bit/s to 1000 Tbit/s"),
        (
            "links=[{bandwidth: 1 MB/s, unit: steps}]",
            "links.0.unit = 'steps': allowed with a delay only; a bandwidth says its unit itself",
        ),
        ("hosts=5", "hosts = 5: allowed is a list; write [{agents: [0, 1], up: 1 Gbit/s, down: 1 Gbit/s}]"),
        ("hosts=[{agents: [0]}]", "hosts.0.up: is required, or down; without both the host has no limit"),
        ("hosts=[{agents: [0, 0], up: 1 MB/s}]", "hosts.0.agents = [0, 0]: allowed are one agent or more, each once"),
        (
            "membership=5",
            "membership = 5: allowed is a list; write [{agent: 3, leaves: 20s, returns: 45s}], or "
            "{trace: availability.csv}",
        ),
        ("membership=[{agent: 9, leaves: 3}]", "membership.0.agent: agent 9; allowed are 0 to 7"),
        ("membership={agents: [1, 9], leaves: 3}", "membership.0.agents: agent 9; allowed are 0 to 7"),
        ("membership=[{agent: 1}]", "membership.0.leaves: is required, or returns, or both"),
        ("membership=[{leaves: 1}]", "membership.0.agent: is required, or agents, or trace; one of them"),
        (
            "membership=[{agent: 1, leaves: 3 steps}]",
            "membership.0.leaves = '3 steps': allowed are seconds, such as 20s, 500ms or 20",
        ),
        ("membership=[{agent: 1, leaves: -1}]", "membership.0.leaves = -1: allowed are values from 0 on"),
        (
            "membership=[{agent: 1, leaves: 20s, returns: 20}]",
            "membership.0.returns = 20: allowed is later than leaves = 20",
        ),
        (
            "membership=[{agent: 1, leaves: 2}, {agents: [1], returns: 3}]",
            "membership.0.agent: agent 1 is away from 0 to 3 s, and from 2 s on too; allowed are times apart",
        ),
        (
            "membership={trace: none.csv}",
            "membership.trace = 'none.csv': cannot be read ([Errno 2] No such file or directory: 'none.csv'); "
            "allowed is CSV or Parquet",
        ),
        ("links.0.delay=-1", "links.0.delay = -1: allowed are values from 0 on"),
        ("links.0.delay=.inf", "links.0.delay = inf: allowed are finite numbers"),
        ("links.0.between=foo", "links.0.between = 'foo': allowed are 'all' or 'clusters' or a list"),
        ("links.0.delay={name: uniform, low: 3, high: 1}", "links.0.delay.high = 1: allowed is low = 3 or more"),
        (
            "compute.agents={0: {name: pareto, shape: 2}}",
            "compute.agents.0.scale: is required; allowed is a number above 0 up to 1e+09",
        ),
        ("compute.agents={9: 1}", "compute.agents: agent 9; allowed are 0 to 7"),
        ("compute.stragglers={a: 1}", "compute.stragglers.a = 1: allowed is a whole number"),
        ("clusters=two", "clusters = 'two': allowed is a whole number or a list"),
        ("clusters=[[0, a]]", "clusters.0.1 = 'a': allowed is a whole number"),
        ("task.model.hidden=[8, 0]", "task.model.hidden.1 = 0: allowed are values from 1 on"),
        ("checkpoint.score_order=up", "checkpoint.score_order = 'up': allowed are 'max' or 'min'"),
        ("max_failures=-2", "max_failures = -2: allowed are values from -1 on"),
        ("seed.x=1", "seed = {'x': 1}: allowed is a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(assignment: str, expected: str) -> None:
    assert refusal(assignment) == expected


@pytest.mark.parametrize("theta", ["1.5", "-0.25", "[0.5, 1.5]", "{name: linear, start: 0, end: 1.5, steps: 4}"])
def test_theta_lies_between_0_and_1(theta: str) -> None:
    value = "-0.25" if "-" in theta else "1.5"
    assert (
        refusal(f"algorithm.theta={theta}") == f"algorithm.theta = {value}: allowed are values in [0, 1], and staleness"
    )


def test_theta_of_agents_has_one_value_for_each() -> None:
    expected = "algorithm.theta = [0.5, 0.5]: allowed is one value for each of the 8 agents"
    assert refusal("algorithm.theta=[0.5, 0.5]") == expected


def test_several_errors_have_a_line_each() -> None:
    lines = refusal("num_steps=0", "algorithm.thta=1", "step_size={name: cosine, strat: 1, steps: 2}").splitlines()
    assert lines == [
        "num_steps = 0: allowed are values from 1 on",
        "algorithm.thta = 1: no such setting; did you mean algorithm.theta?",
        "step_size.start: is required; allowed is a number",
        "step_size.strat = 1: no such setting; did you mean step_size.start?",
    ]


def test_a_long_value_is_cut_and_stays_in_its_line() -> None:
    line = refusal(num_agents="a\nb" * 1000)
    assert line.endswith("...: allowed is a whole number")
    assert len(line) < 140


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"topology": {"name": "edges", "edges": [[0, 1], [2, 3]]}},
            "topology.name = 'edges': the graph is disconnected, there is no path from agent 0 to agent 2; allowed are "
            "connected graphs",
        ),
        (
            {"topology": {"name": "edges", "edges": [[0, 4]]}},
            "topology.edges: the pair [0, 4]; allowed are two different agents of 0 to 3",
        ),
        (
            {"topology": {"name": "torus", "rows": 3, "columns": 2}},
            "topology.rows = 3, topology.columns = 2: allowed are factors of num_agents = 4",
        ),
        ({"topology": "ring", "mixing": "uniform"}, "mixing.name = 'uniform': allowed is a complete graph"),
        ({"mixing": {"name": "matrix", "rows": [[1]]}}, "mixing.rows: allowed are 4 rows of 4 weights each"),
        (
            {"num_agents": 2, "mixing": {"name": "matrix", "rows": [[0.5, 0.4], [0.4, 0.6]]}},
            "mixing.rows: row 0 sums to 0.9; allowed is 1",
        ),
        (
            {"num_agents": 2, "mixing": {"name": "matrix", "rows": [[0.5, 0.5], [0.25, 0.75]]}},
            "mixing.rows: 0.5 at [0, 1] and 0.25 at [1, 0]; allowed is equal",
        ),
        (
            {"num_agents": 2, "mixing": {"name": "matrix", "rows": [[1.5, -0.5], [-0.5, 1.5]]}},
            "mixing.rows: the weight -0.5; allowed are weights from 0 on",
        ),
        ({"num_agents": 1500}, "num_agents = 1500: allowed are 1 to 1438, the training samples"),
        (
            {"clusters": [[0, 1], [2]]},
            "clusters = [[0, 1], [2]]: allowed are groups that hold each agent 0 to 3 once",
        ),
        ({"clusters": 5}, "clusters = 5: allowed are 1 to num_agents = 4"),
        (
            {"algorithm": "d-psgd", "barrier": "none"},
            "barrier.name = 'none': allowed with algorithm.name = 'd-psgd' is all",
        ),
        (
            {"checkpoint": {"every_evaluations": 1, "score": "f1"}},
            "checkpoint.score = 'f1': allowed are loss, accuracy",
        ),
        (
            {"checkpoint": {"num_to_keep": 2}},
            "checkpoint.num_to_keep = 2: allowed with checkpoint.every_evaluations only",
        ),
        ({"links": [{"delay": 1, "between": [[0], [4]]}]}, "links.0.between: agent 4; allowed are 0 to 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], expected: str) -> None:
    line = refusal(**({"num_agents": 4, "clusters": 1} | settings))
    assert line.startswith(expected)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "image-parquet", "train": "no.parquet", "test": "no.parquet"}, "task.data.train = 'no.parquet': no "),
        ({"name": "text", "path": "no.txt"}, "task.data.path = 'no.txt': no such file; allowed is a UTF-8 text file"),
        (
            {"name": "cifar10", "root": "nowhere"},
            "task.data.root = 'nowhere': no such folder; allowed is a folder that",
        ),
        (
            {"name": "custom", "train": "no.such:thing", "test": "math:pi"},
            "task.data.train = 'no.such:thing': the module 'no.such' cannot be imported",
        ),
        (
            {"name": "custom", "train": ".here:thing", "test": "math:pi"},
            "task.data.train = '.here:thing': the module '.here' cannot be imported (TypeError: ",
        ),
        (
            {"name": "custom", "train": "math:nothing", "test": "math:pi"},
            "task.data.train = 'math:nothing': the module 'math' has no attribute 'nothing'",
        ),
        (
            {"name": "custom", "train": "math", "test": "math:pi"},
            "task.data.train = 'math': allowed are import paths of the form module:attribute",
        ),
    ],
)
def test_data_that_is_not_there_is_named(data: dict[str, Any], expected: str) -> None:
    line = refusal(task={"data": data})
    assert line.startswith(expected)
    assert len(line.splitlines()) == 1


def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sum(1) - y) ** 2


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            {"loss": "mse"},
            "task.loss.name = 'mse': fails on the first samples, 16 in training (outputs of shape (16,",
        ),
        (
            {"metrics": ["mae"]},
            "task.metrics: mae: fails on the first test samples (outputs of shape (128, 10),",
        ),
        ({"model": "char-lm"}, "task.model.name = 'char-lm': "),
        ({"model": "resnet-20"}, "task.model.name = 'resnet-20': allowed are images of at least 4x4 pixels"),
        (
            {"loss": {"name": "custom", "function": double}},
            "task.loss.name = 'custom': fails on the first samples, 16 in training (it has shape (16,)",
        ),
        (
            {"model": {"name": "custom", "factory": "math:nothing"}},
            "task.model.factory = 'math:nothing': the module 'math' has no attribute 'nothing'",
        ),
        (
            {"model": {"name": "custom", "factory": "math:pi"}},
            "task.model.factory = 'math:pi': allowed is something callable, or the import path of it",
        ),
        (
            {
                "model": {
                    "name": "custom",
                    "factory": torch.nn.Linear,
                    "arguments": {"in_features": 3, "out_features": 10},
                }
            },
            "task.model.name = 'custom': fails on the first samples, 16 in training (",
        ),
        (
            {
                "model": {
                    "name": "custom",
                    "factory": torch.nn.Linear,
                    "arguments": {"in_features": 64, "out_features": 10, "dtype": torch.float64},
                }
            },
            "task.model: parameter or buffer weight is torch.float64; allowed is torch.float32",
        ),
    ],
)
def test_a_model_loss_or_metric_that_does_not_suit_the_data_is_refused(task: dict[str, Any], expected: str) -> None:
    line = refusal(task=task)
    assert line.startswith(expected)
    assert len(line.splitlines()) == 1


def rows(num_agents: int, num_steps: int) -> list[Row]:
    """Return a schedule in which everyone reads the one before it in time."""
    return [
        Row(agent, step, float(step), step + 1.0, step + 1.0, (Read((agent + 1) % num_agents, step, 0, 0),))
        for step in range(num_steps)
        for agent in range(num_agents)
    ]


def with_schedule(path: Path, **settings: Any) -> str:
    sized = {"num_agents": 4, "num_steps": 3, "clusters": 1, "schedule": str(path)}
    return refusal(**(sized | settings)).replace(str(path), "PATH")


def test_a_schedule_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    assert with_schedule(path) == "schedule = 'PATH': no such file; allowed is the schedule.parquet of a run"
    path.write_bytes(b"nothing of the kind")
    assert with_schedule(path).startswith("schedule = 'PATH': cannot be read (")
    pd.DataFrame({"agent": [1]}).to_parquet(path)
    assert with_schedule(path) == "schedule = 'PATH': is no schedule; allowed is a schedule.parquet of a run"


def test_a_schedule_that_does_not_fit_the_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    write_rows(path, rows(4, 3), {})
    accepted = load_config({"engine": "local", "num_agents": 4, "num_steps": 3, "schedule": str(path)})
    make_plan(accepted)
    assert with_schedule(path, num_agents=3) == "num_agents = 3: allowed with the schedule is 4"
    assert with_schedule(path, num_agents=5) == "num_agents = 5: allowed with the schedule is 4"
    too_few = "num_steps = 4: allowed with the schedule is up to 3, what agent 0 takes in it"
    assert with_schedule(path, num_steps=4) == too_few
    line = with_schedule(path, topology={"name": "edges", "edges": PATH4})
    assert line.startswith("topology: agents 3 and 0 are no neighbors; the schedule has the first read the second")
    live = with_schedule(path, engine={"name": "ray", "mode": "live"})
    assert live.startswith("schedule: allowed with engine.mode = 'live' is null")


SERVER: dict[str, Any] = {"num_agents": 4, "clusters": 1, "links": []}


def with_server(algorithm: Any, **settings: Any) -> str:
    return refusal(**(SERVER | {"algorithm": algorithm} | settings))


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            {"gathering": {"name": "k-sync", "k": 5}},
            "algorithm.gathering.k = 5: allowed are 1 to the number of workers, 4",
        ),
        (
            {"gathering": {"name": "k-async", "k": 5}},
            "algorithm.gathering.k = 5: allowed are 1 to the number of workers, 4",
        ),
        (
            {"gathering": {"name": "quorum", "k": 5, "grace_seconds": 1}},
            "algorithm.gathering.k = 5: allowed are 1 to the number of workers, 4",
        ),
        (
            {"gathering": {"name": "quorum", "k": 2}},
            "algorithm.gathering.grace_seconds: is required; allowed is a number from 0 up to 1e+09",
        ),
        (
            {"gathering": {"name": "quorum", "k": 2, "grace_seconds": -1}},
            "algorithm.gathering.grace_seconds = -1: allowed are values from 0 on",
        ),
        (
            {"gathering": {"name": "quorum", "k": 2, "grace_seconds": 1}, "shards": 2},
            "algorithm.shards = 2: allowed with gathering.name = 'quorum' is 1, unless its k is 1 or the number of "
            "workers; k-batch-async has no such limit",
        ),
        ({"gathering": {"name": "k-async", "k": 0}}, "algorithm.gathering.k = 0: allowed are values from 1 on"),
        ({"gathering": "k-async"}, "algorithm.gathering.k: is required; allowed is a whole number from 1 on"),
        (
            {"gathering": {"name": "n-softsync", "n": 5}},
            "algorithm.gathering.n = 5: allowed are 1 to the number of workers, 4",
        ),
        (
            {"gathering": {"name": "adasync", "initial_k": 4, "every_seconds": 1}},
            "algorithm.gathering.initial_k = 4: allowed are values below the number of workers, 4",
        ),
        (
            {"gathering": "k-syn"},
            "algorithm.gathering = 'k-syn': allowed are sync, k-sync, k-batch-sync, k-async, k-batch-async, "
            "quorum, asgd, n-softsync, adasync, ringmaster, rennala, malenia, ringleader, ia2sgd, adversarial, epochs, "
            "custom; did you mean k-sync?",
        ),
        (
            {"correction": {"name": "gap-bounded", "bound": 1}, "shards": 2},
            "algorithm.shards = 2: allowed with correction.name = 'gap-bounded' is 1, since it looks at all "
            "parameters at once",
        ),
        (
            {"gathering": {"name": "k-async", "k": 2}, "shards": 3},
            "algorithm.shards = 3: allowed with gathering.name = 'k-async' is 1, unless its k is 1 or the number of "
            "workers; k-batch-async has no such limit",
        ),
        (
            {"gathering": {"name": "adasync", "every_seconds": 1}, "shards": 2},
            "algorithm.shards = 2: allowed with gathering.name = 'adasync' is 1, unless its k is 1 or the number of "
            "workers; k-batch-async has no such limit",
        ),
        (
            {"correction": {"name": "delay-adaptive", "above": "shrink"}},
            "algorithm.correction.smoothness = null: allowed is a number with above = 'shrink', null with the others",
        ),
        ({"correction": "gap-bounded"}, "algorithm.correction.bound: is required; allowed is a number above 0"),
        (
            {"correction": {"name": "dc-asgd-c", "lamda_0": 1}},
            "algorithm.correction.lamda_0 = 1: no such setting; did you mean algorithm.correction.lambda_0?",
        ),
    ],
)
def test_a_server_s_settings_that_do_not_fit_are_refused(algorithm: dict[str, Any], expected: str) -> None:
    assert with_server({"name": "server"} | algorithm) == expected


@pytest.mark.parametrize("k", [1, 4])
def test_shards_may_wait_for_one_worker_or_for_all(k: int) -> None:
    algorithm = {"name": "server", "gathering": {"name": "k-async", "k": k}, "shards": 3}
    plan = make_plan(load_config({"engine": "local"} | SERVER | {"algorithm": algorithm}))
    assert len(plan.servers) == 3


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            {"gathering": {"name": "k-sync", "k": 2}},
            "algorithm.gathering.name = 'k-sync': allowed with elastic averaging are sync, k-async, asgd; each "
            "exchange is waited for, and none is given up",
        ),
        (
            {"gathering": {"name": "k-batch-async", "k": 2}},
            "algorithm.gathering.name = 'k-batch-async': allowed with elastic averaging are sync, k-async, asgd; "
            "each exchange is waited for, and none is given up",
        ),
        (
            {"gathering": {"name": "adasync", "every_seconds": 1}},
            "algorithm.gathering.name = 'adasync': allowed with elastic averaging are sync, k-async, asgd; each "
            "exchange is waited for, and none is given up",
        ),
        (
            {"gathering": {"name": "ringmaster", "delay_threshold": 2}},
            "algorithm.gathering.name = 'ringmaster': allowed with elastic averaging are sync, k-async, asgd; each "
            "exchange is waited for, and none is given up",
        ),
        (
            {"gathering": "sync", "alpha": 0.3},
            "algorithm.alpha = 0.3: allowed are values up to 0.25, one over the number of workers that move the "
            "center at once",
        ),
        ({"alpha": 1}, "algorithm.alpha = 1: allowed are values below 1"),
    ],
)
def test_elastic_averaging_s_settings_that_do_not_fit_are_refused(algorithm: dict[str, Any], expected: str) -> None:
    assert with_server({"name": "elastic-averaging"} | algorithm) == expected


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            {"gathering": {"name": "k-sync", "k": 2}},
            "algorithm.gathering.name = 'k-sync': allowed with rounds of local steps are those that take all work, as "
            "sync, k-async, asgd, k-batch-async and n-softsync",
        ),
        (
            {"gathering": {"name": "adasync", "base": "k-batch-sync", "every_seconds": 1}},
            "algorithm.gathering.name = 'adasync': allowed with rounds of local steps are those that take all work, "
            "as sync, k-async, asgd, k-batch-async and n-softsync",
        ),
        (
            {"gathering": "ringleader"},
            "algorithm.gathering.name = 'ringleader': allowed with rounds of local steps are those that take all work, "
            "as sync, k-async, asgd, k-batch-async and n-softsync",
        ),
        (
            {"gathering": "asgd", "average": "samples"},
            "algorithm.average = 'samples': allowed with gathering.name = 'asgd', which takes one pseudo-gradient for "
            "an update, is equal",
        ),
        ({"outer": "adam"}, "algorithm.outer = 'adam': allowed are sgd, delayed-nesterov, heloco"),
        (
            {"outer": "heloco", "shards": 2},
            "algorithm.shards = 2: allowed with outer.name = 'heloco' is 1, since it looks at whole tensors",
        ),
        (
            {"merging": "radial-directional", "shards": 3},
            "algorithm.shards = 3: allowed with merging = 'radial-directional' is 1, since it looks at whole tensors",
        ),
        ({"merging": "median"}, "algorithm.merging = 'median': allowed are 'mean' or 'radial-directional'"),
        ({"outer": {"name": "sgd", "momentum": 1}}, "algorithm.outer.momentum = 1: allowed are values below 1"),
        ({"outer": {"name": "sgd", "momentum": -0.1}}, "algorithm.outer.momentum = -0.1: allowed are values from 0 on"),
        ({"outer": {"name": "sgd", "step_size": 0}}, "algorithm.outer.step_size = 0: allowed are values above 0"),
        (
            {"outer": {"name": "delayed-nesterov", "every": 0}},
            "algorithm.outer.every = 0: allowed are values from 1 on",
        ),
        (
            {"gathering": "asgd", "outer": {"name": "delayed-nesterov", "spread": 0.3}},
            "algorithm.outer.spread = 0.3: allowed are 0 to 1/N, 0.25 with N = 4",
        ),
        (
            {"outer": {"name": "delayed-nesterov", "every": 8, "spread": 0.2}},
            "algorithm.outer.spread = 0.2: allowed are 0 to 1/N, 0.125 with N = 8",
        ),
        (
            {"weighting": {"name": "polynomial", "a": 0}},
            "algorithm.weighting.a = 0: allowed are values above 0",
        ),
        ({"weighting": "linear"}, "algorithm.weighting = 'linear': allowed are constant, polynomial, hinge"),
    ],
    ids=str,
)
def test_settings_of_rounds_around_a_server_that_do_not_fit_are_refused(algorithm: Any, expected: str) -> None:
    assert with_server({"name": "diloco"} | algorithm).splitlines()[0].startswith(expected)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            {"gathering": {"name": "k-batch-sync", "k": 9}},
            "algorithm.gathering.name = 'k-batch-sync': allowed with rounds of local steps are those that take all "
            "work, as sync, k-async, asgd, k-batch-async and n-softsync",
        ),
        ({"mix": 0}, "algorithm.mix = 0: allowed are values above 0"),
        ({"mix": 1.5}, "algorithm.mix = 1.5: allowed are values up to 1"),
        ({"proximal": -1}, "algorithm.proximal = -1: allowed are values from 0 on"),
        ({"outer": "sgd"}, "algorithm.outer = 'sgd': no such setting; it is a setting of algorithm.name = 'diloco'"),
    ],
    ids=str,
)
def test_settings_of_fedasync_that_do_not_fit_are_refused(algorithm: Any, expected: str) -> None:
    assert with_server({"name": "fedasync"} | algorithm).startswith(expected)


def test_where_nobody_waits_an_update_may_take_more_gradients_than_there_are_workers() -> None:
    for name in ("k-batch-sync", "k-batch-async"):
        algorithm = {"name": "server", "gathering": {"name": name, "k": 9}}
        make_plan(load_config({"engine": "local"} | SERVER | {"algorithm": algorithm}))
    for name in ("k-sync", "k-async"):
        line = with_server({"name": "server", "gathering": {"name": name, "k": 9}})
        assert line == "algorithm.gathering.k = 9: allowed are 1 to the number of workers, 4"


@pytest.mark.parametrize("algorithm", ["server", "elastic-averaging", "diloco", "fedasync", "fedglomo"])
def test_settings_of_peers_have_no_meaning_beside_a_server(algorithm: str) -> None:
    assert with_server(algorithm, barrier="all") == (
        "barrier.name = 'all': allowed with a server is none; algorithm.gathering says who is waited for"
    )
    assert with_server(algorithm, on_non_finite_loss="isolate") == (
        "on_non_finite_loss = 'isolate': allowed with a server is stop; all workers compute at its weights"
    )


def test_a_schedule_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    write_rows(path, rows(4, 3), {"num_agents": "4", "num_servers": "0"})
    line = with_schedule(path, algorithm="server")
    assert line == ("schedule = 'PATH': was recorded with 0 server(s); allowed with the algorithm is one with 1")
    config = load_config({"engine": "local", "num_steps": 3, "algorithm": "server"} | SERVER)
    own = [row for row in make_plan(config).schedule if row is not None]
    write_rows(path, own, {"num_agents": "4", "num_servers": "1"})
    fitting = {"engine": "local", "num_steps": 3, "algorithm": "server", "schedule": str(path)} | SERVER
    make_plan(load_config(fitting))
    assert with_schedule(path, algorithm="d-asgd") == (
        "schedule = 'PATH': was recorded with 1 server(s); allowed with the algorithm is one with 0"
    )
    assert with_schedule(path, algorithm={"name": "server", "shards": 2}) == (
        "schedule = 'PATH': was recorded with 1 server(s); allowed with the algorithm is one with 2"
    )
    assert with_schedule(path, algorithm="server", num_agents=3) == ("num_agents = 3: allowed with the schedule is 4")
    assert with_schedule(path, algorithm="server", num_steps=4) == (
        "num_steps = 4: allowed with the schedule is up to 3, what its server takes"
    )


def test_a_run_folder_that_exists_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    config = load_config({"name": "taken", "storage_path": str(tmp_path)})
    RunFolder.create(config)
    with pytest.raises(SettingsError, match=r"^name = 'taken': the run folder .*taken exists; allowed is a name that"):
        RunFolder.create(config)
    (tmp_path / "file").write_text("")
    unwritable = load_config({"storage_path": str(tmp_path / "file")})
    with pytest.raises(SettingsError, match=r"^storage_path = '.*file': cannot be written \("):
        RunFolder.create(unwritable)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- 1\n- 2\n", "holds a list; allowed is a mapping of settings"),
        ("just text", "holds a str; allowed is a mapping of settings"),
        ("a: [1,\nb: {", "is not YAML ("),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML (could not determine a constructor"),
        ("1: 2", "no such setting"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_config(file)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "run.yaml") == load_config()


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^.*no\.yaml: cannot be read \(.*\); allowed is a YAML file of settings$"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"bytes\.yaml: cannot be read \("):
        load_config(tmp_path / "bytes.yaml")
