"""Own paths against the naive double loop of the formula, whatever is forgotten meanwhile."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd.agents.drift import DriftBefore, KeptPath, MeanDrift, MeanVelocity, OwnPath
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Read
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config

CPU = torch.device("cpu")


def summed(path: Sequence[Tensor], age: int) -> Tensor:
    """1/a (C_{t-1} - C_{t-a-1}) - (C_{t-a} - C_{t-a-1}), with all running sums C in float64 from version 0 on."""
    sums = [torch.zeros_like(path[0], dtype=torch.float64)]
    for weights in path:
        sums.append(sums[-1] + weights)
    t = len(path) - 1
    last, before, first = sums[t], sums[t - age], sums[t - age + 1]
    return ((last - before) / age - (first - before)).float()


def naive(path: Sequence[Tensor], age: int) -> Tensor:
    """1/a sum_{r=0}^{a-1} (x(t-a+r) - x(t-a)), t the newest version."""
    begin = len(path) - 1 - age
    moved = [path[begin + r].double() - path[begin].double() for r in range(age)]
    return (torch.stack(moved).sum(0) / age).float()


def before(path: Sequence[Tensor], age: int) -> Tensor:
    """x(t-a) - x(t-2a), from version 0 on where the path begins later."""
    t = len(path) - 1
    return path[t - age] - path[max(0, t - 2 * age)]


def late_reads(seed: int, num_steps: int, longest: int, falls_back: bool) -> Iterator[list[Read]]:
    """Yield what an agent reads at each of its versions of two neighbors, as late as it comes, for a while or for good.

    Each neighbor's message number ``v`` is sent when the reader is at version ``v``. None is older than ``longest``.
    """
    draw = generator(seed, "reads")
    last = [0, 0]
    for version in range(num_steps):
        reads = []
        for k in range(2):
            first = max(last[k], version - longest)
            fresh = int(draw.integers(first, version + 1)) if draw.random() < 0.6 else first
            last[k] = max(last[k], fresh)
            read = max(last[k] - int(falls_back and draw.random() < 0.3), 0)
            reads.append(Read(k, read, 0, version - read))
        yield reads


def path_of(seed: int, num_steps: int) -> list[Tensor]:
    draw = generator(seed, "path")
    # Of very different sizes, so that sums are rounded.
    sizes = torch.tensor([1e-8, 1e-3, 1.0, 30.0, 1e4])
    return [torch.from_numpy(draw.standard_normal(5, dtype=np.float32)) * sizes for _ in range(num_steps)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_steps=st.integers(1, 40),
    longest=st.integers(1, 12),
    age_max=st.integers(1, 14),
    falls_back=st.booleans(),
)
def test_what_was_forgotten_changes_no_bit(
    seed: int, num_steps: int, longest: int, age_max: int, falls_back: bool
) -> None:
    path = path_of(seed, num_steps)
    kept: dict[KeptPath, object] = {
        MeanDrift(path[0], age_max, (0, 1)): summed,
        DriftBefore(path[0], age_max, (0, 1)): before,
    }
    for version, reads in enumerate(late_reads(seed, num_steps, longest, falls_back)):
        ages = {read.age for read in reads if 1 <= read.age <= age_max}
        for one, reference in kept.items():
            if version:
                one.record(path[version])
            one.note(reads)
            found = one.drifts(ages)
            assert found.keys() == ages
            for age in ages:
                assert torch.equal(found[age], reference(path[: version + 1], age))  # type: ignore[operator]


def test_no_more_versions_are_kept_than_the_oldest_message_is_steps_old() -> None:
    path = path_of(0, 200)
    mean, far = MeanDrift(path[0], 64, (0, 1)), DriftBefore(path[0], 20, (0, 1))
    for version, weights in enumerate(path):
        for one in (mean, far):
            if version:
                one.record(weights)
            one.note([Read(k, max(0, version - 10), 10, min(10, version)) for k in (0, 1)])
    # Ten steps, the version itself, one since it has not read yet, and one for a read that falls back.
    assert len(mean) == 13
    assert len(far) == 13 + 20


def test_a_neighbor_that_is_never_read_makes_the_path_as_long_as_the_oldest_age() -> None:
    path = path_of(0, 100)
    mean = MeanDrift(path[0], 8, (0, 1))
    for version, weights in enumerate(path[1:], 1):
        mean.record(weights)
        mean.note([Read(0, version, 0, 0)])
    assert len(mean) == 9


@given(num_steps=st.integers(2, 40), seed=st.integers(0, 99))
def test_the_sums_are_the_formula(num_steps: int, seed: int) -> None:
    path = path_of(seed, num_steps)
    for age in range(1, num_steps):
        torch.testing.assert_close(summed(path, age), naive(path, age), atol=1e-3, rtol=1e-5)


def test_drift_keeps_its_precision_after_a_hundred_thousand_steps() -> None:
    displacements = MeanDrift(torch.ones(2), 8, ())
    for step in range(100_000):
        displacements.record(torch.full((2,), 1.0 + 1e-3 * ((step + 1) % 2)))
        if step < 100_000 - 9:
            # Without neighbors nothing is forgotten before the oldest age.
            assert len(displacements) <= 9
    # Versions 99,992 ... 99,999 alternate between 1 and 1.001, beginning with 1.
    torch.testing.assert_close(displacements.drifts({8})[8], torch.full((2,), 0.5e-3), rtol=1e-3, atol=0)


def test_an_age_beyond_what_is_kept_counts_as_what_is() -> None:
    path = path_of(3, 6)
    for one, reference in ((MeanDrift(path[0], 64, (0,)), summed), (DriftBefore(path[0], 64, (0,)), before)):
        assert torch.equal(one.drifts({4})[4], torch.zeros(5))
        for weights in path[1:]:
            one.record(weights)
        assert torch.equal(one.drifts({9, 2})[9], reference(path, 5))


@given(steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_on_a_straight_path_the_velocity_gives_the_drift(steps: int, seed: int) -> None:
    draw = generator(seed, "line")
    start, way = (torch.from_numpy(draw.standard_normal(4)) for _ in range(2))
    path = [start + t * way for t in range(2 * steps + 1)]
    one = MeanVelocity(path[0])
    for weights in path[1:]:
        one.record(weights)
    torch.testing.assert_close(one.drifts({steps})[steps].float(), naive(path, steps), atol=1e-4, rtol=1e-4)


def test_the_velocity_is_a_mean_of_the_first_ten_displacements_and_exponential_from_there_on() -> None:
    draw = generator(0, "path")
    path = [torch.from_numpy(draw.standard_normal(3)) for _ in range(31)]
    one, expected = MeanVelocity(path[0]), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 31):
        one.record(path[step])
        change = path[step] - path[step - 1]
        expected = (expected * (step - 1) + change) / step if step <= 10 else 0.9 * expected + 0.1 * change
        torch.testing.assert_close(one.drifts({3})[3], expected)
    torch.testing.assert_close(one.drifts({7, 1})[7], 3 * expected)
    assert not one.drifts({1})[1].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: MeanDrift(weights, 9, (0, 1)),
        lambda weights: DriftBefore(weights, 9, (0, 1)),
        lambda weights: MeanVelocity(weights),
    ],
    ids=["mean", "before", "velocity"],
)
def test_a_path_goes_on_from_its_state(make: object) -> None:
    path = path_of(5, 40)
    one: OwnPath = make(path[0])  # type: ignore[operator]
    again: OwnPath = make(torch.zeros(5))  # type: ignore[operator]
    for version, reads in enumerate(late_reads(5, 40, 6, falls_back=True)):
        if version == 20:
            again.restore(one.state(), CPU)
        for copy in (one, again):
            if version and (copy is one or version >= 20):
                copy.record(path[version])
                copy.note(reads)
        ages = {read.age for read in reads if read.age}
        if version >= 20:
            found, expected = again.drifts(ages), one.drifts(ages)
            assert all(torch.equal(found[age], expected[age]) for age in ages)


def test_restoring_does_not_write_to_the_state() -> None:
    for kind in (MeanDrift(torch.ones(3), 4, ()), MeanVelocity(torch.ones(3))):
        kind.record(torch.full((3,), 2.0))
        state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kind.state().items()}
        given = dict(state)
        kind.restore(given, CPU)
        kind.record(torch.full((3,), 5.0))
        assert all(torch.equal(given[n], v) for n, v in state.items() if isinstance(v, Tensor))


def test_messages_of_own_drift_hold_weights_alone_half_the_bytes() -> None:
    def peer_of(prediction: str) -> Peer:
        algorithm = {"name": "pc-asgd", "prediction": prediction}
        plan = make_plan(load_config({"num_agents": 2, "algorithm": algorithm, "engine": "local"}))
        peer = plan.specs[0].build(plan.data)
        assert isinstance(peer, Peer)
        return peer

    theirs, own = peer_of("direction"), peer_of("own-drift")
    assert 2 * own.message_bytes == theirs.message_bytes
    assert (own.publishes_directions, theirs.publishes_directions) == (False, True)


@pytest.mark.parametrize(
    ("algorithm", "form"),
    [
        ({"name": "pc-asgd"}, MeanVelocity),
        ({"name": "pc-asgd", "drift": "exact"}, MeanDrift),
        ({"name": "pc-asgd", "theta": 0.3}, MeanDrift),
        ({"name": "pc-asgd", "theta": 0.3, "reach": "stable"}, MeanVelocity),
        ({"name": "pc-asgd", "prediction": "own-drift"}, DriftBefore),
        ({"name": "pc-asgd", "compensation": 0.0}, type(None)),
        ({"name": "pc-asgd", "compensation": 0.0, "prediction": "own-drift"}, DriftBefore),
        ({"name": "p-asgd"}, MeanDrift),
        ({"name": "pc-asgd-pv"}, MeanDrift),
        ({"name": "c-asgd"}, type(None)),
    ],
)
def test_the_published_method_knows_its_drift_exactly(algorithm: dict[str, object], form: type) -> None:
    plan = make_plan(load_config({"num_agents": 2, "algorithm": algorithm, "engine": "local"}))
    peer = plan.specs[0].build(plan.data)
    assert isinstance(peer, Peer)
    assert type(peer.displacements) is form


@pytest.mark.parametrize("drift", ["exact", "velocity"])
def test_an_agent_that_is_put_somewhere_has_not_gone_there(drift: str) -> None:
    settings = {"num_agents": 2, "step_size": 1e-9, "algorithm": {"name": "pc-asgd", "drift": drift}}
    plan = make_plan(load_config(settings | {"engine": "local"}))
    peer = plan.specs[0].build(plan.data)
    assert isinstance(peer, Peer)
    assert peer.displacements is not None
    peer.place(50, peer.snapshot()._replace(weights=peer.weights + 1.0))
    for _ in range(3):
        peer.step([])
    drifts = peer.displacements.drifts({2, 3})
    assert all(one.abs().max() < 0.01 for one in drifts.values())


def test_prediction_by_own_drift_refuses_the_velocity() -> None:
    with pytest.raises(SettingsError, match=r"drift = 'velocity': allowed with prediction = 'own-drift' is exact"):
        load_config({"algorithm": {"name": "pc-asgd", "prediction": "own-drift", "drift": "velocity"}})
