"""What a peer remembers from step to step: where it begins, is saved and restored, and comes back into a run."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.agents.attacks import saved
from ray_pcasgd.agents.curvature import MeasuredCurvature
from ray_pcasgd.agents.drift import DriftBefore, MeanDrift, MeanVelocity, OwnPath
from ray_pcasgd.agents.error_feedback import ErrorFeedback
from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.agents.neighbor_paths import NeighborPaths
from ray_pcasgd.agents.participant import Participant, Received
from ray_pcasgd.agents.peer_spec import PeerSpec
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.base.state import State, leaves_of, with_leaves
from ray_pcasgd.records import Snapshot
from ray_pcasgd.rules.base import mix
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.ray_stream import StreamBatches
from ray_pcasgd.tasks.task import TaskData


def zeros_for(weights: Tensor) -> Tensor:
    """Return zeros of the shape of weights, of which only one number is kept: they must not be written to."""
    return weights.new_zeros(()).expand(weights.shape)


class PeerMemory(Learner, Participant):
    """The replica, optimizer, batches and rule's memory of one peer, and how far it has come."""

    spec: PeerSpec

    def __init__(self, spec: PeerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        self.optimizes_later = rule.corrects_gradients
        self.may_be_stacked = (
            rule.stackable
            and self.optimizer.stackable
            and spec.recipe.accumulate == 1
            and spec.recipe.precision == "float32"
        )
        self.publishes_directions = spec.recipe.sends_directions
        self.pushes = rule.reading == "every"
        """Whether agents push shares of their mass."""
        self.loss: float | None = None
        """Of the next step, where it is computed already."""
        self.local_step = 0
        """Mini-batches since the present version, while a round of several is computed."""
        self.probe_batches = self.loaded(self.probe_stream())
        self.samples = dict(zip(spec.neighbors, spec.samples, strict=True))
        """Size of each neighbor's shard."""
        self.rule_state = rule.init(self.weights, len(spec.neighbors))
        self.mass = 1.0
        """Where rules push shares of it: the sum over all agents of weights times mass is conserved."""
        measures = rule.measures_curvature and self.optimizer.has_feedback
        self.curvature = MeasuredCurvature(rule.curvature_every) if measures else None
        """That along what is predicted, by what the optimizer makes of it."""
        self.curvature_batches = self.stream("curvature", rule.curvature_samples)
        directions = spec.recipe.wire.directions
        self.feedback = ErrorFeedback(directions) if self.publishes_directions and directions.is_sparse else None
        """Of the directions that it sends, where most of their numbers are left out."""
        self.displacements = self.path() if rule.needs_drift and spec.neighbors else None
        self.neighbor_paths = NeighborPaths(spec.neighbors, self.weights) if rule.reads_displacements else None
        self._nothing = torch.zeros(0, device=self.weights.device)
        self._zeros = zeros_for(self.weights)

    def probe_stream(self) -> Batches | StreamBatches:
        """Return the mini-batches that candidates are probed on."""
        spec, recipe, data = self.spec, self.spec.recipe, self.data
        if data.probes is not None:
            every = np.arange(len(data.probes))
            return Batches(
                data.probes, every, recipe.batch_size, recipe.seed, spec.agent, "probes", None, data.normalization
            )
        if spec.borrowed is None:
            return self.stream("probes")
        return recipe.task.batches(data, spec.borrowed, recipe.batch_size, recipe.seed, spec.agent, "probes")

    def close(self) -> None:
        """End what makes batches in the background."""
        super().close()
        self.probe_batches.close()

    def path(self) -> OwnPath:
        """Return an empty memory of the agent's own path, as far as the rule may ask for it."""
        rule = self.spec.recipe.rule
        if rule.drift_form == "velocity":
            return MeanVelocity(self.weights)
        kind = MeanDrift if rule.drift_kind == "mean" else DriftBefore
        return kind(self.weights, rule.age_max, self.spec.neighbors)

    @property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the agents' versions."""
        return self.spec.recipe.rounds

    @property
    def progress(self) -> int:
        """Steps taken so far, of ``num_steps``: mini-batches."""
        return self.rounds.progress(self.spec.agent, self.version)

    @property
    def steps_ahead(self) -> int:
        """Mini-batches from the present version to the next one."""
        return self.rounds.steps_in(self.spec.agent, self.version)

    @property
    def present_step_size(self) -> float:
        """The step size eta of the mini-batch whose gradient is computed."""
        return self.spec.recipe.step_size_at(self.progress + self.local_step)

    @property
    def own_step_size(self) -> float:
        """By what the direction is going to be multiplied: the sum over the round's mini-batches."""
        recipe, first = self.spec.recipe, self.progress
        return sum(recipe.step_size_at(first + number) for number in range(max(1, self.steps_ahead)))

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``: as the mean of what was received, or as it is if that is empty.

        All else that the agent remembers begins anew, so that the weights, and all that follows, depend only on the
        versions that were read.
        """
        if received:
            share = torch.tensor(1.0 / len(received), device=self.weights.device)
            shares = share.expand(len(received))
            nothing = torch.zeros((), device=self.weights.device)
            wholes = tuple(r.weights if r.whole is None else r.whole for r in received)
            self.weights = mix(nothing, self._zeros, shares, wholes)
            if self.buffers.numel():
                mean = mix(nothing, torch.zeros_like(self.buffers), shares, tuple(r.buffers for r in received))
                self.buffers = mean.clone()
            self.forget_local()
        self.load()
        self.loss = None
        self.direction = torch.zeros_like(self.weights)
        self.reset_memory()
        self.forget_scale()
        self.mass = 1.0
        if self.curvature is not None:
            self.curvature.forget()
        if self.feedback is not None:
            self.feedback.forget()
        if self.displacements is not None:
            self.displacements = self.path()
        if self.neighbor_paths is not None:
            self.neighbor_paths.forget()
        if self.attacker is not None:
            self.attacker.forget()
        self.version = version
        self.batches.restore(self.progress)
        self.probe_batches.restore(version)

    def forget_local(self) -> None:
        """Begin anew in the tensors that are the agent's own."""
        self.replica.load_local(self.spec.recipe.build(self.data).local(all_frozen=True))

    def reset_memory(self) -> None:
        """Begin anew in what optimizer and rule remember."""
        self.optimizer_state = self.optimizer.start(self.weights, self.replica.parts)
        self.rule_state = self.spec.recipe.rule.init(self.weights, len(self.spec.neighbors))

    def place(self, version: int, snapshot: Snapshot) -> None:
        """Put the agent where it was at a version, as its snapshot tells; what else it remembered is lost."""
        device = self.replica.device
        self.version = version
        self.weights, self.buffers = snapshot.weights.to(device), snapshot.buffers.to(device)
        if self.displacements is not None:
            # The way from where the model was made to here is none that the agent has gone.
            self.displacements = self.path()
        if self.neighbor_paths is not None:
            self.neighbor_paths.forget()
        self.restore_replica(self.buffers, snapshot.local)

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the agent's own."""
        return {
            "version": self.version,
            "loss": self.loss,
            "weights": self.weights,
            "buffers": self.buffers,
            "running_buffers": self.running_buffers,
            "local": self.local,
            "direction": self.direction,
            "with_gradient": self.with_gradient,
            "batches": self.batches.state(),
            "probe_batches": self.probe_batches.state(),
            "optimizer": self.optimizer.saved(self.optimizer_state),
            "rule": leaves_of(self.rule_state),
            "mass": self.mass,
            "curvature": self.curvature.state() if self.curvature else None,
            **({} if self.feedback is None else {"feedback": self.feedback.state()}),
            "displacements": self.displacements.state() if self.displacements else None,
            **({} if self.neighbor_paths is None else {"neighbor_paths": self.neighbor_paths.state()}),
            **saved(self.attacker),
            **self.saved_scale(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of an agent with the same settings, numbers excepted."""
        device = self.replica.device
        self.version, self.mass, self.loss = state["version"], state["mass"], state["loss"]
        if self.curvature is not None:
            self.curvature.restore(state["curvature"])
        if self.feedback is not None:
            self.feedback.restore(state["feedback"], device)
        self.weights, self.buffers, self.direction = (
            state[name].to(device) for name in ("weights", "buffers", "direction")
        )
        reached = state["with_gradient"]
        self.with_gradient = None if reached is None else reached.to(device)
        self.restore_replica(state["running_buffers"].to(device), state["local"])
        self.batches.restore(state["batches"])
        self.probe_batches.restore(state["probe_batches"])
        self.optimizer_state = self.optimizer.restored(self.optimizer_state, state["optimizer"])
        self.rule_state = with_leaves(self.rule_state, state["rule"])
        if self.displacements is not None:
            self.displacements.restore(state["displacements"], device)
        if self.neighbor_paths is not None:
            self.neighbor_paths.restore(state["neighbor_paths"], device)
        if self.attacker is not None:
            self.attacker.restore(state["attacker"], device)
        self.restore_scale(state)

    @property
    def running_buffers(self) -> Tensor:
        """The mixed buffers as the last forward pass left them."""
        return self.replica.buffers

    @property
    def local(self) -> dict[str, Tensor]:
        """The agent's own tensors as the last forward pass left them."""
        return self.replica.local()

    def restore_replica(self, running_buffers: Tensor, local: dict[str, Tensor]) -> None:
        """Put the present version into the replica, with the buffers that the last forward pass left."""
        self.replica.load(self.weights, running_buffers)
        self.replica.load_local(local)

    def load(self) -> None:
        """Put the present version into the replica."""
        self.replica.load(self.weights, self.buffers)
