"""What every rule promises. A new rule costs one row of ``CASES``."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules import (
    CASGD,
    DASGD,
    DCS3GD,
    DPSGD,
    PASGD,
    PCASGD,
    PCASGDPV,
    SGP,
    Algorithm,
    Bridge,
    ChocoSGD,
    DASGDImportance,
    GASLoC,
    GossipPull,
    GossipPush,
    NoLoCo,
    OverlapSGP,
    SlowMo,
)
from ray_pcasgd.rules.base import Probe, Rule
from ray_pcasgd.rules.compensation import AdaptiveCompensation, RelativeCompensation
from ray_pcasgd.rules.reach import DampedReach, StableReach
from ray_pcasgd.rules.screens import Bulyan, CenteredClipping, GeometricMedian, Krum, Median, NearestNeighbors
from tests.speed import slow_unless
from tests.unit.networks import run_rule, spread
from tests.unit.scenarios import Link, Scenario, metropolis

EPSILON = torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """A rule, and what it declares beyond the contract."""

    rule: Rule
    keeps_mean: bool = False
    """Fresh reads and symmetric unreliability leave the mean of all agents where it was, up to the local steps."""
    averages: bool = True
    """With reliable neighbors only, it is D-PSGD."""
    delay: int = 3
    """Steps by which neighbors may be late; momentum over rounds amplifies what is late, and needs them all in time."""
    ordered: bool = False
    """Neighbors come in one after another, so that their order counts."""
    step_size: float = 0.2
    """With which it reaches a minimum over late links, in fewer steps the larger it is."""


ADAPTIVE = AdaptiveCompensation()
CASES = [
    Case(DPSGD(), keeps_mean=True),
    Case(DASGD(), keeps_mean=True),
    Case(CASGD(), keeps_mean=True),
    Case(CASGD(clipping="renormalize")),
    Case(PASGD()),
    Case(PASGD(compensation=ADAPTIVE)),
    Case(PASGD(compensation=RelativeCompensation())),
    Case(PCASGD(theta=0.3)),
    Case(PCASGD(theta=0.3, compensation=ADAPTIVE, clipping="renormalize")),
    Case(PCASGD(theta=0.0), keeps_mean=True),
    Case(PCASGD()),
    Case(PCASGD(stability=1.0, guard=True)),
    Case(PCASGD(stability=0.5, reach=StableReach(drag=0.2), guard=True)),
    Case(PCASGD(theta=0.4, reach=DampedReach())),
    Case(PCASGD(theta=0.8, bounded=True)),
    Case(PCASGD(prediction="own-drift"), step_size=0.1),
    Case(PCASGDPV(condition="probe", candidates=((0.0, 1.0), (0.5, 1.5), 1.0))),
    Case(DCS3GD(), keeps_mean=True, averages=False),
    Case(DASGDImportance(), keeps_mean=True),
    Case(SGP(), averages=False),
    Case(OverlapSGP(), averages=False),
    Case(GossipPull(), averages=False, ordered=True),
    Case(GossipPush(), averages=False, ordered=True),
    Case(PCASGDPV(condition="probe", candidates=((0.5, 1.5), 1.0), stability=0.5, bounded=True)),
    Case(SlowMo(), averages=False, delay=0),
    Case(NoLoCo(), averages=False, step_size=0.1),
    Case(GASLoC(), averages=False, delay=0),
    Case(ChocoSGD(gamma=0.7), averages=False, delay=0),
    Case(Bridge(), averages=False),
    Case(Bridge(screen=Median(), late="clip"), averages=False),
    Case(Bridge(screen=Krum(), attackers=0, late="predict"), averages=False),
    Case(Bridge(screen=Bulyan(), attackers=0, late="predict", compensation=ADAPTIVE), averages=False),
    Case(Bridge(screen=NearestNeighbors()), averages=False),
    Case(Bridge(screen=CenteredClipping(), late="predict", prediction="own-drift"), averages=False, step_size=0.1),
    Case(Bridge(screen=GeometricMedian(), late="predict", bounded=True), averages=False),
    Case(Bridge(screen=Median(nearest_neighbor_mixing=True), late="predict"), averages=False),
    Case(PCASGDPV(condition="descent")),
    Case(PCASGDPV(condition="gradient")),
    Case(PCASGDPV(condition="smoothed")),
    Case(PCASGDPV(condition="pull")),
    Case(PCASGDPV(condition="probe")),
    Case(PCASGDPV(condition="probe", candidates=(0.0, 0.5, 1.0), compensation=ADAPTIVE, clipping="renormalize")),
]


def label(value: object) -> str:
    if not isinstance(value, Case):
        return str(value)
    changed = value.rule.model_dump(exclude_defaults=True).values()
    return " ".join([value.rule.name, *(str(v.get("name", v)) if isinstance(v, dict) else str(v) for v in changed)])  # type: ignore[attr-defined]


every_rule = pytest.mark.parametrize("case", CASES, ids=label)


class Inputs(NamedTuple):
    state: Any
    own: Own
    reads: Reads
    probe_target: Tensor
    """Minimum of the loss that the probe sees, shape (D,)."""


def probe_towards(target: Tensor) -> Probe:
    """Half the squared distance; by blocked products, for a choice must not depend on batching."""
    return lambda candidates: torch.stack([numerics.inner(x - target, x - target) / 2 for x in candidates])


def call(rule: Rule, inputs: Inputs) -> tuple[Any, Update]:
    probe = probe_towards(inputs.probe_target) if rule.probes_at(0) else None
    own = inputs.own
    if rule.corrects_gradients:
        own = own._replace(direction=rule.correct(own, inputs.reads))
    return rule.step(inputs.state, own, inputs.reads, probe)


def random_inputs(rule: Rule, size: int, num_neighbors: int = 3, seed: int = 0) -> Inputs:
    """Neighbors of which the first is fresh and reliable, and the others are late; a state that has seen a step."""
    draw = generator(seed, "inputs", size)

    def vector(scale: float = 1.0) -> Tensor:
        return torch.from_numpy(scale * draw.standard_normal(size, dtype=np.float32))

    late = torch.arange(num_neighbors) > 0
    steps = torch.where(late, torch.arange(1.0, num_neighbors + 1), 0.0)
    row = torch.from_numpy(draw.dirichlet(np.ones(num_neighbors + 1)).astype(np.float32))
    weights = vector()
    own = Own(
        weights,
        vector(),
        row[0],
        torch.tensor(0.1),
        {name: torch.tensor(value) for name, value in rule.coefficients(0, 0).items()},
        public=(weights,) if rule.sends_differences else (),
    )

    def each(scale: float, needed: bool) -> tuple[Tensor, ...]:
        return tuple(vector(scale) if needed else torch.zeros(0) for _ in range(num_neighbors))

    reads = Reads(
        tuple(weights + vector(0.5) for _ in range(num_neighbors)),
        each(1.0, rule.needs_directions),
        each(0.1, rule.needs_drift),
        row[1:],
        steps,
        steps,
        ~late,
    )
    first = Inputs(rule.init(weights, num_neighbors), own, reads, weights - vector(0.2))
    return first._replace(state=call(rule, first)[0])


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [t for branch in (tree.values() if isinstance(tree, dict) else tree) for t in tensors(branch)]


def assert_same_bits(actual: Any, expected: Any) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def tree_map(function: Callable[..., Tensor], *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in first}
    branches = [tree_map(function, *branch) for branch in zip(*trees, strict=True)]
    return type(first)(*branches) if hasattr(first, "_fields") else tuple(branches)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_every_algorithm_has_its_row_here() -> None:
    union = get_args(get_args(Algorithm)[0])
    assert {type(case.rule) for case in CASES} == set(union)


@every_rule
def test_consensus_without_gradients_is_a_fixed_point(case: Case) -> None:
    """Up to one rounding for each of the K + 2 terms of the sum; K = 3."""
    inputs = random_inputs(case.rule, 200)
    x = inputs.own.weights
    still = tuple(torch.zeros_like(u) for u in inputs.reads.directions)
    inputs = inputs._replace(
        # Momentum of its own would move it on.
        state=case.rule.init(x, 3) if case.rule.combines_first else inputs.state,
        own=inputs.own._replace(direction=torch.zeros_like(x)),
        # An agent that has not moved has no drift either; the mean one counts beside directions alone.
        reads=inputs.reads._replace(
            weights=(x, x, x), directions=still, drift=tuple(map(torch.zeros_like, inputs.reads.drift))
        ),
    )
    _, update = call(case.rule, inputs)
    assert ((update.weights - x).abs() <= 5 * EPSILON * x.abs()).all()


@every_rule
@pytest.mark.parametrize("place", [1, 3], ids=["in the middle", "at the end"])
def test_neighbors_of_weight_zero_change_no_bit(case: Case, place: int) -> None:
    inputs = random_inputs(case.rule, 200)

    def padded(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return vectors[:place] + (torch.zeros_like(vectors[0]),) * 2 + vectors[place:]

    def inserted(values: Tensor, value: float) -> Tensor:
        return torch.cat([values[:place], torch.full((2,), value).to(values.dtype), values[place:]])

    reads = inputs.reads
    more = Reads(
        *map(padded, (reads.weights, reads.directions, reads.drift)),
        *(inserted(values, 0.0) for values in (reads.mixing, reads.staleness, reads.age)),
        inserted(reads.reliable, 1.0),
    )
    before = case.rule.init(inputs.own.weights, 3)
    state = case.rule.init(inputs.own.weights, 5)
    for _ in range(2):
        before, expected = call(case.rule, inputs._replace(state=before))
        state, update = call(case.rule, inputs._replace(state=state, reads=more))
        there = [k for k in range(5) if k not in (place, place + 1)]
        of_neighbors = {name: values[there] for name, values in update.of_neighbors.items()}
        assert_same_bits(update._replace(of_neighbors=of_neighbors), expected)


@pytest.mark.parametrize("case", [case for case in CASES if not case.ordered], ids=label)
def test_the_order_of_neighbors_changes_only_the_rounding(case: Case) -> None:
    """By no more than one rounding for each of about 3 K terms of the size of the largest."""
    inputs = random_inputs(case.rule, 200)._replace(state=case.rule.init(torch.zeros(200), 3))
    reads, order = inputs.reads, [2, 0, 1]
    permuted = Reads(
        *(tuple(vectors[k] for k in order) for vectors in (reads.weights, reads.directions, reads.drift)),
        *(values[order] for values in (reads.mixing, reads.staleness, reads.age, reads.reliable)),
    )
    _, expected = call(case.rule, inputs)
    _, update = call(case.rule, inputs._replace(reads=permuted))
    assert (update.weights - expected.weights).abs().max() <= 10 * EPSILON * expected.weights.abs().max()
    assert update.measures == expected.measures


@every_rule
def test_a_step_leaves_its_inputs_untouched_and_keeps_nothing_of_them(case: Case) -> None:
    inputs = random_inputs(case.rule, 200)
    before = copy.deepcopy(inputs)
    _, first = call(case.rule, inputs)
    assert_same_bits(inputs, before)
    assert first.weights.data_ptr() not in {t.data_ptr() for t in tensors(inputs)}
    _, again = call(case.rule, inputs)
    assert_same_bits(again, first)


# In ``make test`` the middle one is left to the rule by default: all of it is one block, as of the smallest.
@pytest.mark.parametrize(
    ("case", "size"),
    [
        slow_unless(size != 62_006 or case.rule == PCASGD(), case, size)
        for size in (7, 62_006, 2**16 + 3)
        for case in CASES
    ],
    ids=label,
)
def test_alone_and_vmapped_over_agents_give_the_same_bits_on_one_and_two_threads(
    case: Case, size: int, set_threads: Callable[[int], None]
) -> None:
    """The longest vectors are just long enough to be cut into blocks."""
    agents = [random_inputs(case.rule, size, seed=seed) for seed in range(3)]
    stacked = tree_map(lambda *t: torch.stack(t), *agents)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        alone = [call(case.rule, inputs) for inputs in agents]
        together = torch.func.vmap(lambda inputs: call(case.rule, inputs))(stacked)
        for b, result in enumerate(alone):
            assert_same_bits(tree_map(lambda t, b=b: t[b], together), result)
        results.append(alone)
    assert_same_bits(results[0], results[1])


@every_rule
def test_vmapped_over_settings_gives_the_same_bits(case: Case) -> None:
    """One agent under several thetas and lambdas at once; its weights and what it read are shared."""
    inputs = random_inputs(case.rule, 2**16 + 3)
    values = torch.tensor([0.0, 0.3, 1.0])
    names = list(inputs.own.coefficients)
    steps = torch.tensor([0.1, 0.01, 0.5])

    def step(step_size: Tensor, numbers: dict[str, Tensor]) -> tuple[Any, Update]:
        return call(case.rule, inputs._replace(own=inputs.own._replace(step_size=step_size, coefficients=numbers)))

    together = torch.func.vmap(step)(steps, dict.fromkeys(names, values))
    for b in range(3):
        assert_same_bits(tree_map(lambda t, b=b: t[b], together), step(steps[b], dict.fromkeys(names, values[b])))


@every_rule
def test_results_have_the_inputs_shape_and_type_and_measures_are_single_numbers(case: Case) -> None:
    inputs = random_inputs(case.rule, 11)
    state, update = call(case.rule, inputs)
    assert (update.weights.shape, update.weights.dtype) == ((11,), torch.float32)
    assert all(value.shape == () for value in update.measures.values())
    assert [(t.shape, t.dtype) for t in tensors(state)] == [(t.shape, t.dtype) for t in tensors(inputs.state)]


@every_rule
def test_a_rule_survives_pickle_and_yaml_like_data(case: Case) -> None:
    assert pickle.loads(pickle.dumps(case.rule)) == case.rule
    assert TypeAdapter[Algorithm](Algorithm).validate_python(case.rule.model_dump(mode="json")) == case.rule
    state = random_inputs(case.rule, 11).state
    restored = pickle.loads(pickle.dumps(state))
    assert type(restored) is type(state)
    assert_same_bits(restored, state)


@every_rule
def test_an_agent_without_neighbors_takes_its_local_step(case: Case) -> None:
    inputs = random_inputs(case.rule, 50)
    own = inputs.own._replace(mixing=torch.tensor(1.0))
    if case.rule.combines_first:
        own = own._replace(direction=torch.zeros(50))
    nobody = torch.zeros(0)
    reads = Reads((), (), (), nobody, nobody, nobody, nobody.bool())
    _, update = call(case.rule, inputs._replace(state=case.rule.init(own.weights, 0), own=own, reads=reads))
    assert torch.equal(update.weights, own.weights - own.step_size * own.direction)


@pytest.mark.parametrize("case", [case for case in CASES if case.averages], ids=label)
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_with_reliable_neighbors_only_every_rule_is_d_psgd_to_the_bit(case: Case, theta: float) -> None:
    """Even for a row that sums to 1 but for rounding."""
    inputs = random_inputs(case.rule, 200)
    numbers = inputs.own.coefficients | ({"theta": torch.tensor(theta)} if "theta" in inputs.own.coefficients else {})
    inputs = inputs._replace(
        own=inputs.own._replace(coefficients=numbers, mixing=torch.tensor(0.25 - 3e-7)),
        reads=inputs.reads._replace(mixing=torch.full((3,), 0.25), reliable=torch.ones(3, dtype=torch.bool)),
    )
    assert inputs.own.mixing + inputs.reads.mixing.sum() < 1
    _, update = call(case.rule, inputs)
    _, expected = DPSGD().step((), inputs.own, inputs.reads)
    assert torch.equal(update.weights, expected.weights)


def two_clusters(delay: int, num_steps: int, *, step_size: float, noise: float = 0.0) -> Scenario:
    """Six agents on a ring with a chord, two clusters whose links are late; all have one common minimum."""
    draw = generator(0, "clusters")
    mixing = metropolis([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5), (1, 4)], 6)
    cluster = [0, 0, 0, 1, 1, 1]

    def link(i: int, k: int, step: int) -> Link:
        age = 0 if cluster[i] == cluster[k] else min(step, delay)
        return Link(k, age, age, cluster[i] == cluster[k])

    return Scenario(
        mixing=mixing,
        start=draw.normal(size=(6, 4)),
        links=[
            [[link(i, k, step) for k in range(6) if k != i and mixing[i, k] > 0] for i in range(6)]
            for step in range(num_steps)
        ],
        curvature=draw.uniform(0.5, 1.5, size=(6, 4)),
        target=np.tile(draw.normal(size=4), (6, 1)),
        noise=noise * draw.normal(size=(num_steps, 6, 4)),
        probe_target=np.tile(draw.normal(size=4), (num_steps, 6, 1)),
        step_size=step_size,
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.keeps_mean], ids=label)
def test_fresh_reads_and_symmetric_unreliability_keep_the_mean(case: Case) -> None:
    """It moves by the mean of the local steps alone: exactly so but for rounding, in float64."""
    scenario = two_clusters(0, 5, step_size=0.1, noise=0.3)
    weights = run_rule(case.rule, scenario).weights
    for step in range(5):
        x = torch.stack(weights[step])
        u = torch.from_numpy(scenario.curvature) * (x - torch.from_numpy(scenario.target))
        expected = (x - scenario.step_size * (u + torch.from_numpy(scenario.noise[step]))).mean(0)
        torch.testing.assert_close(torch.stack(weights[step + 1]).mean(0), expected, rtol=0, atol=1e-14)


def test_renormalizing_moves_the_mean() -> None:
    """The reason why it is not the default; and the test above can fail."""
    scenario = two_clusters(0, 1, step_size=0.0)
    before, after = run_rule(CASGD(clipping="renormalize"), scenario).weights
    assert (torch.stack(after).mean(0) - torch.stack(before).mean(0)).abs().max() > 0.01


@every_rule
def test_a_network_with_late_links_reaches_its_common_minimum(case: Case) -> None:
    num_steps = round(25 / case.step_size)
    scenario = two_clusters(case.delay, num_steps, step_size=case.step_size)
    scenario = scenario._replace(probe_target=np.tile(scenario.target, (num_steps, 1, 1)))
    minimum = torch.from_numpy(scenario.target[0])
    trajectory = run_rule(case.rule, scenario, torch.float32)
    assert spread(trajectory, minimum) < 1e-4
    assert spread(trajectory._replace(weights=trajectory.weights[:1]), minimum) > 1.0


def test_slow_momentum_amplifies_what_is_late() -> None:
    """Where averaging alone, which is its momentum 0, converges."""
    minimum = two_clusters(3, 1, step_size=0.1).target[0]
    ends = [
        spread(
            run_rule(SlowMo(outer_momentum=momentum), two_clusters(3, 250, step_size=0.1)), torch.from_numpy(minimum)
        )
        for momentum in (0.0, 0.7)
    ]
    assert ends[0] < 1e-3
    assert ends[1] > 1e3


def test_only_synchronous_rules_ask_all_agents_to_wait() -> None:
    waiting = {type(c.rule) for c in CASES if c.rule.default_barrier == "all"}
    assert waiting == {DPSGD, DCS3GD, SGP, ChocoSGD, SlowMo, NoLoCo, GASLoC}
