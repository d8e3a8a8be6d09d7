"""The methods between peers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments.references import drawing
from experiments.references.drawing import Settings
from experiments.references.engine import Versions
from experiments.references.methods import MIXED, MIXING, NOISE, Method
from ray_pcasgd.rules import PCASGD, PCASGDPV
from ray_pcasgd.rules.acid import ACiD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.practical import Condition
from ray_pcasgd.runs.plan.plan import Plan
from tests.references import rules
from tests.references.averaging import (
    DCS3GDReference,
    GossipReference,
    ImportanceReference,
    Matrix,
    PlainReference,
    ScreenedReference,
    hierarchical,
    lying,
    one_peer,
)
from tests.references.choco import ChocoReference
from tests.references.late import CurvatureReference, DisplacementReference, LateReference, VelocityReference
from tests.references.pairs import ACiDReference, PairReference
from tests.references.pcasgd import PAIRS
from tests.references.peers import (
    PUBLISHED,
    CombiningReference,
    GASLoCReference,
    Reference,
    Regression,
    SlowMoReference,
    eta_at,
)
from tests.references.push import PushReference
from tests.references.screens import REFERENCES as SCREENS
from tests.references.softmax import FlippingPeers, classification
from tests.references.yellowfin import YellowFinReference

PLAIN: Settings = {"optimizer": {}}
ATTACKS: dict[str, Any] = {
    "sign-flip": {"name": "sign-flip", "scale": 2.0},
    "noise": {"name": "noise", "std": 2.0},  # by which float32 is multiplied without rounding
    "uniform": {"name": "uniform", "low": -1.0, "high": 1.0},  # the same
    "alie": "alie",
    "inner-product": "inner-product",
    "mimic": "mimic",
    "stale-replay": {"name": "stale-replay", "period": 4},
}


def of(make: Callable[[Plan], Reference]) -> Callable[[Plan], Versions]:
    """Return what a reference's versions are."""

    def versions(own: Plan) -> Versions:
        reference = make(own)
        reference.run()
        return reference.versions

    return versions


def drawn(changes: Settings, **limits: Any) -> Callable[[int], Settings]:
    """Return the random runs of peers with these settings."""
    return lambda seed: drawing.peers(seed, **limits) | changes


def late_rule(
    rule: Rule, method: rules.Method, kind: type[LateReference] = LateReference
) -> tuple[Callable[[int], Settings], Callable[[Plan], Versions]]:
    """Return the random runs of a rule that predicts, and its reference; its drift is exact unless it says so."""
    settings = rule.model_dump()
    if settings.get("prediction") == "direction" and settings.get("drift", "") is None:
        settings["drift"] = "exact"

    def runs(seed: int) -> Settings:
        declared = {"name": "declared"} if seed % 2 else {"name": "measured"}
        # A theta for each agent is given for five.
        least = 5 if isinstance(settings.get("theta"), tuple) else 3
        found = drawing.peers(seed, least=least, most=5 if least == 5 else 6)
        return found | PLAIN | {"algorithm": settings, "reliability": declared}

    return runs, lambda own: kind(own, method).run()


def pairs_of(own: Plan) -> Versions:
    """Return the versions of AD-PSGD and A2CiD2, whose gradients are those at the weights after the step before."""
    task, number = Regression(own), len(own.specs)
    acid = own.config.algorithm.acceleration  # type: ignore[union-attr]
    rows = [row for row in own.schedule if row is not None]
    reference: Any = PairReference(task.start, number)
    if isinstance(acid, ACiD):
        reference = ACiDReference(task.start, number, acid, rows)
    steps, found = [0] * number, {}

    def weights(i: int) -> np.ndarray:
        return reference.pairs[i][0] if isinstance(reference, ACiDReference) else reference.x[i]  # type: ignore[no-any-return]

    gradients = [task.gradient(i, 0, task.start) for i in range(number)]
    for row in rows:
        i = row.agent
        reference.take(row, eta_at(steps[i]) * gradients[i])
        if row.kind == "step":
            steps[i] += 1
            gradients[i] = task.gradient(i, steps[i], weights(i))
        found[i, row.step + 1] = np.array(weights(i))
    return found


def push_of(own: Plan) -> Versions:
    """Return the versions of push-sum, without its bias."""
    assert own.network is not None
    task, rows = Regression(own), [row for row in own.schedule if row is not None]
    reference, found = PushReference(task.start, own.network.matrix, rows, own.config.num_steps), {}
    now = dict.fromkeys(range(len(own.specs)), task.start)
    for row in rows:
        i = row.agent
        reference.take(row, eta_at(row.step) * task.gradient(i, row.step, now[i]))
        now[i] = found[i, row.step + 1] = reference.weights
    return found


class YellowFinPeers(PlainReference):
    """D-ASGD with YellowFin: where a gradient was computed, the weights are those before."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        make = partial(YellowFinReference, own.config.optimizer, self.task.start)  # type: ignore[arg-type]
        self.tuners = {i: make() for i in self.velocity}

    def compute(self, i: int, version: int, start: np.ndarray | None = None) -> None:
        x, eta = self.versions[i, version], self.eta(version)
        self.displacement[i, version] = eta * self.tuners[i].step(x, self.task.gradient(i, version, x), eta)


def changing(matrix: Callable[[Plan], Matrix]) -> Callable[[Plan], Versions]:
    """Return the reference of a graph that changes from step to step."""
    return of(lambda own: PlainReference(own, matrix(own)))


def groups_of(own: Plan) -> Matrix:
    """Return the matrices of the first half and the second half of the agents as two groups."""
    number = own.config.num_agents
    middle = (number + 1) // 2
    return hierarchical((range(middle), range(middle, number)), 2)


def two_groups(seed: int) -> Settings:
    """Return random runs of two groups of agents, which average within groups twice, and then between them."""
    found = drawing.peers(seed, least=4, graph="own")
    number = found["num_agents"]
    middle = (number + 1) // 2
    groups = [list(range(middle)), list(range(middle, number))]
    return found | {"algorithm": "d-asgd", "topology": {"name": "hierarchical", "groups": groups, "inside": 2}}


def attacked(attack: Any, screen: str | None) -> Callable[[int], Settings]:
    """Return random runs of d-asgd or of a screen, with one attacker or two."""
    algorithm = {"name": "bridge", "screen": screen, "attackers": 2} if screen else "d-asgd"

    def runs(seed: int) -> Settings:
        found = drawing.peers(seed, least=7, most=8, graph="complete") | {"algorithm": algorithm}
        return found | {"faults": {"agents": [1, 4][: 1 + seed % 2], "attack": attack}}

    return runs


def screened(name: str, late: str, *, is_mixed: bool = False) -> Method:
    """Return the line of one of bridge's screens.

    Of an even number of means, of which half may be equal, rounding decides which ones Bulyan takes.
    """
    least = {"bulyan": 7, "krum": 5}.get(name, 4)
    most = 7 if is_mixed and name == "bulyan" else 8
    screen = {"name": name, "nearest_neighbor_mixing": is_mixed}
    algorithm: Settings = {"name": "bridge", "screen": screen, "attackers": 1, "late": late}
    if late == "predict":
        algorithm["compensation"] = 0
    return Method(
        f"`bridge`, `{name}`" + (MIXED if is_mixed else "") + ("" if late == "keep" else f", `late: {late}`"),
        "screens.py, averaging.py; " + (MIXING if is_mixed else "arXiv 1908.08098, algorithm 1"),
        drawn({"algorithm": algorithm}, least=least, most=most, graph="complete"),
        of(ScreenedReference),
    )


def _by_steps() -> Iterator[Method]:
    """Yield rules between peers that exchange after each step."""
    plain = of(PlainReference)
    yield Method("`d-psgd`", "averaging.py; `x_i <- sum_k w_ik x_k - eta u_i`", drawn({"algorithm": "d-psgd"}), plain)
    yield Method("`d-asgd`", "averaging.py; the same, of late versions", drawn({"algorithm": "d-asgd"}), plain)
    for name, (rule, method) in PAIRS.items():
        form = name if name.startswith(rule.name) else f"{rule.name}, {name}"  # type: ignore[attr-defined]
        form = form.replace(rule.name, f"`{rule.name}`")  # type: ignore[attr-defined]
        if name != "d-asgd":
            yield Method(form, "rules.py, late.py; arXiv 2208.13154", *late_rule(rule, method))
    constant = rules.Method(theta=lambda i, t: 0.4, lambda_0=0.7)
    velocity = PCASGD(theta=0.4, compensation=0.7, drift="velocity")  # type: ignore[arg-type]
    yield Method(
        "`pc-asgd`, `drift: velocity`",
        "rules.py, late.py; arXiv 2208.13154, on a straight path",
        *late_rule(velocity, constant, VelocityReference),
    )
    displaced = PCASGD(theta=0.4, compensation=0.7, prediction="displacement", drift="exact")  # type: ignore[arg-type]
    yield Method(
        "`pc-asgd`, `prediction: displacement`",
        "rules.py, late.py; this package's",
        *late_rule(displaced, constant, DisplacementReference),
    )
    # Measured more often than by default, and with less of a warm-up, since the runs are short.
    chosen = PCASGD(stability={"name": "curvature", "every": 5, "warmup": 8}, drift="velocity")  # type: ignore[arg-type]
    yield Method(
        "`pc-asgd`, the default",
        "rules.py, late.py; this package's",
        *late_rule(chosen, rules.Method(bound=1.0, sharpness=2.5, guard=True), CurvatureReference),
    )
    conditions: tuple[Condition, ...] = ("descent", "gradient", "smoothed", "pull", "probe")
    for condition in conditions:
        rule = PCASGDPV(condition=condition, compensation=0.5)  # type: ignore[arg-type]
        own = rules.Method(lambda_0=0.5, condition=condition)
        yield Method(
            f"`pc-asgd-pv`, {condition}",
            "rules.py, late.py; arXiv 2208.13154, practical variant",
            *late_rule(rule, own),
        )


def _by_rounds() -> Iterator[Method]:
    """Yield rules between peers with rounds of local steps, and messages that are encoded."""
    published = of(lambda own: Reference(own, 0.6))
    local = {"algorithm": PUBLISHED, "local_steps": 3}
    yield Method("`pc-asgd`, 3 local steps, momentum", "peers.py; the same, by rounds", drawn(local), published)
    first = {"overlap": False, "local_steps": 3}
    combining = of(lambda own: CombiningReference(own, None))
    yield Method(
        "`d-psgd`, combining first",
        "peers.py; local steps from what was combined",
        drawn({"algorithm": "d-psgd", **first}),
        combining,
    )
    blend = of(lambda own: CombiningReference(own, 0.6))
    yield Method(
        "`pc-asgd`, combining first", "peers.py; the same, predicted", drawn({"algorithm": PUBLISHED, **first}), blend
    )
    slow = {"name": "slowmo", "outer_momentum": 0.6, "outer_step_size": 0.8}
    yield Method(
        "`slowmo`",
        "peers.py; Wang et al. 2020, algorithm 1",
        drawn({"algorithm": slow, "local_steps": 3}),
        of(lambda own: SlowMoReference(own, 0.6, 0.8)),
    )

    def in_seconds(seed: int) -> Settings:
        draw = drawing.generator(seed, "seconds")
        found = drawing.peers(seed, graph="complete")
        return found | {"algorithm": "noloco", "local_steps": 3, "links": drawing.in_seconds(draw)}

    yield Method(
        "`noloco`",
        "peers.py; arXiv 2506.10911",
        in_seconds,
        of(lambda own: SlowMoReference(own, 0.5, 0.7, in_pairs=True)),
    )
    gasloc = {"name": "gasloc", "gossip": 0.6, "outer_momentum": 0.3, "outer_step_size": 0.9}
    yield Method(
        "`gasloc`",
        "peers.py; arXiv 2606.11081",
        drawn({"algorithm": gasloc, "local_steps": 3}),
        of(lambda own: GASLoCReference(own, 0.6, 0.3, 0.9)),
    )
    choco = {"algorithm": {"name": "choco-sgd", "gamma": 0.6}, "wire": {"name": "top-k", "share": 0.5}}
    yield Method(
        "`choco-sgd`, `top-k`",
        "choco.py; Koloskova et al. 2019, algorithm 2",
        drawn({**choco, "local_steps": 2}),
        of(ChocoReference),
        runs_in_double=False,
    )


def _other_exchanges() -> Iterator[Method]:
    """Yield other ways to exchange, other graphs, and another optimizer."""
    yield Method("`dc-s3gd`", "averaging.py; Rigazzi 2019", drawn({"algorithm": "dc-s3gd"}), of(DCS3GDReference))
    yield Method(
        "`d-asgd-importance`",
        "averaging.py; Du, You, Mo 2020",
        drawn({"algorithm": "d-asgd-importance"}),
        of(ImportanceReference),
    )
    for name in ("gossip-pull", "gossip-push"):
        own_rule = {"algorithm": {"name": name, "every": 2}}
        yield Method(f"`{name}`", "averaging.py; Jin et al. 2016", drawn(own_rule), of(GossipReference))
    one = {"algorithm": "d-asgd", "topology": "one-peer-exponential"}
    yield Method(
        "`one-peer-exponential`",
        "averaging.py; arXiv 2110.13363",
        drawn(one, graph="own"),
        changing(lambda own: one_peer(own.config.num_agents)),
    )
    yield Method("`hierarchical`", "averaging.py; means of groups, then between them", two_groups, changing(groups_of))
    for name in ("sgp", "sgp-overlap"):
        pushed = drawn({"algorithm": name, **PLAIN}, graph="directed")
        yield Method(f"`{name}`", "push.py; Assran et al. 2019", pushed, push_of)

    def paired(acceleration: str | None) -> Callable[[int], Settings]:
        def runs(seed: int) -> Settings:
            found = drawing.peers(seed, most=7, graph=["complete", "star"][seed % 2]) | PLAIN
            links = drawing.in_seconds(drawing.generator(seed, "pairs"), 0.5) if seed % 3 else []
            return found | {"algorithm": {"name": "ad-psgd", "acceleration": acceleration}, "links": links}

        return runs

    yield Method("`ad-psgd`", "pairs.py; Lian et al. 2018", paired(None), pairs_of)
    yield Method("`ad-psgd`, `acid`", "pairs.py; arXiv 2306.08289, eq. 4 and algorithm 1", paired("acid"), pairs_of)
    yield Method(
        "`yellowfin` between peers",
        "yellowfin.py; arXiv 1706.03471, algorithms 1 to 5",
        drawn({"algorithm": "d-asgd", "optimizer": {"name": "yellowfin", "window": 2, "smoothing": 0.9}}),
        of(YellowFinPeers),
    )


def _with_attackers() -> Iterator[Method]:
    """Yield screens and attacks."""
    for name in SCREENS:
        yield screened(name, "keep")
        yield screened(name, "keep", is_mixed=True)
    for late in ("clip", "predict"):
        yield screened("trimmed-mean", late)
    for name, attack in ATTACKS.items():
        attacks = "attacks.py, averaging.py"
        mean = of(partial(lying, PlainReference))
        yield Method(f"attack `{name}` on `d-asgd`", attacks, attacked(attack, None), mean, name not in NOISE)
    yield Method(
        "attack `label-flip` on `d-asgd`",
        "softmax.py, averaging.py; gradients at labels C - 1 - y",
        lambda seed: attacked("label-flip", None)(seed) | {"task": classification(seed)},
        of(FlippingPeers),
    )
    yield Method(
        "attack `alie` on `bridge`",
        "attacks.py, screens.py; Baruch et al. 2019",
        attacked("alie", "trimmed-mean"),
        of(partial(lying, ScreenedReference)),
    )


PEERS = (*_by_steps(), *_by_rounds(), *_other_exchanges(), *_with_attackers())
