"""The momentum of asynchrony, fitted to how a server's weights move in planned runs, and what YellowFin sees of it.

Of P workers with exponential times, which wait for nobody, ``E x_{t+1} - E x_t = mu (E x_t - E x_{t-1}) - alpha nu
E grad f(x_t)`` with ``mu = 1 - 1/P`` and ``nu = 1/P`` (Mitliagkas, Zhang, Hadjis, Re 2016, arXiv 1605.09774).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.convergence.problem import CLASSES, Digits
from experiments.rivals.quadratic import Array, planned, task, weights_of
from ray_pcasgd.agents.local_optimizer import Trail
from ray_pcasgd.agents.yellowfin import total_momentum

CURVATURES = tuple(float(one) for one in np.geomspace(0.1, 1.0, 6))
QUADRATIC, DIGITS = "quadratic", "digits"
_GROUPS = 10
"""Groups of seeds, each left out once for the standard error."""


class Moves(NamedTuple):
    """One run: where the server's weights were, and the loss's whole gradient there."""

    weights: Array
    """Before the first update and after each, shape (T + 1, D)."""
    gradients: Array
    """At the weights before each update, shape (T, D)."""


def bowl_gradients(weights: Array) -> Array:
    """Return the quadratic's gradients."""
    return weights * np.array(CURVATURES)


@cache
def _digits() -> tuple[Array, Array]:
    inputs, labels = (one.double().numpy() for one in Digits().tensors)
    return inputs, np.eye(CLASSES)[labels.astype(int)]


def softmax_gradients(weights: Array) -> Array:
    """Return the cross-entropy's gradients on all digits, of a linear layer without biases."""
    inputs, wanted = _digits()
    found = []
    for one in weights:
        outputs = inputs @ one.reshape(CLASSES, -1).T
        shares = np.exp(outputs - outputs.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        found.append(((shares - wanted).T @ inputs / len(inputs)).ravel())
    return np.stack(found)


PROBLEMS: dict[str, tuple[dict[str, Any], Callable[[Array], Array]]] = {
    QUADRATIC: ({"task": task(CURVATURES)}, bowl_gradients),
    DIGITS: (
        {
            "task": {
                "data": {
                    "name": "custom",
                    "train": "experiments.convergence.problem:Digits",
                    "test": "experiments.convergence.problem:FewDigits",
                },
                "model": {
                    "name": "custom",
                    "factory": "torch.nn:Linear",
                    "arguments": {"in_features": 64, "out_features": CLASSES, "bias": False},
                },
                "loss": "cross-entropy",
                "metrics": [],
            },
            "partition": "iid",
            "batch_size": 100,
        },
        softmax_gradients,
    ),
}
"""The settings of each, and the gradients at weights of shape (T, D)."""


def run_of(problem: str, workers: int, seed: int, step_size: float) -> Moves:
    """Return one run of ``asgd`` with exponential times and plain SGD, of ``4 P + 24`` updates."""
    changes, gradients = PROBLEMS[problem]
    updates = 4 * workers + 24
    settings: Mapping[str, Any] = {
        "num_agents": workers,
        "num_steps": -(-updates // workers),
        "step_size": step_size,
        "seed": seed,
        "algorithm": {"name": "server", "gathering": "asgd"},
        "compute": {"law": {"name": "exponential", "mean": 1.0}},
        **changes,
    }
    weights = weights_of(planned(settings), updates)
    return Moves(weights, gradients(weights[:-1]))


class Fit(NamedTuple):
    """The law's two numbers as fitted, with their standard errors."""

    momentum: float
    momentum_error: float
    share: float
    share_error: float


def fitted(runs: Sequence[Moves], step_size: float) -> Fit:
    """Return the momentum, and the share of the step size, that the mean over the runs moves with.

    A mean over some runs is noisy, which would make a least-squares fit too small a momentum. So of the products of
    means, those of each run with itself are left out: others' noise is another. Standard errors are the jackknife's.
    """
    weights = np.stack([run.weights for run in runs])
    moves, pulls = np.diff(weights, axis=1), -step_size * np.stack([run.gradients for run in runs])
    whole = _solved(moves, pulls)
    left_out = np.arange(len(runs)) % _GROUPS
    parts = np.stack([_solved(moves[left_out != k], pulls[left_out != k]) for k in range(_GROUPS)])
    errors = np.sqrt((_GROUPS - 1) * parts.var(0))
    return Fit(float(whole[0]), float(errors[0]), float(whole[1]), float(errors[1]))


def _solved(moves: Array, pulls: Array) -> Array:
    """Return momentum and share; moves and ``- alpha grad f`` are of shape (runs, T, D)."""
    number = len(moves)
    columns = np.stack([part.reshape(number, -1) for part in (moves[:, :-1], pulls[:, 1:], moves[:, 1:])])
    sums = columns.sum(1)
    products = sums @ sums.T - np.einsum("ank,bnk->ab", columns, columns)
    return np.asarray(np.linalg.solve(products[:2, :2], products[:2, 2]))


def as_measured(runs: Sequence[Moves], step_size: float) -> float:
    """Return the mean over runs and updates of what YellowFin's closed loop measures, with the whole gradient."""
    found = []
    for run in runs:
        moves = torch.from_numpy(np.diff(run.weights, axis=0))
        pulls = step_size * torch.from_numpy(run.gradients)
        found += [float(total_momentum(Trail(moves[s], moves[s - 1]), pulls[s])) for s in range(1, len(moves))]
    return float(np.mean(found))
