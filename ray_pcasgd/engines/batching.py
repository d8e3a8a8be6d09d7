"""Many agents' steps as one: stacked weights under ``torch.func.vmap``.

The very functions that an agent calls alone run here over a leading axis of agents. Sums over neighbors and inner
products keep their bits; forward and backward passes use other kernels, and differ by float32 rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ray_pcasgd.agent import Agent, Received
from ray_pcasgd.rules.base import Probe


def stack(trees: Sequence[Any]) -> Any:
    """Return one tree whose tensors are the given trees' tensors, stacked along a new first axis."""
    flat, spec = tree_flatten(trees[0])
    columns = [flat, *(tree_flatten(tree)[0] for tree in trees[1:])]
    return tree_unflatten([torch.stack(list(leaves)) for leaves in zip(*columns, strict=True)], spec)


def unstack(tree: Any, count: int) -> list[Any]:
    """Return the ``count`` trees along the first axis; their tensors are views."""
    flat, spec = tree_flatten(tree)
    columns = [leaf.unbind() for leaf in flat]
    return [tree_unflatten([column[i] for column in columns], spec) for i in range(count)]


def compute_together(agents: Sequence[Agent]) -> Tensor:
    """Do ``Agent.compute`` for several agents of one recipe; return their losses, shape (B,), unchecked."""
    first = agents[0]
    drawn = [agent.draw(agent.batches) for agent in agents]
    inputs, targets = (torch.stack(list(column)) for column in zip(*drawn, strict=True))
    weights = torch.stack([agent.weights for agent in agents])
    buffers = torch.stack([agent.replica.buffers for agent in agents])
    integers = stack([dict(agent.replica.integer_buffers) for agent in agents])

    def loss_of(
        weights: Tensor, buffers: Tensor, integers: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor]]]:
        buffers, integers = buffers.clone(), {name: value.clone() for name, value in integers.items()}
        loss = _loss(first, weights, buffers, integers, inputs, targets)
        return loss, (loss, buffers, integers)

    gradients, (losses, buffers, integers) = torch.func.vmap(torch.func.grad(loss_of, has_aux=True))(
        weights, buffers, integers, inputs, targets
    )
    states = stack([agent.optimizer_state for agent in agents])
    direction = torch.func.vmap(first.spec.recipe.optimizer.direction)
    states, directions = direction(states, weights, gradients)
    for agent, state, u, own_buffers, own_integers in zip(
        agents, unstack(states, len(agents)), directions, buffers, unstack(integers, len(agents)), strict=True
    ):
        agent.optimizer_state, agent.direction = state, u
        agent.replica.buffers.copy_(own_buffers)
        for name, value in own_integers.items():
            agent.replica.integer_buffers[name].copy_(value)
    return losses.detach()


def apply_together(agents: Sequence[Agent], received: Sequence[Sequence[Received]]) -> list[dict[str, float]]:
    """Do ``Agent.apply`` for several agents of one recipe and equally many neighbors; return their measures."""
    rule, probing = agents[0].spec.recipe.rule, agents[0].spec.recipe.rule.probes_at(agents[0].version)
    own, reads, mixed = zip(*(a.assemble(r) for a, r in zip(agents, received, strict=True)), strict=True)
    states = stack([agent.rule_state for agent in agents])
    if probing:
        drawn = [agent.draw(agent.probe_batches) for agent in agents]
        extras = stack([(x, y, a.replica.buffers, a.replica.integer_buffers) for a, (x, y) in zip(agents, drawn)])
        results = torch.func.vmap(
            lambda state, own, reads, extra: rule.step(state, own, reads, _probe(agents[0], *extra))
        )(states, stack(own), stack(reads), extras)
    else:
        results = torch.func.vmap(rule.step)(states, stack(own), stack(reads))
    states, updates = results
    measures = {name: values.tolist() for name, values in updates.measures.items()}
    updates = unstack(updates, len(agents))
    for agent, state, update, buffers in zip(agents, unstack(states, len(agents)), updates, mixed, strict=True):
        agent.rule_state = state
        agent.commit(update, buffers)
    return [{name: values[b] for name, values in measures.items()} for b in range(len(agents))]


def _loss(
    agent: Agent, weights: Tensor, buffers: Tensor, integers: dict[str, Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    tensors = agent.replica.named(weights, buffers) | integers
    return agent.spec.recipe.task.loss(torch.func.functional_call(agent.replica.module, tensors, (inputs,)), targets)


def _probe(agent: Agent, inputs: Tensor, targets: Tensor, buffers: Tensor, integers: dict[str, Tensor]) -> Probe:
    def losses(candidates: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            throwaway = [(buffers.clone(), tree_map(torch.clone, integers)) for _ in candidates]
            results = [_loss(agent, x, *own, inputs, targets) for x, own in zip(candidates, throwaway, strict=True)]
        return torch.stack(results)

    return losses
