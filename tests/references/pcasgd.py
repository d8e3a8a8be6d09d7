"""PC-ASGD and its relatives in all their forms, each with the settings of the reference that it is held against."""

from ray_pcasgd.base.curves import Linear
from ray_pcasgd.rules import CASGD, DASGD, PASGD, PCASGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.bound import ConstantBound
from ray_pcasgd.rules.compensation import AdaptiveCompensation, RelativeCompensation
from tests.references.rules import Method

ADAPTIVE = AdaptiveCompensation(lambda_0=2.0, decay=0.95)

PAIRS: dict[str, tuple[Rule, Method]] = {
    "d-asgd": (DASGD(), Method()),
    "c-asgd": (CASGD(), Method(theta=lambda i, t: 0.0)),
    "c-asgd, renormalized": (CASGD(clipping="renormalize"), Method(theta=lambda i, t: 0.0, renormalize=True)),
    "p-asgd": (PASGD(), Method(theta=lambda i, t: 1.0)),
    "constant lambda": (PCASGD(theta=0.3, compensation=0.7), Method(theta=lambda i, t: 0.3, lambda_0=0.7)),
    "adaptive lambda": (
        PCASGD(theta=0.6, compensation=ADAPTIVE),
        Method(theta=lambda i, t: 0.6, lambda_0=2.0, decay=0.95),
    ),
    "relative lambda": (
        PCASGD(theta=0.6, compensation=RelativeCompensation(lambda_0=0.5)),
        Method(theta=lambda i, t: 0.6, lambda_0=0.5, relative=True),
    ),
    "renormalized": (
        PCASGD(theta=0.3, compensation=0.7, clipping="renormalize"),
        Method(theta=lambda i, t: 0.3, lambda_0=0.7, renormalize=True),
    ),
    "renormalized, oldest 2": (
        PCASGD(theta=0.8, clipping="renormalize", oldest_age=2),
        Method(theta=lambda i, t: 0.8, renormalize=True, oldest_age=2),
    ),
    "oldest 2": (PCASGD(theta=0.8, oldest_age=2), Method(theta=lambda i, t: 0.8, oldest_age=2)),
    "theta over steps": (
        PCASGD(theta=Linear(start=0.0, end=1.0, steps=4)),
        Method(theta=lambda i, t: min(t / 4, 1.0)),
    ),
    "theta per agent": (
        PCASGD(theta=(0.0, 0.25, 0.5, 0.75, 1.0)),
        Method(theta=lambda i, t: i / 4),
    ),
}
ONE = ConstantBound()
PAIRS |= {
    "theta by staleness": (PCASGD(stability=ONE, guard=False), Method(bound=1.0)),
    "theta by staleness, c 3, renormalized": (
        PCASGD(stability=3.0, guard=False, clipping="renormalize", oldest_age=3),
        Method(bound=3.0, renormalize=True, oldest_age=3),
    ),
    "guarded": (PCASGD(stability=4.0), Method(bound=4.0, guard=True)),
    "guarded, stable": (
        PCASGD(stability=9.0, theta=0.9, reach="stable"),
        Method(theta=lambda i, t: 0.9, bound=9.0, reach="stable", guard=True),
    ),
    "damped": (PCASGD(theta=0.3, reach="damped"), Method(theta=lambda i, t: 0.3, reach="damped")),
    "theta by staleness, damped": (
        PCASGD(stability=ONE, guard=False, reach="damped"),
        Method(bound=1.0, reach="damped"),
    ),
    "theta by staleness, 2 steps": (
        PCASGD(stability=ONE, guard=False, reach=2, compensation=0.5),
        Method(bound=1.0, reach=2.0, lambda_0=0.5),
    ),
    "stable": (
        PCASGD(theta=0.7, guard=False, stability=0.5, reach="stable", compensation=0.5),
        Method(theta=lambda i, t: 0.7, bound=0.5, reach="stable", lambda_0=0.5),
    ),
    "p-asgd, stable": (PASGD(stability=ONE, reach="stable"), Method(theta=lambda i, t: 1.0, bound=1.0, reach="stable")),
    "bounded": (
        PCASGD(theta=0.7, guard=False, stability=0.5, bounded=True, compensation=0.5),
        Method(theta=lambda i, t: 0.7, bound=0.5, bounded=True, lambda_0=0.5),
    ),
    "bounded, guarded, damped": (
        PCASGD(theta=0.9, stability=2.0, reach="damped", bounded=True),
        Method(theta=lambda i, t: 0.9, bound=2.0, reach="damped", bounded=True, guard=True),
    ),
    "bounded, 2 steps": (
        PCASGD(theta=0.5, guard=False, stability=0.4, reach=2, bounded=True),
        Method(theta=lambda i, t: 0.5, bound=0.4, reach=2.0, bounded=True),
    ),
    "p-asgd, bounded": (PASGD(stability=ONE, bounded=True), Method(theta=lambda i, t: 1.0, bound=1.0, bounded=True)),
    "bounded, own drift": (
        PCASGD(prediction="own-drift", guard=False, theta=0.4, stability=0.5, bounded=True),
        Method(theta=lambda i, t: 0.4, own_drift=True, bound=0.5, bounded=True),
    ),
    "theta by staleness, bounded, which changes nothing": (
        PCASGD(stability=ONE, guard=False, bounded=True),
        Method(bound=1.0),
    ),
    "theta by staleness, drag": (
        PCASGD(stability=0.5, guard=False, reach={"name": "stable", "drag": 0.2}),
        Method(bound=0.5, reach="stable", drag=0.2),
    ),
    "own drift": (PCASGD(prediction="own-drift", guard=False, stability=ONE), Method(bound=1.0, own_drift=True)),
    "own drift, theta": (PCASGD(prediction="own-drift", theta=0.4), Method(theta=lambda i, t: 0.4, own_drift=True)),
    "own drift, stable": (
        PCASGD(prediction="own-drift", guard=False, theta=0.4, reach="stable", stability=0.5),
        Method(theta=lambda i, t: 0.4, own_drift=True, reach="stable", bound=0.5),
    ),
}
