"""Many agents' steps as one: stacked weights under ``torch.func.vmap``.

The very functions that an agent calls alone run here over a leading axis of agents. Sums over neighbors and inner
products keep their bits; forward and backward passes use other kernels, and differ by float32 rounding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ray_pcasgd.agents.clipping import clipped
from ray_pcasgd.agents.combining import CombiningPeer
from ray_pcasgd.agents.learner import Learner, NonFiniteLossError
from ray_pcasgd.agents.local_round import LocalRound
from ray_pcasgd.agents.participant import Outcome, Participant, Received
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.agents.peer_reads import Gathered
from ray_pcasgd.agents.worker import Worker
from ray_pcasgd.records import Own, Reads, Row, Update


def stack(trees: Sequence[Any]) -> Any:
    """Return one tree whose tensors are the given trees' tensors, stacked along a new first axis."""
    flat, spec = tree_flatten(trees[0])
    if not flat:
        return trees[0]
    columns = [flat, *(tree_flatten(tree)[0] for tree in trees[1:])]
    return tree_unflatten([torch.stack(list(leaves)) for leaves in zip(*columns, strict=True)], spec)


def unstack(tree: Any, count: int) -> list[Any]:
    """Return the ``count`` trees along the first axis; their tensors are views."""
    flat, spec = tree_flatten(tree)
    if not flat:
        return [tree] * count
    columns = [leaf.unbind() for leaf in flat]
    return [tree_unflatten([column[i] for column in columns], spec) for i in range(count)]


def compute_together(agents: Sequence[Learner]) -> Tensor:
    """Do ``Learner.compute`` for several agents of one recipe; return their losses, shape (B,), unchecked."""
    first = agents[0]
    drawn = [agent.draw(agent.batches) for agent in agents]
    inputs, targets = (torch.stack(list(column)) for column in zip(*drawn, strict=True))
    weights = torch.stack([agent.weights for agent in agents])
    buffers = torch.stack([agent.replica.buffers for agent in agents])
    local = stack([agent.replica.local() for agent in agents])

    def loss_of(
        weights: Tensor, buffers: Tensor, local: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor]]]:
        loss, buffers, local = first.loss_at(weights, buffers, local, inputs, targets)
        return loss, (loss, buffers, local)

    gradients, (losses, buffers, local) = torch.func.vmap(torch.func.grad(loss_of, has_aux=True))(
        weights, buffers, local, inputs, targets
    )
    gradients = clipped(first.spec.recipe.gradient_clipping, gradients)
    if first.optimizes_later:
        for agent, gradient in zip(agents, gradients, strict=True):
            agent.direction = gradient
    else:
        _optimize_together(agents, weights, gradients)
    for agent, own_buffers, own in zip(agents, buffers, unstack(local, len(agents)), strict=True):
        agent.replica.buffers.copy_(own_buffers)
        agent.replica.load_local(own)
    result: Tensor = losses.detach()
    return result


def _optimize_together(agents: Sequence[Learner], weights: Tensor, gradients: Tensor) -> Tensor:
    """Do ``Learner.optimize`` for several agents; return their directions, shape (B, D)."""
    first = agents[0]
    states = stack([agent.optimizer_state for agent in agents])
    direction = torch.func.vmap(partial(first.optimizer.direction, parts=first.replica.parts))
    states, directions = direction(states, weights, gradients)
    for agent, state, u in zip(agents, unstack(states, len(agents)), directions, strict=True):
        agent.optimizer_state, agent.direction = state, u
    stacked: Tensor = directions
    return stacked


def prepare_together(agents: Sequence[Participant]) -> list[float]:
    """Compute the next steps' gradients of several agents of one recipe; return their losses, unchecked."""
    if isinstance(agents[0], Peer) and not agents[0].rounds.are_single:
        return _rounds_together(cast("Sequence[Peer]", agents))
    losses: list[float] = compute_together(cast("Sequence[Learner]", agents)).tolist()
    return losses


def _rounds_together(agents: Sequence[Peer]) -> list[float]:
    """Do ``Peer.compute`` for several agents, whose rounds may differ in length; return their losses, unchecked."""
    rounds = [LocalRound(agent) for agent in agents]
    lengths = [agent.steps_ahead for agent in agents]
    alone: dict[int, float] = {}
    for number in range(max(lengths)):
        going = [place for place, length in enumerate(lengths) if length > number]
        losses = compute_together([agents[place] for place in going]).tolist()
        for place, loss in zip(going, losses, strict=True):
            if lengths[place] == 1:
                alone[place] = loss
            else:
                rounds[place].advance(loss)
    return [alone[place] if place in alone else own.finish() for place, own in enumerate(rounds)]


def take_together(
    agents: Sequence[Participant], rows: Sequence[Row], received: Sequence[Sequence[Received]]
) -> list[Outcome | NonFiniteLossError]:
    """Do ``Participant.take`` for several agents of one recipe whose rows have one ``batch_key``."""
    if isinstance(agents[0], CombiningPeer):
        return _step_combining(cast("Sequence[CombiningPeer]", agents), rows, received)
    if agents[0].spec.family.prepares:
        outcomes = _step_peers(cast("Sequence[Peer]", agents), rows, received)
        peers = cast("Sequence[Peer]", agents)
        return [
            one if isinstance(one, NonFiniteLossError) else agent.taken(one)
            for agent, one in zip(peers, outcomes, strict=True)
        ]
    return _step_workers(cast("Sequence[Worker]", agents), received)


def _step_workers(
    workers: Sequence[Worker], received: Sequence[Sequence[Received]]
) -> list[Outcome | NonFiniteLossError]:
    for worker, own in zip(workers, received, strict=True):
        worker.begin(own)
    outcomes: list[Outcome | NonFiniteLossError] = []
    for worker, loss in zip(workers, compute_together(workers).tolist(), strict=True):
        try:
            worker.check_finite(loss)
            worker.finish()
        except NonFiniteLossError as error:
            outcomes.append(error)
        else:
            outcomes.append(worker.taken(loss))
    return outcomes


def _step_combining(
    agents: Sequence[CombiningPeer], rows: Sequence[Row], received: Sequence[Sequence[Received]]
) -> list[Outcome | NonFiniteLossError]:
    """Do ``CombiningPeer.take`` for several agents of one recipe."""
    before = [(agent.weights, agent.buffers) for agent in agents]
    outcomes: list[Outcome | NonFiniteLossError] = []
    combined = _step_peers(agents, rows, received)
    going = [agent for agent, one in zip(agents, combined, strict=True) if not isinstance(one, NonFiniteLossError)]
    losses = iter(prepare_together(going) if going else [])
    for agent, own, one in zip(agents, before, combined, strict=True):
        try:
            outcomes.append(one if isinstance(one, NonFiniteLossError) else agent.advanced(own, next(losses), one))
        except NonFiniteLossError as error:
            outcomes.append(error)
    return outcomes


def _step_peers(
    agents: Sequence[Peer], rows: Sequence[Row], received: Sequence[Sequence[Received]]
) -> list[dict[str, float] | NonFiniteLossError]:
    """Do ``Peer.apply`` for several agents of one recipe; return what their rules have measured."""
    first = agents[0]
    rule = first.spec.recipe.rule
    gathered = [agent.gather(own, len(row.held)) for agent, row, own in zip(agents, rows, received, strict=True)]
    own, reads = _rule_inputs(agents, gathered)
    if rule.corrects_gradients:
        corrected = torch.func.vmap(rule.correct)(own, reads)
        own = own._replace(direction=_optimize_together(agents, own.weights, corrected))
    states = stack([agent.rule_state for agent in agents])
    if rule.probes_at(first.version):
        drawn = [agent.draw(agent.probe_batches) for agent in agents]
        extras = stack([(*xy, a.replica.buffers, a.replica.local()) for a, xy in zip(agents, drawn, strict=True)])
        states, updates = torch.func.vmap(
            lambda state, own, reads, extra: rule.step(state, own, reads, first.probe_at(*extra))
        )(states, own, reads, extras)
    else:
        states, updates = torch.func.vmap(rule.step)(states, own, reads)
    measures = {name: values.tolist() for name, values in updates.measures.items()}
    of_neighbors = {name: values.tolist() for name, values in updates.of_neighbors.items()}
    outcomes: list[dict[str, float] | NonFiniteLossError] = []
    for b, (agent, state, weights, own_gathered) in enumerate(
        zip(agents, unstack(states, len(agents)), updates.weights.unbind(), gathered, strict=True)
    ):
        agent.rule_state = state
        try:
            agent.commit(Update(weights, {}), own_gathered)
        except NonFiniteLossError as error:
            outcomes.append(error)
        else:
            own_of_neighbors = {name: values[b] for name, values in of_neighbors.items()}
            told = agent.told_of_neighbors(own_of_neighbors, own_gathered)
            outcomes.append({name: values[b] for name, values in measures.items()} | told)
    return outcomes


def _rule_inputs(agents: Sequence[Peer], gathered: Sequence[Gathered]) -> tuple[Own, Reads]:
    """Return the rule's arguments with a leading axis of agents."""
    first = agents[0]
    device = first.weights.device
    numbers = [[*g.own, *g.coefficients.values()] for g in gathered]
    own_mixing, step_size, *values = torch.tensor(numbers, device=device).unbind(1)
    directions = [agent.rule_directions for agent in agents]
    own = Own(
        torch.stack([agent.weights for agent in agents]),
        torch.stack([stepped for stepped, _ in directions]),
        own_mixing,
        step_size,
        dict(zip(gathered[0].coefficients, values, strict=True)),
        _by_neighbor([led for _, led in directions]),
        _by_neighbor([agent.public_copy for agent in agents]),
    )
    per_read = torch.tensor([(g.mixing, g.staleness, g.age) for g in gathered], device=device)
    mixing, staleness, age = per_read.unbind(1)
    reliable = torch.tensor([g.reliable for g in gathered], dtype=torch.bool, device=device)
    return own, Reads(
        _by_neighbor([g.weights for g in gathered]),
        _by_neighbor([g.directions for g in gathered]),
        _by_neighbor([g.drift for g in gathered]),
        mixing,
        staleness,
        age,
        reliable,
    )


def _by_neighbor(tensors: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return, for each place among the neighbors, all agents' tensors stacked."""
    return tuple(torch.stack(column) for column in zip(*tensors, strict=True))
