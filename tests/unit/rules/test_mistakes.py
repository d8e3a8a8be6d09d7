"""What people write by mistake, out of habit from other frameworks or by a slip: the error says what to write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from ray_pcasgd.config import Config
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.hints import for_file
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.reference import places, settings_below, settings_classes
from ray_pcasgd.runs.settings.vocabulary import NAMES, WORDS
from ray_pcasgd.sweep.settings import load_sweep

ASSIGNED = """
lr=0.1 -> lr = 0.1: no such setting; write step_size
learning_rate=0.1 -> write step_size
epochs=3 -> epochs = 3: no such setting; write num_epochs
num_train_epochs=3 -> write num_epochs
max_steps=3 -> write num_steps
workers=4 -> workers = 4: no such setting; write num_agents
world_size=4 -> write num_agents
device=cuda -> no such setting; write engine.device where engine.name = 'local', or engine.gpus_per_agent where it is
gpus=1 -> write engine.gpus_per_agent
use_gpu=true -> write engine.gpus_per_agent
batch=8 -> write batch_size
per_device_train_batch_size=8 -> write batch_size
theta=0.3 -> theta = 0.3: no such setting; write algorithm.theta
momentum=0.9 -> write optimizer.momentum
weight_decay=1e-4 -> write optimizer.weight_decay
mode=live -> write engine.mode
alpha=0.1 -> write algorithm.alpha or partition.alpha
delay=10 -> delay = 10: no such setting; write links: [{delay: 10}], in steps, or links: [{delay: 200ms}]
latency=200ms -> write links: [{delay: 10}]
stragglers={3: 2} -> write compute.stragglers
scheduler=cosine -> write step_size
warmup_ratio=0.1 -> write warmup_steps
model=resnet-20 -> write task.model
dataset=cifar10 -> write task.data
criterion=mse -> write task.loss
metrics=[mae] -> write task.metrics
output_dir=out -> write storage_path
run_name=mine -> write name
eval_steps=10 -> write evaluate_every
save_total_limit=2 -> write checkpoint.num_to_keep
random_seed=1 -> write seed
seeds=3 -> write seed; compare --seeds
resume=true -> write ray-pcasgd train --resume RUN
fp16=true -> write precision = fp16
torch_dtype=bfloat16 -> write precision
use_amp=true -> write precision
precision=16-mixed -> did you mean fp16?
precision=bfloat16 -> did you mean bf16?
precision=32 -> did you mean float32?
gradient_clip_val=1 -> write gradient_clipping.norm
gradient_accumulation_steps=2 -> write accumulate; batch_size stays
config.seed=1 -> write the settings themselves at the top
optimizer=adafactor -> optimizer = 'adafactor': allowed are sgd, adamw, adam, lion, yellowfin, torch, custom; did you
optimizer=torch.optim:Adafactor -> write {name: torch, optimizer: 'torch.optim:Adafactor'}
optimizer=torch.optim.RMSprop -> write {name: torch, optimizer: 'torch.optim:RMSprop'}
optimizer={name: torch, optimizer: torch.optim.RMSprop} -> of the form module:attribute; write torch.optim:RMSprop
task.data={name: custom, factory: 'x:y', train: 'x:y', test: 'x:y'} -> write task.data.train and task.data.test
optimizer={name: adamw, lr: 0.1} -> optimizer.lr = 0.1: no such setting; write step_size
optimizer={name: sgd, lr: 0.1} -> optimizer.lr = 0.1: no such setting; write step_size
optimizer.lr=0.1 -> optimizer.lr = 0.1: no such setting; write step_size
algorithm=PC-ASGD -> did you mean pc-asgd?
algorithm=pcasgd -> did you mean pc-asgd?
algorithm=pc_asgd -> did you mean pc-asgd?
algorithm=easgd -> did you mean elastic-averaging?
algorithm=fedlomo -> did you mean fedglomo?
algorithm=asgd -> did you mean server?
algorithm={type: pc-asgd} -> did you mean algorithm.name?
algorithm.gathering=sync -> it is a setting of algorithm.name = 'server' or 'elastic-averaging' or
algorithm={name: server, gathering: k-sync} -> algorithm.gathering.k: is required; allowed is a whole number from 1 on
algorithm={name: server, gathering: ksync} -> did you mean k-sync?
algorithm=ringleader -> did you mean server?
algorithm={name: server, gathering: ringmaster-asgd} -> did you mean ringmaster?
algorithm={name: server, gathering: ringmaster} -> algorithm.gathering.delay_threshold: is required; allowed is a whole
algorithm={name: server, gathering: {name: ringmaster, delay_threshold: 0}} -> allowed are values from 1 on
algorithm={name: server, gathering: {name: malenia, target: 0.5}} -> gathering.target = 0.5: allowed are values from
algorithm={name: server, correction: hinge} -> did you mean dampened?
algorithm=3 -> write a name such as pc-asgd, or {name: pc-asgd, theta: 0.3}
topology=fully-connected -> topology = 'fully-connected': allowed are complete, ring
topology=fully_connected -> did you mean complete?
topology=Ring -> did you mean ring?
topology=grid -> did you mean torus?
topology={type: ring} -> did you mean topology.name?
topology.rows=2 -> it is a setting of topology.name = 'torus', not of 'complete'
topology=torus -> topology.rows: is required; allowed is a whole number from 1 on
topology={name: edges, edges: [0, 1]} -> write edges: [[0, 1], [1, 2]], pairs of agents
mixing.matrix=[[1]] -> mixing.matrix = [[1]]: no such setting; write mixing: {name: matrix, rows: [[...], ...]}
mixing=[[1, 0], [0, 1]] -> write {name: matrix, rows: [[...], ...]}
engine=live -> write {name: ray, mode: live}
engine=cpu -> did you mean local?
engine.mode=live -> engine.mode = 'live': no such setting; it is a setting of engine.name = 'ray', not of 'local'
engine.device=gpu -> write cpu, cuda, or cuda:1 for one of several GPUs
links=10 -> write [{delay: 10}] for all links
links.delay=10 -> write [{delay: 10}] for all links
links={delay: 10} -> write [{delay: 10}] for all links
links=[10] -> links.0 = 10: allowed is a mapping of settings; write {delay: 10}
links=[{law: 10}] -> did you mean links.0.delay?
links=[{delay: 10, unit: ms}] -> write seconds, or steps, or a delay with its own unit, such as 200ms
links=[{delay: 10, links: [0, 1]}] -> write links: [[0, 1]], pairs of agents
links=[{delay: 10, between: [0, 1]}] -> write between: [[0, 1], [2, 3]], groups of agents
links.3.delay=2 -> links.3: no such item; allowed are numbers below 1, or another list, links=[...]
clusters=[0, 1] -> write how many, or groups of agents such as [[0, 1], [2, 3]]
compute=2 -> compute = 2: allowed is a mapping of settings; write {law: 2}, seconds of a step
compute.stragglers=[3] -> write {3: 2s}, by agents the seconds that they take longer
compute.agents.9=2 -> compute.agents: agent 9; allowed are 0 to 7
barrier=sync -> did you mean all?
barrier=2 -> write a name such as all, or {name: bounded, staleness: 2}
partition=non-iid -> did you mean dirichlet?
partition.alpha=0.1 -> it is a setting of partition.name = 'dirichlet', not of 'iid'
task=digits -> write {data: digits, model: mlp}
task.model=module:factory -> write {name: custom, factory: 'module:factory'}
task.model=ResNet20 -> did you mean resnet-20?
task.loss=module:f -> write {name: custom, function: 'module:f'}
task.loss=CrossEntropyLoss -> did you mean cross-entropy?
task.data=module:data -> write {name: custom, train: 'module:one', test: 'module:other'}, one to train on and one
task.data=CIFAR-10 -> did you mean cifar10?
task.data.path=x -> it is a setting of task.data.name = 'hugging-face' or 'text', not of 'digits'
task.metrics=accuracy -> task.metrics = 'accuracy': allowed is a list; write a list such as [accuracy]
task.metrics=[acc] -> did you mean accuracy?
checkpoint=true -> write {every_evaluations: 1}
checkpoint.every=1 -> did you mean checkpoint.every_evaluations?
num-steps=10 -> num-steps = 10: no such setting; did you mean num_steps?
numSteps=10 -> did you mean num_steps?
NUM_STEPS=10 -> did you mean num_steps?
num_agent=3 -> did you mean num_agents?
algorithm.Theta=0.3 -> did you mean algorithm.theta?
seed=random -> seed = 'random': allowed is a whole number
num_agents=[8] -> num_agents = [8]: allowed is a whole number
num_agents=-1 -> num_agents = -1: allowed are values from 1 on
num_steps=1_000 -> num_steps = '1_000': allowed is a whole number; write 1000
step_size='0.1' -> write 0.1, without quotes
step_size=0,1 -> step_size = '0,1': allowed are numbers, constant, linear, cosine, multi-step, stairs, warmup-stable
step_size=[0.1] -> step_size = [0.1]: allowed are numbers, constant, linear, cosine, multi-step, stairs
step_size=cosine -> step_size.start: is required; allowed is a number
optimizer.nesterov=on -> optimizer.nesterov = 'on': allowed are true and false; write true
optimizer.nesterov=1 -> write true
checkpoint.state_seconds=none -> write null
name=my run -> write letters, digits and the signs . _ -, the first a letter or a digit
name=20240501 -> name = 20240501: allowed is text; put it in quotes
algorithm.theta -> --set algorithm.theta: allowed is key=value, for example algorithm.theta=0.3
=3 -> --set =3: allowed is key=value
"""


def cases() -> list[tuple[str, str]]:
    return [(line.split(" -> ")[0], line.split(" -> ")[1]) for line in ASSIGNED.strip().splitlines()]


@pytest.mark.parametrize(("assignment", "expected"), cases())
def test_the_error_says_what_to_write(assignment: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config({"engine": "local"}, [assignment]))
    lines = str(caught.value).splitlines()
    assert any(expected in line for line in lines), lines
    name = assignment.split("=")[0].split(".")[0]
    assert all(name in line for line in lines)


DATA = TensorDataset(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"data": DATA}, "write a pair of data sets, (to train on, to test on)"),
        ({"data": [DATA, DATA]}, "write a pair of data sets, (to train on, to test on)"),
        ({"data": (DATA, DATA, DATA)}, "write a pair of data sets, (to train on, to test on)"),
        (torch.nn.Linear, "write {data: digits, model: mlp}"),
        ({"loss": 3}, "task.loss = 3: allowed are cross-entropy, mse, custom"),
    ],
)
def test_objects_at_a_wrong_place_are_named(task: Any, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_config({"task": task})
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (
            {"space": {"step_size": 0.1}},
            "space.step_size = 0.1: allowed is a list or a mapping of settings; write a list",
        ),
        ({"space": {"step_size": {"min": 1, "max": 2}}}, "space.step_size.low: is required; allowed is a number"),
        (
            {"space": {"seed": [1]}, "num_agents": 3},
            "num_agents = 3: no such setting; it is a setting of each run: write",
        ),
        ({"space": {"step_size": [1]}, "search": "optunna"}, "did you mean optuna?"),
    ],
)
def test_a_sweep_s_errors_say_what_to_write(sweep: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_sweep(sweep)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("num_steps=10", "num_steps=10: is no file of settings; write --set num_steps=10"),
        ("pc-asgd", "pc-asgd: is no file of settings; write --set algorithm=pc-asgd"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read ("),
    ],
)
def test_what_is_no_file_of_settings_is_named(source: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_config(source)
    assert str(caught.value).startswith(expected)


def test_a_run_s_folder_is_no_file_of_settings_but_holds_one(tmp_path: Path) -> None:
    assert for_file(tmp_path, []) == "it is a folder; write a YAML file"
    (tmp_path / "config.yaml").write_text("seed: 1")
    assert for_file(tmp_path, []).startswith(f"write {tmp_path}/config.yaml, or --resume {tmp_path}")
    assert for_file(tmp_path / "config.yaml", []) == ""


def test_a_wrong_assignment_is_told_before_a_file_is_read() -> None:
    with pytest.raises(SettingsError, match=r"^--set algorithm\.theta: allowed is key=value"):
        load_config("0.3", ["algorithm.theta"])


def test_every_word_means_one_setting_that_there_is() -> None:
    paths = {place.path for place in places()} | {"engine.name"}
    words = [word for words in WORDS.values() for word in words.split()]
    assert set(WORDS) <= paths
    assert len(words) == len(set(words))
    assert not set(words) & set(Config.model_fields)


def test_every_other_name_means_one_that_there_is() -> None:
    allowed = {place.path: place.allowed for place in places()} | {
        "task.metrics": "accuracy | mae | mse | top-accuracy"
    }
    for path, names in NAMES.items():
        assert set(names) <= set(allowed[path].replace(",", " ").split()), path


class Other(Config):
    pass


def kinds() -> list[type[Any]]:
    return [kind for kind in settings_classes() if kind is not Config]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_objects_of_a_subclass_are_refused_since_no_run_could_be_recorded_as_theirs(kind: type[Any]) -> None:
    own = type("Own", (kind,), {"__module__": "theirs"})
    place = next((place for place in places() if kind in settings_below(place.field.annotation)), None)
    assert place is not None
    value = own.model_construct(**{name: field.default for name, field in kind.model_fields.items()})
    tree = _nested(place.path, value)
    for build in _ways(tree, place.path):
        with pytest.raises(SettingsError, match=r"theirs\.Own|of a class that config\.yaml cannot name"):
            build()


def _nested(path: str, value: Any) -> Any:
    for part in reversed(path.split(".")):
        value = [value] if part == "0" else {part: value}
    return value


def _ways(tree: Any, path: str) -> list[Callable[[], Any]]:
    return [lambda: load_config(tree), lambda: load_config(None, changes=tree), lambda: load_config(tree, ["seed=1"])]


def test_a_subclass_of_the_settings_themselves_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"of a class that config\.yaml cannot name"):
        load_config(Other())
