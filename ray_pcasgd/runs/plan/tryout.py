"""A run's model, loss, metrics and data, tried out together before anything starts: in one line what would crash."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.agents.local_momentum_worker import CHANGED_WITH_FEDGLOMO
from ray_pcasgd.agents.local_tensors import is_same
from ray_pcasgd.agents.module_tensors import named_tensors, public_name
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.participant import LearnerSpec, Training
from ray_pcasgd.agents.replica import Replica, unflatten
from ray_pcasgd.agents.variants import Variants
from ray_pcasgd.agents.worker import CHANGED_WEIGHTS
from ray_pcasgd.base.imports import import_object, import_path
from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.batching import compute_together
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.plan.common import ModelSize
from ray_pcasgd.runs.plan.memory import require_memory
from ray_pcasgd.runs.settings.errors import one_line, yaml_value
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.models import CustomModel
from ray_pcasgd.tasks.objective import CrossEntropy, CustomMeasure
from ray_pcasgd.tasks.precision import computing, fitting
from ray_pcasgd.tasks.ray_stream import StreamedImages
from ray_pcasgd.tasks.sample_checks import is_integer, labels_of, require_finite, require_labels, require_samples
from ray_pcasgd.tasks.samples import AnySamples, Samples
from ray_pcasgd.tasks.step import loss_with
from ray_pcasgd.tasks.task import TaskData
from ray_pcasgd.tasks.trees import Batch, is_pair, moved, num_samples, split

_LONGEST_REASON = 400


class TriedOut(NamedTuple):
    """What is known of a model that was tried out."""

    why_alone: str | None
    """Why agents that have it cannot be stepped together with others, if so."""
    size: ModelSize


def try_out(config: Config, data: TaskData, shards: Sequence[np.ndarray], training: Mapping[str, Any]) -> TriedOut:
    """Train on one batch and test on a few samples, on copies; the run does not change, nor does any generator.

    Args:
        config: The settings.
        data: The data; of streamed images only what makes a first batch is read.
        shards: The agents' samples.
        training: The fields of every agent's ``Training``.

    Raises:
        ValueError: model, loss, metrics and data do not go together, or the agents do not fit into memory.

    """
    trial = _Trial(config, data, shards[0], Training(**training))
    with seeded(stream_seed(config.seed, "trial")):
        require_samples(data)
        replica = trial.build()
        require_memory(config, replica.weights.numel())
        why_alone = trial.train(replica)
        trial.test(replica)
        if isinstance(config.engine, LocalSettings) and config.engine.batched == "always" and trial.may_be_stacked:
            trial.train_stacked(why_alone)
        size = ModelSize(replica.weights.numel(), replica.buffers.numel(), trial.own_bytes)
    return TriedOut(why_alone, size)


def try_out_variants(variants: Variants) -> None:
    """Let variants take one step together; they are of no use afterwards.

    Raises:
        ValueError: the model cannot be stepped so.

    """
    with seeded(0), _naming(f"task.model.name = {variants.spec.recipe.task.model.name!r}", "several runs at once"):
        variants.compute_all()


class _Trial:
    def __init__(self, config: Config, data: TaskData, shard: np.ndarray, training: Training) -> None:
        self.config, self.data, self.shard, self.training = config, data, shard, training
        self.task = config.task
        self.model = f"task.model.name = {self.task.model.name!r}"
        self.loss = f"task.loss.name = {self.task.loss.name!r}"
        if not data.are_pairs:
            self.loss = f"{self.model}: its own loss"
        if self.task.step is not None:
            self.loss = f"task.step = {import_path(self.task.step)!r}"
        # What is not there is elsewhere: where agents are actors, or trials of a sweep.
        self.device = torch.device(training.device if torch.cuda.is_available() else "cpu")
        self.precision = fitting(config.precision, self.device)
        self.shared: dict[str, Tensor] = {}
        self.has_checked_labels = False
        self.own_bytes = 0
        """Bytes of the replica's own tensors that training has changed."""

    def build(self) -> Replica:
        """Return a replica of the model.

        Raises:
            ValueError: it cannot be built, or differs from call to call, so that agents cannot start alike.

        """
        replica = self._built()
        if not replica.weights.numel():
            raise ValueError(f"{self.model}: no parameter of it is trained; allowed are models that have some")
        for setting, flat, layout in (
            (self.model, replica.weights, replica.layout),
            (f"mixed_buffers = {yaml_value(self.config.mixed_buffers)}", replica.buffers, replica.buffer_layout),
        ):
            for name, value in unflatten(flat, layout).items():
                if not is_finite(value):
                    raise ValueError(f"{setting}: {public_name(name)} has numbers that are not finite at the start")
        return replica

    def _built(self) -> Replica:
        try:
            module = self.task.build_model(self.data, self.config.seed)
            replica = Replica(module, self.device, self.config.mixed_buffers)
            self.shared = self._shared(module) if isinstance(self.task.model, CustomModel) else {}
            return replica
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{self.model}: cannot be built ({_reason(error)})") from error

    def _shared(self, module: nn.Module) -> dict[str, Tensor]:
        """Return, as copies, the tensors that the factory gives to every model, and none of which may change."""
        other = self.task.build_model(self.data, self.config.seed)
        named, others = named_tensors(module), named_tensors(other)
        for name, tensor in named.items():
            if name not in others or not is_same(tensor.detach().cpu(), others[name].detach().cpu()):
                raise ValueError(
                    f"task.model.factory: {public_name(name)} is another one at each call, although the generators of "
                    "Python, NumPy and PyTorch are seeded alike; agents must start alike"
                )
        known = {id(tensor) for tensor in others.values()}
        shared = {name: tensor.detach().clone() for name, tensor in named.items() if id(tensor) in known}
        trained = [name for name in shared if named[name].requires_grad]
        if trained:
            raise ValueError(_same_object(trained[0]))
        return shared

    def train(self, replica: Replica) -> str | None:
        """Let the replica compute gradients, as its agent will; return why it cannot do so stacked, if so."""
        algorithm = self.config.algorithm
        pieces = max(algorithm.pieces if isinstance(algorithm, ServerRule) else 1, self.config.accumulate)
        weights, own = replica.weights.clone(), replica.copy_of_local()
        of_loss = self.tensors_of_loss()
        unreached: set[str] = set()
        # The user's own may fail only at the second batch, on what the first has left.
        for number in range(2 if isinstance(self.task.model, CustomModel) else 1):
            batch = self.batch(number)
            self.compute(replica, batch, pieces)
            replica.check_names()
            _, reached = replica.take_gradient()
            if reached is not None:
                missed = [slot.name for slot, got in zip(replica.layout, reached, strict=True) if not got]
                if len(missed) == len(replica.layout):
                    raise ValueError(f"{self.loss}: gives no trained parameter a gradient; allowed are those that do")
                unreached |= set(missed)
        moved = [name for name, tensor in self.tensors_of_loss().items() if not is_same(tensor, of_loss[name])]
        if moved:
            raise ValueError(f"{self.loss}: each call changes its {moved[0]}; allowed are losses that agents can share")
        now = named_tensors(replica.module)
        changed = [name for name, tensor in self.shared.items() if not is_same(tensor, now[name].detach())]
        if changed:
            raise ValueError(_same_object(changed[0]))
        changes_weights = not torch.equal(weights, replica.weights)
        if changes_weights and isinstance(algorithm, ServerRule) and not algorithm.workers_step:
            raise ValueError(CHANGED_WEIGHTS)
        if changes_weights and isinstance(algorithm, FedGLOMO):
            raise ValueError(CHANGED_WITH_FEDGLOMO)
        if isinstance(algorithm, Rule):
            if algorithm.probes_at(0):
                self.probe(replica, batch)
            if algorithm.measures_curvature and self.config.num_agents > 1 and self.config.optimizer.has_feedback:
                self.measure_curvature(self.batch(0, algorithm.curvature_samples))
        self.config.optimizer.check(replica.weights.clone(), replica.parts)
        local = replica.local()
        made = sorted(local.keys() - own.keys())
        self.own_bytes = sum(t.nbytes for name, t in local.items() if name not in own or not is_same(t, own[name]))
        return self.why_alone(changes_weights, made, sorted(unreached))

    def tensors_of_loss(self) -> dict[str, Tensor]:
        """Return copies of the tensors of a loss or step that is a module.

        Raises:
            ValueError: some of them want to be trained.

        """
        made = self.task.loss.made if isinstance(self.task.loss, CustomMeasure) else import_object(self.task.step)
        if not isinstance(made, nn.Module):
            return {}
        trained = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"{self.loss}: has a parameter {trained[0]}, which is not trained; allowed are parameters of the model"
            )
        return {name: tensor.detach().clone() for name, tensor in named_tensors(made).items()}

    def batch(self, number: int, at_most: int | None = None) -> Batch:
        """Return one of the first batches of agent 0, with fewer samples where there would be too many."""
        data, config = self.data, self.config
        size = config.batch_size if at_most is None else min(config.batch_size, at_most)
        if isinstance(data.train, StreamedImages):
            inputs, targets = data.train.take(range(min(size, len(data.train))))
            changed = self.task.augmentation.apply(inputs, torch.Generator())
            batch = (data.normalization(changed), targets)
        else:
            batches = self.task.batches(data, self.shard, size, config.seed, 0)
            batches.restore(number)
            with _naming("task.data", f"batch {number} of agent 0"):
                batch = batches.next()
        if is_pair(batch):
            require_finite("the input of the first batch's sample", batch[0])
        return moved(batch, self.device)

    def compute(self, replica: Replica, batch: Batch, pieces: int) -> None:
        """Pass forward and backward, in the pieces that workers take."""
        for some, where in self.pieces_of(batch, pieces):
            loss_of = self.loss_of_pair if self.task.is_short(batch) else self.own_loss
            with computing(self.precision, self.device):
                loss = loss_of(replica, some, where)
            with _naming(self.model, f"the backward pass of {where}"):
                torch.autograd.backward(loss)
        replica.take_in()

    def pieces_of(self, batch: Batch, pieces: int) -> Iterator[tuple[Batch, str]]:
        """Yield the pieces of a batch that hold samples, each with what it is in words."""
        setting = "accumulate" if pieces == self.config.accumulate else "algorithm.micro_batches"
        try:
            number = num_samples(batch) if pieces > 1 else self.config.batch_size
        except ValueError as error:
            raise ValueError(f"{setting} = {pieces}: {error}") from None
        for some in split(batch, pieces):
            size = num_samples(some) if pieces > 1 else number
            of_batch = f", which is one of {setting} = {pieces} pieces of a batch of {number}"
            if size:
                yield some, f"the first samples, {size} in training" + (of_batch if size < number else "")

    def own_loss(self, replica: Replica, batch: Batch, where: str) -> Tensor:
        """Return the loss of the user's step, or that which the model computes itself."""
        with _naming(self.loss if self.task.step is not None else self.model, where):
            loss = self.task.loss_of(replica.module, batch)
            if not loss.requires_grad:
                raise ValueError("returns a loss that depends on no parameter; allowed is one that is trained by")
            return loss

    def loss_of_pair(self, replica: Replica, batch: tuple[Tensor, Tensor], where: str) -> Tensor:
        """Return the loss of a model's outputs and the targets."""
        some, wanted = batch
        with _naming(self.model, where):
            outputs = replica.module(some)
        scored = [one for one in (self.task.loss, *self.task.measured) if isinstance(one, CrossEntropy)]
        if scored and not self.has_checked_labels and isinstance(outputs, Tensor) and outputs.ndim > 1:
            require_labels(self.data, outputs.shape[-1], scored[0].ignored)
            self.has_checked_labels = True
        if not isinstance(outputs, Tensor) and not isinstance(self.task.loss, CustomMeasure):
            kind = type(outputs).__name__
            problem = f"{self.model}: returns a {kind} in training; allowed with {self.loss} is a tensor"
            hint = ", as with task.model.arguments.aux_logits = false" if "logits" in dir(outputs) else ""
            raise ValueError(problem + hint)
        with _naming(self.loss, where):
            loss = self.task.loss(outputs, wanted)
            if loss.ndim or not loss.requires_grad:
                what = f"has shape {tuple(loss.shape)}" if loss.ndim else "depends on no parameter"
                raise ValueError(f"it {what}; allowed is a scalar that depends on the model's parameters")
        return loss

    def test_extremes(self, replica: Replica, setting: str, samples: AnySamples) -> None:
        """Raise ``ValueError`` where the lowest or the highest integer of all inputs, or label, is too much.

        As a character is that no embedding has, or a label for which the user's own loss has no output.
        """
        if isinstance(samples, Samples) and is_integer(samples.inputs):
            rows = samples.inputs.reshape(len(samples), -1)
            places = [int(rows.amin(1).argmin()), int(rows.amax(1).argmax())]
            where = f"inputs from {int(rows.min())} to {int(rows.max())}, of {setting} samples {places}"
            with _naming(self.model, where):
                replica.module(self.data.normalization(samples.take(places)[0]).to(self.device))
        labels = labels_of(samples)
        if labels is None or labels.ndim != 1 or not isinstance(self.task.loss, CustomMeasure):
            return
        places = [int(labels.argmin()), int(labels.argmax())]
        inputs, targets = samples.take(places)
        where = f"labels {' and '.join(str(int(labels[place])) for place in places)}, of {setting} samples {places}"
        with _naming(self.model, where):
            outputs = replica.module(self.data.normalization(inputs).to(self.device))
        with _naming(self.loss, where):
            self.task.loss(outputs, targets.to(self.device))

    def test(self, replica: Replica) -> None:
        """Test the replica in batches as large as those of an evaluation, the smallest included."""
        test = self.data.test
        at_once = self.task.test_batch_size
        number = len(test) if len(test) <= at_once else at_once + len(test) % at_once
        # F1 or AUC of a few samples of one class mean nothing, and may raise.
        whole = [one for one in self.task.measured if isinstance(one, CustomMeasure) and one.over == "whole"]
        some = tuple(one for one in self.task.measured if one not in whole)
        parts = [(some, False), *([(tuple(whole), True)] if whole else [])]
        # What a function of the user's returns, or the model itself, is all measured at once.
        by_step = self.task.has_own_figures or not self.data.are_pairs
        if by_step:
            parts = [(self.task.measured, bool(whole))]
        with replica.undisturbed():
            for metrics, is_whole in parts:
                task = self.task.model_copy(update={"metrics": metrics})
                data = self.data if is_whole else self.data._replace(test=test.subset(range(number)))
                part = "the test samples" if is_whole else "the first test samples"
                with _naming(self.model, part), computing(self.precision, self.device):
                    values = task.examine(replica.module, data, self.device).values
                if by_step:
                    self.check_score(values)
            replica.check_names()
            if not self.data.are_pairs or self.task.step is not None:
                return
            replica.module.eval()
            with torch.no_grad(), computing(self.precision, self.device):
                self.test_extremes(replica, "train", self.data.train)
                self.test_extremes(replica, "test", test)

    def check_score(self, values: Mapping[str, float]) -> None:
        """Raise ``ValueError`` where checkpoints are kept by what is not measured."""
        score = self.config.checkpoint.score
        if score is not None and score not in values:
            raise ValueError(f"checkpoint.score = {score!r}: allowed are {', '.join(values)}")

    def probe(self, replica: Replica, batch: Batch) -> None:
        """Let the model run at other weights than its own, as PC-ASGD-PV's probes do."""
        tensors = replica.named(replica.weights.clone(), replica.buffers.clone()) | replica.copy_of_local()
        context = computing(self.precision, self.device)
        with torch.no_grad(), context, replica.undisturbed(), _naming(self.model, "a probe of candidate weights"):
            loss_with(self.task.loss_of, replica.module, tensors, batch)

    def measure_curvature(self, batch: Batch) -> None:
        """Let a learner measure its loss's curvature, as PC-ASGD's stability bound may ask for it."""
        # Where the driver is: the agents' GPUs may be on other machines.
        training = replace(self.training, device=str(self.device))
        learner = Learner(LearnerSpec(agent=0, recipe=training, neighbors=(), shard=self.shard), self.data)
        try:
            learner.curvature_on(learner.snapshot(), batch, torch.ones_like(learner.weights))
        except Exception as error:
            problem = f"algorithm.stability.name = 'curvature': {self.model} cannot be differentiated twice"
            allowed = "a number, as stability = 1"
            rule = self.config.algorithm
            if isinstance(rule, PredictingRule) and not rule.model_copy(update={"bounded": False}).measures_curvature:
                allowed += ", or bounded = false"
            raise ValueError(f"{problem} ({_reason(error)}); allowed is {allowed}") from error

    def why_alone(self, changes_weights: bool, made: Sequence[str], unreached: Sequence[str]) -> str | None:
        """Return why the model cannot be stepped together with others, if so."""
        optimizer = self.config.optimizer
        if not optimizer.stackable and not isinstance(self.config.algorithm, ServerRule):
            return f"optimizer.name = {optimizer.name!r}: its steps are each agent's own"
        if self.config.accumulate > 1:
            return f"accumulate = {self.config.accumulate}: pieces of a batch are each agent's own"
        if self.config.precision != "float32":
            return f"precision = {self.config.precision!r}: each agent computes by itself"
        if self.task.step is not None:
            return f"{self.loss}: it is called for one agent at a time"
        if not self.data.are_pairs:
            return f"{self.model}: it computes its loss itself, one agent at a time"
        if changes_weights:
            return f"{self.model}: its forward pass changes its weights"
        if made:
            return f"{self.model}: its forward pass makes or moves {public_name(made[0])}"
        if unreached and (not isinstance(optimizer, SGD) or optimizer.momentum or optimizer.weight_decay):
            name = public_name(unreached[0])
            return f"{self.model}: {name} gets no gradient, and momentum and weight decay would move it all the same"
        return None

    @property
    def may_be_stacked(self) -> bool:
        """Whether the algorithm's agents are ever stepped together."""
        algorithm = self.config.algorithm
        return not isinstance(algorithm, ServerRule) or (algorithm.pieces == 1 and not algorithm.workers_step)

    def train_stacked(self, why_alone: str | None) -> None:
        """Let two agents compute stacked."""
        setting = "engine.batched = 'always'"
        if why_alone is not None:
            raise ValueError(f"{setting}: {why_alone}; allowed are auto and never")
        recipe = self.training
        if isinstance(self.config.algorithm, ServerRule):
            recipe = replace(recipe, optimizer=SGD())  # the server has the optimizer, and workers send gradients
        spec = LearnerSpec(agent=0, recipe=recipe, neighbors=(), shard=self.shard)
        try:
            compute_together([Learner(spec, self.data), Learner(spec, self.data)])
        except Exception as error:
            reason = _reason(error)
            if "randomness" in reason:
                reason = "it draws random numbers, as dropout does"
            problem = f"{setting}: {self.model} cannot run stacked ({reason})"
            raise ValueError(f"{problem}; allowed are auto and never") from error


def _same_object(name: str) -> str:
    return (
        f"task.model.factory: {public_name(name)} is the same object in all models that it makes; allowed is a factory "
        "that makes anew what is trained or changed, or the module itself in its place"
    )


@contextmanager
def _naming(setting: str, where: str) -> Iterator[None]:
    """Name the setting, or that which an error's note names, in whatever is raised; it may be the user's own code."""
    try:
        yield
    except Exception as error:
        noted = next(iter(getattr(error, "__notes__", ())), setting)
        raise ValueError(f"{noted}: fails on {where} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return an error in one line; its type too, where its message alone would say little."""
    text = one_line(error)
    if not isinstance(error, ValueError | RuntimeError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
