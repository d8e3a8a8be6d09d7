"""(d) The local engine: agents' steps stacked against one at a time."""

from experiments.benchmarks.measuring import Figure, paired, run_times

STEPS = {8: 200, 64: 60, 512: 20}


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures for 8, 64 and 512 agents."""
    return [_case(num_agents, steps, repeats) for num_agents, steps in STEPS.items()]


def _case(num_agents: int, steps: int, repeats: int) -> Figure:
    return paired(
        f"digits MLP, {num_agents} agents, exponential graph, batched",
        lambda: _rate("always", num_agents, steps),
        lambda: _rate("never", num_agents, steps),
        "agent-steps/s",
        "one agent at a time",
        repeats,
    )


def _rate(batched: str, num_agents: int, steps: int) -> float:
    engine = {"name": "local", "batched": batched}
    # Shards of two or three samples: only speed is measured.
    times = run_times(engine=engine, num_agents=num_agents, num_steps=steps, topology="exponential")
    finished = sorted(moment for own in times for moment in own)
    skipped = 2 * num_agents
    return (len(finished) - skipped) / (finished[-1] - finished[skipped])
