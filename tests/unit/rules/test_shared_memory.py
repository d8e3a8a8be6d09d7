"""Asynchronous shared memory: the adversary's slowdown in closed form, and views that mix versions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.server import Server
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.rules.shared_memory import InconsistentView, slowdown
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.adversary import AdversaryPlanner
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.ordering import in_causal_order
from tests.comparing import assert_same_to_the_bit
from tests.references.server_variants import ViewReference
from tests.unit.quadratic import CURVATURE, TASK
from tests.unit.rules.served import plan, served
from tests.unit.schedule.test_plan_servers import law


def server(**algorithm: Any) -> dict[str, Any]:
    return served(3, 14, **algorithm)


def weight_after(updates: int, tmp_path: Path, contraction: float, **algorithm: Any) -> tuple[float, float]:
    """Return the quadratic's one weight before and after so many updates of two workers."""
    own = server(**algorithm) | {"num_agents": 2, "num_steps": updates // 2, "task": TASK, "batch_size": 4}
    own |= {"step_size": contraction / CURVATURE, "evaluate_every": updates, "storage_path": str(tmp_path)}
    start = plan(own)
    before = start.specs[-1].build(start.data).weights.item()
    result = Trainer(own).fit()
    assert result.error is None
    assert result.checkpoint is not None
    (weight,) = result.checkpoint.state_dict().values()
    return before, weight.item()


@pytest.mark.parametrize(("delay", "contraction"), [(3, 0.3), (20, 0.1), (99, 0.1), (1, 0.6)])
def test_a_run_is_as_much_slower_as_the_closed_form_says(delay: int, contraction: float, tmp_path: Path) -> None:
    """Of whole periods: the logarithms of what is left after as many steps, against steps one after another."""
    periods = 4 if delay < 50 else 2
    updates = periods * (delay + 1)
    adversary = {"name": "adversarial", "delay": delay}
    before, after = weight_after(updates, tmp_path, contraction, gathering=adversary)
    factor = (1 - contraction) ** delay - contraction
    assert after / before == pytest.approx(factor**periods, rel=1e-5)
    sequential = updates * math.log(1 - contraction)
    measured = sequential / math.log(abs(after / before))
    assert measured == pytest.approx(slowdown(delay, contraction), rel=1e-6)


def test_the_slowdown_grows_linearly_and_a_smaller_step_size_repairs_it() -> None:
    assert slowdown(400, 0.1) / slowdown(200, 0.1) == pytest.approx(2, rel=0.01)
    # With a step size of about 1 / delay the adversary has nothing to hold against it.
    assert slowdown(400, 0.1 / 400) < 1.01


@given(st.integers(2, 5), st.integers(1, 7), st.integers(1, 9))
def test_each_period_holds_one_gradient_back_and_lets_others_be_fresh(workers: int, delay: int, steps: int) -> None:
    own = AdversaryPlanner(
        num_workers=workers,
        delay=delay,
        num_steps=steps,
        compute=ComputeTimes(law=law({"name": "uniform", "low": 1, "high": 2})),
        links=(),
        clusters=(0,) * (workers + 1),
        seed=3,
    )
    rows = list(own)
    assert rows == list(own)
    assert sorted(in_causal_order(rows, with_directions=False)) == sorted(rows)
    updates = [row for row in rows if row.agent == workers]
    assert len(updates) == steps * workers
    computed: dict[tuple[int, int], int] = {}
    counts = dict.fromkeys(range(workers), 0)
    for row in rows:
        (read,) = row.reads
        if row.agent < workers:
            counts[row.agent] += 1
            computed[row.agent, row.step + 1] = read.version
            assert row.step == counts[row.agent] - 1
            continue
        assert read.staleness == read.age == row.step - computed[read.neighbor, read.version]
        assert read.staleness == (delay if row.step % (delay + 1) == delay else 0)
        assert (read.neighbor == workers - 1) == (read.staleness > 0)
    fresh = [counts[k] for k in range(workers - 1)]
    assert max(fresh) - min(fresh) <= 1


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6), st.integers(0, 50))
def test_every_coordinate_of_a_view_is_that_of_the_version_drawn_for_its_block(
    size: int, block: int, delay: int, version: int
) -> None:
    versions = [torch.full((size,), float(v)) + torch.arange(size) / 100 for v in range(min(version, delay) + 1)]
    view = InconsistentView(delay=delay, block=block).of(versions, 7, version)
    drawn = generator(7, "view", version).integers(len(versions), size=(size + block - 1) // block)
    for place in range(size):
        assert view[place] == versions[-1 - drawn[place // block]][place]
    # A block that is larger than the model takes no more memory than one of its size.
    whole = InconsistentView(delay=delay, block=10**12).of(versions, 7, version)
    assert torch.equal(whole, versions[-1 - generator(7, "view", version).integers(len(versions), size=1)[0]])


def test_workers_compute_at_views_and_the_server_goes_on_from_its_own_weights() -> None:
    """A slow reference: all versions are kept, and each view is made of them number by number."""
    own = plan(server(view={"delay": 3, "block": 5}))
    agents = [spec.build(own.data) for spec in own.specs]
    execution = Execution(own.schedule, agents)
    holder = agents[-1]
    assert isinstance(holder, Server)
    reference, mixed = ViewReference(own), 0
    reference.eta = 0.1
    for row in own.schedule:
        assert row is not None
        if row.agent < 3:
            (read,), (received,) = row.reads, execution.receive(row)
            view = reference.at(read.version)
            np.testing.assert_allclose(received.weights.double().numpy(), view, atol=1e-5)
            recent = reference.weights[max(0, read.version - 3) : read.version + 1]
            mixed += not any(np.array_equal(view, one) for one in recent)
        list(execution.execute([row]))
        reference.execute(row)
        np.testing.assert_allclose(holder.weights.double().numpy(), reference.weights[-1], atol=1e-5)
    assert mixed > 20


def test_views_and_the_adversary_replay_and_go_on_from_a_state(tmp_path: Path) -> None:
    for number, algorithm in enumerate(({"view": {"delay": 3}}, {"gathering": {"name": "adversarial", "delay": 4}})):
        settings = server(**algorithm) | {"storage_path": str(tmp_path)}
        result = Trainer(settings, name=f"run-{number}").fit()
        schedule = str(Path(result.path) / "schedule.parquet")
        assert_same_to_the_bit(Trainer(settings | {"schedule": schedule}, name=f"again-{number}").fit(), result)
        own = plan(settings)
        rows = [row for row in own.schedule if row is not None]
        first, second = ([spec.build(own.data) for spec in own.specs] for _ in range(2))
        one, other = Execution(rows, first), Execution(rows, second)
        for row in rows[:30]:
            list(one.execute([row]))
        other.restore(one.state() | {"drawn": 0})
        for row in rows[30:]:
            list(one.execute([row]))
            list(other.execute([row]))
        assert torch.equal(first[-1].weights, second[-1].weights)


ADVERSARY: dict[str, Any] = {"gathering": {"name": "adversarial", "delay": 4}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (server(**ADVERSARY) | {"num_agents": 1}, "name = 'adversarial': allowed with num_agents = 1 are others"),
        (
            server(**ADVERSARY) | {"links": [{"delay": "1s"}]},
            "links: allowed with gathering.name = 'adversarial' is an",
        ),
        (server(**ADVERSARY, shards=2), "algorithm.shards = 2: allowed with gathering.name = 'adversarial' is 1"),
        (
            server(**ADVERSARY) | {"engine": {"name": "ray", "mode": "live"}},
            "engine.mode = 'live': allowed with",
        ),
        (server(**ADVERSARY) | {"membership": [{"agent": 1, "leaves": 3}]}, "membership: allowed with gathering.name"),
        (
            server(**ADVERSARY) | {"algorithm": {"name": "diloco", **ADVERSARY}},
            "algorithm.name = 'diloco': allowed with gathering.name = 'adversarial' is server",
        ),
        (server(gathering={"name": "adversarial", "delay": 0}), "algorithm.gathering.delay = 0: allowed are"),
        (server(gathering="adversarial"), "algorithm.gathering.delay"),
        (server(view={"delay": 0}), "algorithm.view.delay = 0: allowed are"),
        (server(view={"delay": 2, "block": 0}), "algorithm.view.block = 0: allowed are"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(settings)
