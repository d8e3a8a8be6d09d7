"""What would crash in the middle of a run is refused before it, in one line that names the setting."""

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.cli.app import main
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer, fit_together
from ray_pcasgd.tasks.ray_stream import RowGroup, StreamedImages
from tests.unit import odd_tasks as odd

STACKED = {"name": "local", "batched": "always"}
PIECES = {"algorithm": {"name": "server", "gathering": {"name": "k-sync", "k": 2}}}
SMALL: dict[str, Any] = {"engine": "local", "num_agents": 4, "num_steps": 4, "evaluate_every": 2, "links": []}


def settings(**more: Any) -> dict[str, Any]:
    return SMALL | more


def refusal(**more: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(settings(**more)))
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def of_model(factory: Any, **arguments: Any) -> dict[str, Any]:
    model = {"name": "custom", "factory": factory, **({"arguments": arguments} if arguments else {})}
    return {"task": {"model": model}}


def of_data(train: Any, test: Any = None, **more: Any) -> dict[str, Any]:
    data = {"name": "custom", "train": train, "test": test or odd.samples(400, 500), **more}
    return {"task": {"data": data, "model": odd.network}}


CUSTOM = "task.model.name = 'custom': "
IN_TRAINING = CUSTOM + "fails on the first samples, 16 in training ("
TOO_HIGH = "is 10; allowed are 0 to 9, of which the model's 10 outputs are the scores"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (of_model(odd.model(odd.auxiliary)), CUSTOM + "returns a tuple in training; allowed with task.loss.name = "),
        (of_model(odd.model(odd.eager)), CUSTOM + "fails on the first test samples (for training alone)"),
        (of_model(odd.model(lambda own, x: own.layer(x.view(16, 64)))), CUSTOM + "fails on the first test samples ("),
        (of_model(odd.model(lambda own, x: own.layer(x[:, :3]))), IN_TRAINING),
        (of_model(odd.model(lambda own, x: own.layer(x.cuda()))), IN_TRAINING),
        (of_model(odd.model(odd.keeping_the_graph)), CUSTOM + "fails on the backward pass of the first samples, 16 in"),
        (of_model(odd.model(lambda own, x: own.layer(x).detach())), "task.loss.name = 'cross-entropy': fails on the f"),
        (of_model(nn.Flatten), CUSTOM + "no parameter of it is trained; allowed are models that have some"),
        (of_model(lambda: odd.network().requires_grad_(False)), CUSTOM + "no parameter of it is trained"),
        (of_model(odd.network().double()), "task.model: parameter or buffer 0.weight is torch.float64; allowed is tor"),
        (of_model(lambda: nn.Linear(64, 10, dtype=torch.complex64)), "task.model: parameter or buffer weight is torc"),
        (of_model(odd.network().half()), "task.model: parameter or buffer 0.weight is torch.float16; allowed is torch"),
        (of_model(lambda: nn.Linear(64, 10, device="meta")), CUSTOM + "cannot be built ("),
        (of_model(odd.with_buffer(torch.eye(3).to_sparse())), "task.model: mask is torch.sparse_coo; allowed are den"),
        (of_model(lambda: nn.Linear(64, 8)), "task.data: the label of train sample "),
        (of_model(odd.failing), "task.model.factory = 'tests.unit.odd_tasks:failing': fails (KeyError: 'width')"),
        (of_model(odd.Wide), "task.model.factory = 'tests.unit.odd_tasks:Wide': fails (TypeError: "),
        (of_model(odd.Uncopyable()), "task.model.factory = '<tests.unit.odd_tasks:Uncopyable>': a module that cannot"),
        (of_model(odd.network(), width=3), "task.model.arguments = {'width': 3}: allowed with a module itself are "),
        (of_model(lambda: odd.ONE_FOR_ALL), "task.model.factory: 0.weight is the same object in all models that it"),
        (of_model(lambda: nn.Sequential(odd.STATISTICS, nn.Linear(64, 10))), "task.model.factory: 0.running_mean is "),
        (of_model(odd.unseeded), "task.model.factory: 0.bias is another one at each call, although the generators of"),
        (of_model(lambda: nn.Sequential(nn.Linear(64, 9), nn.LazyLinear(2), nn.Linear(3, 1))), CUSTOM + "fails on the"),
        (of_model(odd.model(lambda own, x: own.layer(x), lambda own: setattr(own, "other", nn.LazyLinear(3)))),
         "task.model: other.weight has no shape yet, after a first forward pass in evaluation mode"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_train_is_refused(given: dict[str, Any], expected: str) -> None:
    assert refusal(**given).startswith(expected)


WAS = "; allowed is what it was: torch.float32 of shape (2, 64) on cpu"


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (odd.growing, "task.model: seen is torch.float32 of shape (18, 64) on cpu after a forward pass" + WAS),
        (odd.doubling, "task.model: seen is torch.float64 of shape (2, 64) on cpu after a forward pass" + WAS),
        (odd.losing, "task.model: seen is gone after a forward pass" + WAS),
        (odd.adding, "task.model: more has come after a forward pass; allowed are the layers and tensors that it was"),
        (odd.relayering, "task.model: layer.bias is in a new layer after a forward pass; allowed are the layers and"),
        (odd.reshaping, "task.model: layer.weight is torch.float32 of shape (10, 32) on cpu after a forward"),
        (odd.thawing, "task.model: other.weight, which was frozen at the start, is trained after a forward pass; allo"),
        (odd.untying, "task.model: layer.weight and other.weight were one tensor and are two after a forward pass"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_forward_pass_that_changes_the_set_or_the_form_of_tensors_is_refused(forward: Any, expected: str) -> None:
    prepare = {
        odd.thawing: lambda own: own.other.requires_grad_(False),
        odd.untying: odd.tie,
    }.get(forward, lambda own: None)
    assert refusal(**of_model(odd.model(forward, prepare))).startswith(expected)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (odd.samples(labels=odd.LABELS + 1), odd.samples(), "the label of train sample 9 " + TOO_HIGH),
        (odd.samples(labels=odd.LABELS - 1), None, "the label of train sample 0 is -1; allowed are 0 to 9"),
        (odd.samples(labels=odd.changed(odd.LABELS, 399, 10)), None, "the label of train sample 399 " + TOO_HIGH),
        (odd.samples(), odd.samples(labels=odd.changed(odd.LABELS, 31, 10)), "the label of test sample 31 " + TOO_HIGH),
        (odd.samples(images=odd.changed(odd.IMAGES, 123, np.nan)), None, "the input of train sample 123 has numbers"),
        (odd.samples(), odd.samples(images=odd.changed(odd.IMAGES, 7, np.inf)), "the input of test sample 7 has numb"),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_samples_that_no_model_takes_are_named(train: Any, test: Any, expected: str, in_memory: bool) -> None:
    if not in_memory and "input" in expected:
        pytest.skip("those that are made anew are looked at as they are drawn")
    line = refusal(**of_data(train, test, num_classes=10, in_memory=in_memory))
    assert line.startswith(f"task.data: {expected}")


@pytest.mark.parametrize(
    ("is_trained", "expected"),
    [
        (True, "has a parameter centers, which is not trained; allowed are parameters of the model"),
        (False, "each call changes its level; allowed are losses that agents can share"),
    ],
)
def test_a_loss_with_a_state_of_its_own_is_refused(is_trained: bool, expected: str) -> None:
    line = refusal(task={"model": odd.network, "loss": odd.Centered(is_trained)})
    assert line == f"task.loss.name = 'custom': {expected}"
    weighted = nn.CrossEntropyLoss(weight=torch.ones(10))
    make_plan(load_config(settings(task={"model": odd.network, "loss": weighted})))


def test_labels_that_do_not_count_are_no_error() -> None:
    data = of_data(odd.samples(labels=odd.changed(odd.LABELS, 3, -100)), num_classes=10)
    assert make_plan(load_config(settings(**data))).why_alone is None


def test_a_loss_of_the_users_own_meets_the_lowest_and_the_highest_label() -> None:
    data = of_data(odd.samples(labels=odd.changed(odd.LABELS, 399, 10)), num_classes=10)
    data["task"]["loss"] = odd.mean_cross_entropy
    line = refusal(**data)
    assert line.startswith("task.loss.name = 'custom': fails on labels 0 and 10, of train samples [0, 399] (IndexError")


def test_the_highest_integer_of_all_inputs_meets_the_model() -> None:
    """As characters that no embedding has do, wherever in the data they stand."""
    characters = (odd.IMAGES * 16).long()
    characters[399, 3] = 17
    words = lambda: nn.Sequential(nn.Embedding(17, 2), nn.Flatten(), nn.Linear(128, 10))  # noqa: E731
    data = {"name": "custom", "train": odd.samples(images=characters), "test": odd.samples(images=characters, last=50)}
    line = refusal(task={"data": data, "model": words})
    assert line.startswith(CUSTOM + "fails on inputs from 0 to 17, of train samples [0, 399] (IndexError: index out of")


def shares_memory(with_buffer: bool) -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    if with_buffer:
        made.register_buffer("target", made[1].weight.data)
    else:
        made[1].weight.data = made[0].weight.data
    return made


@pytest.mark.parametrize("with_buffer", [False, True])
def test_parameters_that_share_memory_with_others_are_refused(with_buffer: bool) -> None:
    names = {"1.weight", "target"} if with_buffer else {"0.weight", "1.weight"}
    line = refusal(**of_model(functools.partial(shares_memory, with_buffer)))
    first, second = line.removeprefix("task.model: ").split(" share memory; ")[0].split(" and ")
    assert {first, second} == names


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (lambda i: ("text", 1), "sample 0 has a str for input; allowed are tensors, arrays, numbers and PIL images"),
        (lambda i: (odd.IMAGES[i], 1) if i != 20 else None, "sample 20 is a NoneType; allowed are pairs (input, targe"),
        (lambda i: (odd.IMAGES[i], 1) if i != 20 else (odd.IMAGES[i], 1, 2), "sample 20 is a tuple; allowed are pairs"),
        (odd.shorter, "samples 0 and 40 have inputs of shapes (64,) and (63,); allowed is one shape, by padding or"),
        (odd.broken, "sample 37 cannot be made (OSError: this file is broken)"),
    ],
)
def test_items_of_an_odd_form_are_named(item: Any, expected: str) -> None:
    assert refusal(**of_data(odd.Items(item))).startswith(f"task.data.train: {expected}")
    assert refusal(**of_data(odd.samples(), odd.Items(item))).startswith(f"task.data.test: {expected}")


def test_a_batch_may_hold_a_sample_twice() -> None:
    """Of a shard that is smaller than a batch."""
    given = of_data(odd.Items(lambda i: (odd.IMAGES[i], int(odd.LABELS[i])), 12), num_classes=10, in_memory=False)
    own = make_plan(load_config(settings(**given)))
    inputs, targets = own.config.task.batches(own.data, own.specs[0].shard, 16, 0, 0).next()
    assert inputs.shape == (16, 64)
    assert targets.shape == (16,)


def test_items_of_later_batches_are_of_the_first_ones_shape() -> None:
    longer = odd.Items(lambda i: (odd.IMAGES[i % 400][: 64 if i < 1024 else 60], 1), 1100)
    assert refusal(**of_data(longer)).startswith(
        "task.data.train: samples 0 and 1024 have inputs of shapes (64,) and ("
    )


@pytest.mark.parametrize(
    ("batch_size", "more", "pieces"),
    [
        (1, {}, "1 in training ("),
        (1, {"algorithm": "server"}, "1 in training ("),
        (4, PIECES, "1 in training, which is one of algorithm.micro_batches = 4 pieces of a batch of 4 ("),
        (5, PIECES, "1 in training, which is one of algorithm.micro_batches = 4 pieces of a batch of 5 ("),
    ],
)
def test_batch_norm_of_one_sample_is_refused(batch_size: int, more: dict[str, Any], pieces: str) -> None:
    line = refusal(**of_model(odd.normed), batch_size=batch_size, **more)
    assert line.startswith(f"{CUSTOM}fails on the first samples, {pieces}Expected more than 1 value per channel when")
    make_plan(load_config(settings(**of_model(odd.normed), batch_size=8, **more)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (of_model(lambda: nn.Sequential(odd.network(), nn.Dropout(0.5))), "cannot run stacked (it draws random number"),
        (of_model(odd.model(odd.deciding)), "cannot run stacked ("),
        (of_model(odd.model(odd.renorm)), "its forward pass changes its weights; allowed are auto and never"),
        (of_model(odd.model(odd.starting)), "its forward pass makes or moves late; allowed are auto and never"),
        (
            of_model(odd.model(lambda own, x: own.layer(x))) | {"optimizer": {"weight_decay": 0.1}},
            "other.bias gets no gradient, and momentum and weight decay would move it all the same; allowed are auto",
        ),
    ],
)
def test_a_model_that_cannot_be_stacked_is_refused_where_it_must_be(given: dict[str, Any], expected: str) -> None:
    line = refusal(engine=STACKED, **given)
    assert line.startswith("engine.batched = 'always': task.model.name = 'custom'")
    assert expected in line
    assert make_plan(load_config(settings(**given))).config.task.model.name == "custom"


def test_variants_that_cannot_be_stacked_are_refused(tmp_path: Path) -> None:
    for forward, expected in (
        (odd.renorm, "its forward pass changes its weights"),
        (odd.weighing, "fails on several runs at once"),
    ):
        base = settings(**of_model(odd.model(forward)), storage_path=str(tmp_path))
        with pytest.raises(SettingsError, match=expected) as caught:
            fit_together([load_config(base, changes={"step_size": eta}) for eta in (0.1, 0.2)])
        assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_servers_that_hold_the_weights_refuse_models_that_change_them() -> None:
    given = of_model(odd.model(odd.renorm))
    assert refusal(algorithm="server", **given).startswith("task.model: a forward pass changes the model's own weights")
    make_plan(load_config(settings(algorithm={"name": "elastic-averaging", "alpha": 0.1}, **given)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["center"],
            "mixed_buffers: 'center' matches no floating-point buffer of the model; it has 1.running_mean, 1.",
        ),
        (["1.num_batches_tracked"], "mixed_buffers: '1.num_batches_tracked' matches no floating-point buffer of the m"),
        ("some", "mixed_buffers = 'some': allowed are 'statistics', 'all' or 'none' or a list"),
    ],
)
def test_buffers_to_mix_are_those_that_there_are(given: Any, expected: str) -> None:
    assert refusal(mixed_buffers=given, **of_model(odd.normed)).startswith(expected)


def test_an_infinite_buffer_cannot_be_mixed() -> None:
    line = refusal(mixed_buffers="all", **of_model(odd.with_buffer(torch.full((3,), -torch.inf))))
    assert line == "mixed_buffers = 'all': mask has numbers that are not finite at the start"


@pytest.mark.parametrize(
    "given",
    [
        of_model(odd.network()),
        of_model(functools.partial(nn.Linear, 64, 10)),
        of_model(odd.Wide, width=10),
        of_model(odd.Wide, width=14),
        of_model(odd.lazy),
        of_model(odd.drawn_by_others),
        of_model(lambda: nn.Sequential(odd.FROZEN, nn.Linear(12, 10))),
        of_model(lambda: torch.jit.script(odd.network())),
        of_model(lambda: nn.DataParallel(odd.network())),
        of_model(lambda: nn.Sequential(nn.Linear(64, 12), nn.ReLU(inplace=True), nn.Linear(12, 10)))
        | {"engine": STACKED},
        {
            "task": {
                "model": odd.model(lambda own, x: {"logits": own.layer(x)}),
                "loss": odd.of_logits,
                "metrics": [],
            }
        },
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_only_looks_odd_trains(given: dict[str, Any], tmp_path: Path) -> None:
    """And all agents start alike."""
    own = make_plan(load_config(settings(**given)))
    first, second = (Peer(spec, own.data) for spec in own.specs[:2])  # type: ignore[arg-type]
    assert torch.equal(first.weights, second.weights)
    result = Trainer(load_config(settings(**given)), storage_path=str(tmp_path)).fit()
    assert result.error is None


def test_an_instance_is_copied_for_each_agent_and_left_alone(tmp_path: Path) -> None:
    given = odd.normed()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    result = Trainer(load_config(settings(**of_model(given))), storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    own = make_plan(load_config(settings(**of_model(given))))
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    assert torch.equal(agent.replica.module[0].weight, before["0.weight"])  # type: ignore[index]
    assert agent.replica.module is not given


def test_a_trial_changes_nothing(tmp_path: Path) -> None:
    given = settings(**of_model(lambda: nn.Sequential(odd.normed(), nn.Dropout(0.5))))
    alone = Trainer(load_config(given), storage_path=str(tmp_path / "alone")).fit()
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    make_plan(load_config(given))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1]["state"]["key"])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    again = Trainer(load_config(given), storage_path=str(tmp_path / "again")).fit()
    assert again.metrics["test_loss"] == alone.metrics["test_loss"]


def test_of_streamed_images_only_a_first_batch_is_read() -> None:
    from ray_pcasgd.runs.plan.plan import _training
    from ray_pcasgd.runs.plan.tryout import try_out
    from ray_pcasgd.tasks.samples import Samples, TaskData

    read = []

    class Counted(StreamedImages):
        def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            read.append(number)
            return np.full((40, 1, 8, 8), 7, np.uint8), np.arange(40) % 10

    groups = [RowGroup("nowhere", number, 40) for number in range(9)]
    streamed = Counted(groups, "img", "label", "nowhere")
    test = Samples(torch.zeros(50, 1, 8, 8, dtype=torch.uint8), torch.arange(50) % 10)
    config = load_config({"engine": "ray", "batch_size": 32})
    try_out(config, TaskData(streamed, test, 10), [np.arange(3)], _training(config))
    assert set(read) == {0}


def test_it_is_refused_on_the_command_line_with_exit_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--set", "engine=local", "--set", "task.model={name: custom, factory: 'torch.nn:Flatten'}"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *given])
    assert ended.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors == [
        "error: task.model.name = 'custom': no parameter of it is trained; allowed are models that have some"
    ]
    assert not (tmp_path / "runs").exists()
