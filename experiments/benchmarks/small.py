"""(a) of small models, where messages weigh as much as gradients: the ray engine against bare PyTorch loops."""

from experiments.benchmarks.engine import case
from experiments.benchmarks.measuring import Figure


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures of the digits' MLP on 2 and 8 agents, each of which reads all others."""
    return [
        case(f"digits MLP, batch 16, {agents} agents, {mode}", {"num_steps": 400, "num_agents": agents}, mode, repeats)
        for agents, mode in ((2, "planned"), (8, "planned"), (8, "live"))
    ]
