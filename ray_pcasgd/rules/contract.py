"""What every rule promises, checked on made-up versions: ``check_rule``, for rules that are not the package's own."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.base.doors import naming_own
from ray_pcasgd.base.numerics import inner
from ray_pcasgd.base.purity import check_pair, check_state, check_vector, is_same, mapped, pure_result
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, DriftForm, DriftKind, Probe, Rule
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.exchange import AllNeighbors, Reading
from ray_pcasgd.rules.server import Delivered, ServerRule

_SIZE = 200
"""Parameters of a made-up model."""
_SIZES = (150, 50)
"""Of which two tensors."""
_NEIGHBORS = (1, 2, 5)
_STEPS = 3
_WORKERS = 4


def check_rule(rule: Rule | ServerRule, num_workers: int = _WORKERS) -> None:
    """Check what every rule promises, on made-up versions of neighbors, or of ``num_workers`` workers of a server.

    >>> from ray_pcasgd.rules import DPSGD
    >>> check_rule(DPSGD())

    Raises:
        ValueError: the rule changes what it is given, or keeps it; draws from a generator of its own; gives a result
            of another shape, type or structure, or one that is not finite; cannot run stacked, or gives other bits
            there, though it does not say so; or raises.

    """
    check_declared(rule)
    if isinstance(rule, ServerRule):
        _check_server(rule, num_workers)
        return
    _check_partners(rule)
    for num_neighbors in (0, 1, len(_NEIGHBORS)):
        for inputs in _steps(rule, num_neighbors):
            with naming_own(rule):
                result = pure_result("step", partial(_call, rule), inputs)
            _check_result(result, inputs)
    if rule.stackable:
        _check_stacked(rule)


def check_declared(rule: Rule | ServerRule) -> None:
    """Raise ``ValueError`` where what a rule declares has no meaning."""
    if isinstance(rule, ServerRule):
        _check_declared_of_server(rule)
        return
    for name, allowed in (("reading", get_args(Reading)), ("default_barrier", get_args(DefaultBarrier))):
        if getattr(rule, name) not in allowed:
            raise ValueError(f"{name} is {getattr(rule, name)!r}; allowed are {', '.join(map(repr, allowed))}")
    if rule.corrects_gradients and rule.needs_directions:
        raise ValueError("corrects_gradients and needs_directions are True; allowed is one of the two")
    if rule.sends_differences:
        _check_differences(rule)
    age = rule.age_max
    if rule.needs_drift and not (isinstance(age, int) and age >= 1):
        raise ValueError(f"needs_drift is True and age_max is {age!r}; allowed with it are whole numbers from 1 on")
    for name, kinds in (("drift_kind", get_args(DriftKind)), ("drift_form", get_args(DriftForm))):
        if rule.needs_drift and getattr(rule, name) not in kinds:
            raise ValueError(f"{name} is {getattr(rule, name)!r}; allowed are {', '.join(map(repr, kinds))}")
    if rule.needs_drift and rule.drift_form == "velocity" and rule.drift_kind != "mean":
        raise ValueError(f"drift_form is 'velocity'; allowed with drift_kind = {rule.drift_kind!r} is 'exact'")
    if rule.measures_curvature:
        if not rule.needs_directions:
            raise ValueError("measures_curvature is True; allowed is that where needs_directions is True, too")
        if "curvature" not in rule.coefficients(0, 0):
            raise ValueError("measures_curvature is True; allowed is that with 'curvature' among its coefficients")
        for name in ("curvature_every", "curvature_samples"):
            number = getattr(rule, name)
            if type(number) is not int or number < 1:
                raise ValueError(f"{name} is {number!r}; allowed are whole numbers from 1 on")
    for name in rule.numeric_settings:
        value: Any = rule
        for part in name.split("."):
            if value is None:  # not given, so that the run fills it in
                break
            if part not in getattr(type(value), "model_fields", {}):
                raise ValueError(f"numeric_settings has {name!r}; allowed are names of its settings")
            value = getattr(value, part)


def _check_differences(rule: Rule) -> None:
    """Raise ``ValueError`` where somebody may be without the message before a difference."""
    if not (rule.combines_first and rule.default_barrier == "all" and not rule.takes_any_barrier):
        raise ValueError(
            "sends_differences is True; allowed is that with combines_first and default_barrier = 'all', and without "
            "takes_any_barrier"
        )
    if rule.reading != "newest" or not isinstance(rule.exchange, AllNeighbors) or rule.takes_fragments:
        raise ValueError(
            "sends_differences is True; allowed is that with reading = 'newest', without takes_fragments, and without "
            "partners and receivers of its own"
        )


def _check_declared_of_server(rule: ServerRule) -> None:
    with naming_own(rule):
        steps, before, gap = rule.local_steps, rule.reads_before, rule.needs_gap
        vectors = rule.message_vectors
    for name, value in (("workers_step", getattr(rule, "workers_step", None)), ("needs_gap", gap)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; allowed are True and False")
    for name, number, least in (
        ("local_steps", steps, 1),
        ("reads_before", before, 0),
        ("message_vectors", vectors, 1),
    ):
        if type(number) is not int or number < least:
            raise ValueError(f"{name} is {number!r}; allowed are whole numbers from {least} on")
    if vectors > 1 and not rule.workers_step:
        raise ValueError(f"message_vectors is {vectors}; allowed is 1 where workers_step is False: a gradient")


def _check_server(rule: ServerRule, num_workers: int) -> None:
    draw = generator(0, "contract", num_workers)

    def vector(number: int = 1) -> Tensor:
        return torch.from_numpy(draw.standard_normal(number * _SIZE, dtype=np.float32))

    def delivered(worker: int, present: Tensor) -> Delivered:
        """Return worker k's message as one that is k updates late."""
        computed_at = present - vector() if worker else present.clone()
        gap, computed_at = (present - computed_at, computed_at) if rule.needs_gap else (torch.zeros(0),) * 2
        tau, eta, workers = (torch.tensor(float(value)) for value in (worker, 0.1, num_workers))
        late = Late(vector(rule.message_vectors), gap, tau, eta, workers, present.clone(), computed_at)
        return Delivered(worker, late, sizes=_SIZES)

    center = vector()
    with naming_own(rule), torch.no_grad():
        number = max(1, min(rule.gathering.num_gradients(num_workers), num_workers))
        state = rule.init(center.clone(), num_workers)
        check_state("init", state, state)
        for update in range(_STEPS):
            begun = pure_result("begin", rule.begin, (vector(), center))
            check_vector("what begin returns", begun, center, ())
            # Others in turn where an update takes few.
            workers = sorted((place + update) % num_workers for place in range(number))
            inputs = (state, center, tuple(delivered(worker, center) for worker in workers))
            following, moved = check_pair("gather", pure_result("gather", rule.gather, inputs), "gradient or weights")
            check_vector("what gather returns", moved, center, ())
            check_state("gather", following, state)
            state, center = following, moved if rule.workers_step else center - 0.1 * moved


def _check_partners(rule: Rule) -> None:
    for method in ("partners", "receivers"):
        for step in range(_STEPS):
            with naming_own(rule):
                first, again = (getattr(rule, method)(0, 0, step, _NEIGHBORS) for _ in range(2))
            if first != again:
                raise ValueError(f"{method} gives other neighbors for the same step; allowed are the same ones always")
            if not isinstance(first, tuple) or list(first) != sorted(set(first) & set(_NEIGHBORS)):
                raise ValueError(
                    f"{method} is {first!r} of the neighbors {_NEIGHBORS}; allowed are some, in their order"
                )


Inputs = tuple[Any, Own, Reads]


def _steps(rule: Rule, num_neighbors: int, seed: int = 0) -> Iterator[Inputs]:
    """Yield the inputs of successive steps: the second one has the state that the first has left."""
    draw = generator(seed, "contract", num_neighbors)

    def vector(scale: float = 1.0) -> Tensor:
        return torch.from_numpy(scale * draw.standard_normal(_SIZE, dtype=np.float32))

    def each(scale: float, needed: bool) -> tuple[Tensor, ...]:
        return tuple(vector(scale) if needed else torch.zeros(0) for _ in range(num_neighbors))

    weights = vector()
    with naming_own(rule):
        state = rule.init(weights.clone(), num_neighbors)
    check_state("init", state, state)
    for step in range(_STEPS):
        late = torch.arange(num_neighbors) > 0
        staleness = torch.where(late, torch.arange(1.0, num_neighbors + 1), 0.0)
        row = torch.from_numpy(draw.dirichlet(np.ones(num_neighbors + 1)).astype(np.float32))
        with naming_own(rule):
            own = Own(weights, vector(), row[0].clone(), torch.tensor(0.1), _coefficients(rule, step))
            if rule.sends_differences:
                own = own._replace(public=(weights + vector(0.1),))
        reads = Reads(
            tuple(weights + vector(0.5) for _ in range(num_neighbors)),
            each(1.0, rule.needs_directions),
            each(0.1, rule.needs_drift),
            row[1:].clone(),
            staleness,
            staleness.clone(),
            ~late,
        )
        yield state, own, reads
        state, update = _call(rule, state, own, reads)
        weights = update.weights


def _coefficients(rule: Rule, step: int) -> dict[str, Tensor]:
    found = {}
    for name, value in rule.coefficients(0, step).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"its coefficient {name} is {value!r}; allowed are finite numbers")
        found[name] = torch.tensor(float(value))
    return found


def _call(rule: Rule, state: Any, own: Own, reads: Reads) -> Any:
    target = torch.zeros(_SIZE)
    probe: Probe = lambda candidates: torch.stack([inner(x - target, x - target) for x in candidates])  # noqa: E731
    with torch.no_grad():
        if rule.corrects_gradients:
            own = own._replace(direction=rule.correct(own, reads))
        return rule.step(state, own, reads, probe if rule.probes_at(0) else None)


def _check_result(result: Any, inputs: Inputs) -> None:
    state, own, reads = inputs
    following, update = check_pair("step", result, "Update(weights, measures)")
    if not isinstance(update, Update) or not isinstance(update.measures, dict):
        raise ValueError("step returns (state, ...) without Update; allowed is Update(weights, {name: measure, ...})")
    check_vector("the weights that step returns", update.weights, own.weights, inputs)
    for name, value in update.measures.items():
        if not (isinstance(value, Tensor) and value.shape == ()):
            raise ValueError(f"its measure {name} is {_told(value)}; allowed are tensors of shape ()")
    for name, value in update.of_neighbors.items():
        if not (isinstance(value, Tensor) and value.shape == reads.mixing.shape):
            raise ValueError(f"its measure {name} is {_told(value)}; allowed are tensors of shape (K,)")
    check_state("step", following, state)


def _told(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]


def _check_stacked(rule: Rule) -> None:
    """Raise ``ValueError`` where several agents as one give other bits than each alone, or cannot be stepped so."""
    agents = [list(_steps(rule, len(_NEIGHBORS), seed))[-1] for seed in range(3)]
    alone = [_call(rule, *inputs) for inputs in agents]
    allowed = "allowed are torch.where in place of an if on a tensor, numerics.inner for inner products, or stackable"
    try:
        stacked = mapped(lambda *tensors: torch.stack(tensors), *agents)
        together = torch.func.vmap(lambda inputs: _call(rule, *inputs))(stacked)
    except Exception as error:  # the user's own code, or torch's where it has an ``if`` on a tensor
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"step cannot run for several agents at once ({reason}); {allowed} = False") from error
    for number, one in enumerate(alone):
        if not is_same(mapped(lambda tensor, number=number: tensor[number], together), one):
            raise ValueError(f"step gives other bits for several agents at once; {allowed} = False")
