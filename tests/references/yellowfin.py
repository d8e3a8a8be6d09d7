"""YellowFin in float64, with lists of numbers (Zhang & Mitliagkas, arXiv 1706.03471)."""

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from ray_pcasgd.agents.yellowfin import YellowFin

Array = NDArray[np.float64]


class YellowFinReference:
    """Algorithms 1 to 5 in float64, with lists of numbers in place of tensors."""

    def __init__(self, settings: YellowFin, weights: Array) -> None:
        self.own, self.t = settings, 0
        self.window: deque[float] = deque(maxlen=settings.window)
        self.averages = dict.fromkeys(("low", "high", "norm", "square", "distance"), 0.0)
        self.mean, self.velocity = np.zeros_like(weights), np.zeros_like(weights)
        self.mu = self.target = self.alpha = 0.0
        self.total = math.nan
        self.pull = np.zeros_like(weights)
        self.xs = [weights]

    def average(self, name: str, value: float) -> None:
        beta = self.own.smoothing
        self.averages[name] = beta * self.averages[name] + (1 - beta) * value

    def step(self, x: Array, gradient: Array, eta: float, trail: tuple[Array, Array] | None = None) -> Array:
        """Return by what the weights move, over eta."""
        beta, known = self.own.smoothing, 1 - self.own.smoothing**self.t
        cap = math.exp(self.averages["high"] / known) if self.t else math.inf

        def cut(largest: float) -> Array:
            return gradient * min(1.0, math.sqrt(largest) / max(float(np.linalg.norm(gradient)), 1e-300))

        g = cut(100 * cap)
        square = float(g @ g)
        self.t += 1
        self.window.append(square)
        self.average("low", math.log(min(self.window) + 1e-6))
        self.average("high", math.log(max(self.window) + 1e-6))
        self.average("norm", math.sqrt(square))
        self.average("square", square)
        self.average("distance", self.averages["norm"] / self.averages["square"])
        self.mean = beta * self.mean + (1 - beta) * g
        known = 1 - beta**self.t
        h_min, h_max = (math.exp(self.averages[name] / known) for name in ("low", "high"))
        variance = max(1e-6, self.averages["square"] / known - float(self.mean @ self.mean) / known**2)
        distance = self.averages["distance"] / known
        p = (distance * h_min) ** 2 / (2 * variance)
        roots = np.roots([1.0, 0.0, p, p])
        x_root = 1 + float(roots[np.abs(roots.imag).argmin()].real)
        k = math.sqrt(h_max / h_min)
        self.target = max(x_root**2, ((k - 1) / (k + 1)) ** 2)
        self.alpha = min(1.0, self.t / (10 * self.own.window)) * (1 - math.sqrt(self.target)) ** 2 / h_min
        if self.own.closed_loop:
            after, before = trail or (x - self.xs[-1], self.xs[-1] - self.xs[-2] if len(self.xs) > 1 else 0 * x)
            moved = before != 0
            if moved.any():
                ratios = np.sort(((after + self.pull)[moved]) / before[moved])
                self.total = float(ratios[(len(ratios) - 1) // 2])  # torch's median is the lower one
                self.mu += self.own.gain * (self.target - self.total)
                self.mu = min(max(self.mu, -0.999), 0.999)
        else:
            self.mu = self.target
        pulled = cut(cap)
        self.velocity = self.mu * self.velocity + self.alpha * pulled
        self.pull = eta * self.alpha * pulled
        self.xs.append(x)
        return self.velocity
