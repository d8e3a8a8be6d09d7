"""A ``LightningModule`` trains here as under Lightning's own Trainer; what has no meaning here is refused."""

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from ray_pcasgd import SettingsError, Trainer, from_lightning
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import load_config

STEPS = 14


def data() -> tuple[TensorDataset, TensorDataset]:
    inputs, targets = load_breast_cancer(return_X_y=True)
    scaled = torch.from_numpy((inputs - inputs.mean(0)) / inputs.std(0)).float()
    labels = torch.from_numpy(targets)
    return TensorDataset(scaled[:400], labels[:400]), TensorDataset(scaled[400:], labels[400:])


class Net(lightning.LightningModule):
    """A small network, whose optimizer a test gives."""

    def __init__(self, configure: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["configure"])
        self.layers = nn.Sequential(nn.Linear(30, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.auroc = BinaryAUROC()
        self.configure = configure or (lambda module: torch.optim.SGD(module.parameters(), lr=0.1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs).squeeze(1)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        inputs, labels = batch
        loss = nn.functional.binary_cross_entropy_with_logits(self(inputs), labels.float())
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: Any) -> None:
        inputs, labels = batch
        outputs = self(inputs)
        self.auroc(outputs, labels)
        right = ((outputs > 0) == labels).float().mean()
        self.log_dict({"right": right, "auroc": self.auroc}, on_epoch=True)
        self.log("val_loss", nn.functional.binary_cross_entropy_with_logits(outputs, labels.float()))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Plain(Net):
    """Without dropout, whose draws each Trainer has its own way with."""

    def __init__(self, configure: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__(configure)
        self.layers[3] = nn.Identity()


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.1)


def decaying_matrices(module: nn.Module) -> Any:
    matrices, others = ([p for p in module.parameters() if (p.ndim > 1) == one] for one in (True, False))
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, 1e-4)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def adagrad(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(module.parameters(), lr=0.02, weight_decay=1e-2)


def rates_of_layers(module: nn.Module) -> Any:
    first, *others = module.parameters()
    optimizer = torch.optim.RMSprop([{"params": others}, {"params": [first], "lr": 1e-3}], lr=2e-3)
    return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 5), "interval": "step"}]


def under_lightning(settings: dict[str, Any], module: Net) -> dict[str, Tensor]:
    """Return the weights after Lightning's own training, on the batches that the run has."""
    plan = make_plan(load_config(settings))
    config, spec = plan.config, plan.specs[0]
    module.load_state_dict(config.task.build_model(plan.data, config.seed).state_dict())
    batches: Any = config.task.batches(plan.data, spec.shard, config.batch_size, config.seed, 0)
    order = [batches.indices_at(number).tolist() for number in range(STEPS)]
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=STEPS, accelerator="cpu", devices=1, deterministic=True, **dict.fromkeys(quiet, False)
        )
        trainer.fit(module, DataLoader(data()[0], batch_sampler=order))
    assert trainer.global_step == STEPS
    return module.state_dict()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)


def fit(folder: Path, module: Any, **settings: Any) -> tuple[dict[str, Any], Result]:
    whole = {
        "engine": "local", "algorithm": "d-psgd", "num_agents": 1, "links": [], "num_steps": STEPS,
        "evaluate_every": STEPS, "batch_size": 16, "storage_path": str(folder), **settings,
    }  # fmt: skip
    whole |= from_lightning(module, data(), num_steps=STEPS, metrics=["auroc"])
    result = Trainer(whole).fit()
    assert result.error is None
    return whole, result


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("configure", "name"),
    [(sgd, "sgd"), (adamw, "adamw"), (decaying_matrices, "adamw"), (adagrad, "torch"), (rates_of_layers, "torch")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_agent_trains_as_lightnings_trainer(configure: Any, name: str, tmp_path: Path) -> None:
    module = Plain(configure)
    settings, result = fit(tmp_path, module)
    assert settings["optimizer"]["name"] == name
    assert result.checkpoint is not None
    found = result.checkpoint.state_dict()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    expected = under_lightning(settings, module)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6)
        assert not torch.allclose(tensor, start[key], atol=1e-3)


def test_logged_values_are_means_and_logged_metrics_those_of_the_whole_test_set(tmp_path: Path) -> None:
    _, result = fit(tmp_path, Net, num_agents=2, task={"test_batch_size": 50})
    assert result.checkpoint is not None
    model = Net()
    model.load_state_dict(result.checkpoint.state_dict())
    model.eval()
    inputs, labels = data()[1].tensors
    with torch.no_grad():
        outputs = model(inputs)
    loss = nn.functional.binary_cross_entropy_with_logits(outputs, labels.float())
    assert result.metrics["test_auroc"] == pytest.approx(roc_auc_score(labels.numpy(), outputs.numpy()), abs=1e-6)
    assert result.metrics["test_right"] == pytest.approx(float(((outputs > 0) == labels).float().mean()), abs=1e-6)
    assert result.metrics["test_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert {key for key in result.metrics if key.startswith("test_")} == {"test_loss", "test_right", "test_auroc"}


class Accumulating(Net):
    """Its metric takes in every training batch, as nobody resets it, and is logged with its loss alone."""

    validation_step = lightning.LightningModule.validation_step

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.mean(loss.detach())
        self.log("mean", self.mean)
        return loss


def test_a_module_without_validation_is_tested_by_its_training_step(tmp_path: Path) -> None:
    settings = from_lightning(Accumulating, data(), metrics=["mean"])
    assert "evaluate" not in settings["task"]
    # As many samples in each batch of the test set, so that a mean of batches is that of samples.
    settings["task"]["test_batch_size"] = 13
    run = {"engine": "local", "num_agents": 2, "num_steps": 3, "storage_path": str(tmp_path)}
    result = Trainer(run | settings).fit()
    assert result.error is None
    assert result.metrics["test_mean"] == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    assert result.metrics["test_train_loss"] == pytest.approx(result.metrics["test_loss"], rel=1e-6)


def test_an_agent_that_was_sent_takes_the_same_steps() -> None:
    settings = from_lightning(Net(rates_of_layers), data(), num_steps=STEPS, metrics=["auroc"])
    plan = make_plan(load_config(settings | {"engine": "local", "num_agents": 2, "links": []}))
    here = Peer(plan.specs[0], plan.data)
    there = Peer(*pickle.loads(pickle.dumps((plan.specs[0], plan.data))))
    start = here.weights.clone()
    for agent in (here, there):
        agent.step([])
        agent.step([])
    assert torch.equal(here.weights, there.weights)
    assert not torch.equal(here.weights, start)


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Hooked(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass


class Stepping(Net):
    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        pass


class Untrained(Net):
    training_step = lightning.LightningModule.training_step


class Iterating(Net):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        pass


class Attached(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1 / self.trainer.estimated_stepping_batches)


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__(lambda module: torch.optim.SGD(list(module.parameters())[1:], lr=0.1))


def optimizers(module: nn.Module) -> Any:
    return [torch.optim.SGD([parameter], lr=0.1) for parameter in module.parameters()]


def every_epoch(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def plateau(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Manual, r"Manual\.automatic_optimization = False: allowed is True"),
        (Hooked, r"Hooked\.on_before_optimizer_step: nothing calls it here; allowed are modules without"),
        (Stepping, r"Stepping\.optimizer_step: nothing calls it here"),
        (Untrained, r"Untrained\.training_step: there is none"),
        (Iterating, r"Iterating\.training_step: takes dataloader_iter; allowed is a batch"),
        (Attached, r"Attached\.configure_optimizers: fails without a Trainer \(RuntimeError: .*not attached"),
        (Frozen, r"Frozen\.configure_optimizers: the optimizer has 5 parameter tensors, the module trains 6; allowed"),
        (lambda: Net(optimizers), r"returns 6 optimizers and 0 schedulers; allowed are one optimizer"),
        (lambda: Net(lambda module: None), r"returns 0 optimizers and 0 schedulers"),
        (lambda: Net(every_epoch), r"interval = 'epoch' of StepLR: allowed is 'step', or no scheduler and the setting"),
        (lambda: Net(plateau), r"ReduceLROnPlateau follows a run's figures; allowed are schedulers of steps alone"),
        (
            lambda: Net(decaying_matrices),
            r"returns a CosineAnnealingLR; allowed are schedulers together with num_steps",
        ),
        (lambda: nn.Linear(2, 2), r"from_lightning: Linear is no LightningModule; allowed is one, or what makes one"),
    ],
)
def test_what_has_no_meaning_here_is_refused_in_one_line(module: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as error:
        from_lightning(module, data())
    assert "\n" not in str(error.value)


class NeedsTrainer(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.trainer.max_epochs * super().training_step(batch, batch_idx)["loss"]


class Silent(Net):
    def validation_step(self, batch: Any) -> None:
        self.log("right", 1.0)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (NeedsTrainer, r"task\.step.*NeedsTrainer is not attached to a `Trainer`"),
        (Silent, r"task\.evaluate.*validation_step returns no loss, and logs none whose name ends in loss"),
        (Net, r"task\.evaluate.*returns a tuple for 'auroc'; allowed are numbers, and tuples for the metrics"),
    ],
)
def test_steps_that_cannot_run_here_are_refused_before_the_start(module: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=told) as error:
        Trainer(from_lightning(module, data()) | {"engine": "local", "storage_path": str(tmp_path)}).fit()
    assert "\n" not in str(error.value)
