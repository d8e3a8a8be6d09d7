"""The correction by the outer momentum, and the merging by lengths and directions, tensor by tensor in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.rules.heloco import HeLoCo
from tests.references.rounds import RoundsReference
from tests.references.servers import Array, weight_of


def blocks(vector: Array, sizes: Sequence[int]) -> list[Array]:
    return [np.array(part) for part in np.split(vector, np.cumsum(sizes)[:-1])]


def slow_corrected(delta: Array, m: Array, rule: HeLoCo, sizes: Sequence[int]) -> Array:
    """Table 3 of the paper, one tensor after another."""
    found = []
    for d, part in zip(blocks(delta, sizes), blocks(m, sizes), strict=True):
        length, momentum = np.linalg.norm(d), np.linalg.norm(part)
        if length == 0 or momentum == 0:
            found.append(d)
            continue
        v, cosine = part / momentum, float(d @ part) / (length * momentum)
        confidence = length / (length + rule.kappa * momentum + 1e-8)
        if cosine < 0:
            beta = min(rule.k_s * -cosine * confidence, rule.beta_max)
            found.append(d - beta * cosine * length * v)
        elif cosine < rule.c_ok:
            share = min(rule.k_d * (1 - cosine) * confidence, 1)
            direction = (1 - share) * d / length + share * v
            found.append(length * direction / np.linalg.norm(direction))
        else:
            found.append(d)
    return np.concatenate(found)


def slow_merged(deltas: list[Array], weights: list[float], total: float, sizes: Sequence[int]) -> Array:
    found = []
    for tensors in zip(*(blocks(delta, sizes) for delta in deltas), strict=True):
        lengths = [float(np.linalg.norm(one)) for one in tensors]
        mean = sum(w * one for w, one in zip(weights, tensors, strict=True)) / total
        if min(lengths) < 1e-12:
            found.append(mean)
            continue
        length = sum(w * one for w, one in zip(weights, lengths, strict=True)) / total
        direction = sum(w * one / n for w, one, n in zip(weights, tensors, lengths, strict=True))
        along = float(np.linalg.norm(direction))
        # Of opposite ones there is no direction in common.
        found.append(mean if along < 1e-12 else length * direction / along)
    return np.concatenate(found)


class HeLoCoReference(RoundsReference):
    """DiLoCo whose pseudo-gradients may be corrected by the momentum, or merged by lengths and directions."""

    def update(self, row: Row) -> None:
        rule: Any = self.plan.config.algorithm
        sizes = [one.numel() for one in self.model.parameters()]
        deltas, weights, total = [], [], 0.0
        for read in row.reads:
            delta, version = self.sent[read[:2]]
            tau = len(self.weights) - 1 - version
            if rule.outer.name == "heloco" and tau:
                delta = slow_corrected(delta, self.outer["b"], rule.outer, sizes)
            deltas.append(delta)
            weights.append(self.share(read.neighbor) * weight_of(rule.weighting, tau))
            total += self.share(read.neighbor)
        if rule.merging == "radial-directional":
            merged = slow_merged(deltas, weights, total, sizes)
        else:
            merged = sum((w * d for w, d in zip(weights, deltas, strict=True)), np.zeros_like(deltas[0])) / total
        self.weights.append(self.moved(rule.outer, merged))

    def moved(self, outer: Any, g: Array) -> Array:
        if outer.name != "heloco":
            return super().moved(outer, g)
        self.outer["b"] = outer.momentum * self.outer["b"] + (1 - outer.momentum) * g
        return self.weights[-1] - outer.step_size * (g + outer.momentum * self.outer["b"])  # type: ignore[no-any-return]
