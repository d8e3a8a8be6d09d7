"""The methods with a server."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments.references import drawing
from experiments.references.drawing import Settings
from experiments.references.engine import Versions
from experiments.references.methods import MIXED, MIXING, NOISE, Method
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.plan import Plan
from tests.references import rivals
from tests.references.fedglomo import FedGLOMOReference
from tests.references.heloco import HeLoCoReference
from tests.references.peers import Array, Regression, gradient_of
from tests.references.rounds import FedAsyncReference, RoundsReference
from tests.references.server_variants import (
    KardamReference,
    LiedToServer,
    NesterovReference,
    ScreenedServer,
    ViewReference,
    YellowFinServer,
)
from tests.references.servers import ElasticReference, Reference
from tests.references.softmax import FlippingWorkers, classification
from tests.references.streaming import PARTS, ElasticInParts, FedAsyncInParts, StreamingReference
from tests.references.svrg import SVRGReference

ETA = 0.03
STEPS: Settings = {"step_size": ETA, "num_steps": 12}
MOMENTUM: Settings = {"momentum": 0.5, "weight_decay": 0.01}
YELLOWFIN: Settings = {"name": "yellowfin", "window": 2, "smoothing": 0.9}
GATHERINGS: dict[str, Any] = {
    "sync": "sync",
    "k-sync": {"name": "k-sync", "k": 2},
    "k-batch-sync": {"name": "k-batch-sync", "k": 3},
    "k-async": {"name": "k-async", "k": 2},
    "k-batch-async": {"name": "k-batch-async", "k": 3},
    "quorum": {"name": "quorum", "k": 2, "grace_seconds": 0.5},
    "asgd": "asgd",
    "n-softsync": {"name": "n-softsync", "n": 2},
    "ringmaster": {"name": "ringmaster", "delay_threshold": 3},
    "ringmaster, stopping": {"name": "ringmaster", "delay_threshold": 3, "stops": True},
    "rennala": {"name": "rennala", "k": 4},
    "malenia": {"name": "malenia", "target": 1.5},
    "ringleader": "ringleader",
    "ia2sgd": "ia2sgd",
}
CORRECTIONS: dict[str, tuple[Any, str]] = {
    "staleness-aware": ("staleness-aware", "IJCAI 2016, eq. 5"),
    "dc-asgd-c": ({"name": "dc-asgd-c", "lambda_0": 0.5}, "Zheng et al. 2017, eq. 10"),
    "dc-asgd-a": ({"name": "dc-asgd-a", "lambda_0": 0.5}, "Zheng et al. 2017, eq. 14"),
    "gap-bounded": ({"name": "gap-bounded", "bound": 5e-4}, "Dutta et al. 2021, eq. 13"),
    "delay-adaptive": ("delay-adaptive", "Mishchenko et al., Koloskova et al. 2022"),
    "dampened, polynomial": ({"name": "dampened", "weighting": {"name": "polynomial", "a": 0.7}}, "arXiv 1903.03934"),
    "dampened, hinge": ({"name": "dampened", "weighting": {"name": "hinge", "a": 2, "b": 1}}, "arXiv 1903.03934"),
    "dampened, exponential": ({"name": "dampened", "weighting": "exponential"}, "arXiv 1802.07928"),
}
SCREENED = ("trimmed-mean", "median", "krum", "bulyan", "centered-clipping", "geometric-median")
LIES: dict[str, Any] = {
    "sign-flip": {"name": "sign-flip", "scale": 2.0},
    "noise": {"name": "noise", "std": 2.0},  # by which float32 is multiplied without rounding
    "uniform": {"name": "uniform", "low": -1.0, "high": 1.0},  # the same
    "stale-replay": {"name": "stale-replay", "period": 3},
    "alie": "alie",
    "inner-product": {"name": "inner-product", "scale": 0.5},
    "mimic": "mimic",
}
SIMULATED: dict[str, tuple[Any, Callable[..., list[Array]]]] = {
    "ringmaster": ({"name": "ringmaster", "delay_threshold": 3}, partial(rivals.ringmaster, threshold=3, stops=False)),
    "ringmaster, stopping": (
        {"name": "ringmaster", "delay_threshold": 3, "stops": True},
        partial(rivals.ringmaster, threshold=3, stops=True),
    ),
    "rennala": ({"name": "rennala", "k": 5}, partial(rivals.rennala, size=5)),
    "malenia": ({"name": "malenia", "target": 1.5}, partial(rivals.malenia, target=1.5)),
    "ringleader": ("ringleader", rivals.ringleader),
    "ia2sgd": ("ia2sgd", rivals.ia2sgd),
}
"""Settings, and simulations that know nothing of a schedule."""


def of(make: Callable[[Plan], Any], eta: float = ETA) -> Callable[[Plan], Versions]:
    """Return the versions that a reference comes to which executes a schedule's rows."""

    def versions(own: Plan) -> Versions:
        reference, found, workers = make(own), {}, own.config.num_agents
        reference.eta = eta
        for row in own.schedule:
            assert row is not None
            reference.execute(row)
            if row.agent >= workers:
                found[row.agent, row.step + 1] = reference.weights[-1]
        return found

    return versions


def drawn(algorithm: Any, changes: Settings | None = None, **limits: Any) -> Callable[[int], Settings]:
    """Return the random runs of an algorithm with a server; without other settings, with momentum and weight decay."""
    more = {"optimizer": MOMENTUM} if changes is None else changes
    return lambda seed: drawing.servers(seed, **limits) | STEPS | {"algorithm": algorithm} | more


def server(**settings: Any) -> Settings:
    """Return the settings of ``server``."""
    return {"name": "server", **settings}


def rounds_of(kind: type[RoundsReference]) -> Callable[[Plan], Versions]:
    """Return the versions of rounds of local steps."""
    return of(lambda own: kind(own, tuple(own.rounds.local_steps)))


def servers_of(reference: SVRGReference | FedGLOMOReference, own: Plan) -> Versions:
    """Return the versions of a reference's server."""
    found = {}
    for row in own.schedule:
        assert row is not None
        reference.run(row)
        if row.agent >= own.config.num_agents:
            found[row.agent, row.step + 1] = reference.x[-1]
    return found


def fixed(gathering: Any) -> Callable[[int], Settings]:
    """Return runs whose workers take times of their own for gradients of their whole shards."""

    def runs(seed: int) -> Settings:
        draw = generator(seed, "references")
        number = int(draw.integers(2, 6))
        seconds = {k: float(value) for k, value in enumerate(draw.uniform(1, 6, number))}
        settings = {"num_agents": number, "seed": seed, "links": [], "clusters": 1}
        settings |= {"compute": {"law": 1.0, "agents": seconds}, "optimizer": {}, "batch_size": 120 // number}
        return settings | STEPS | {"algorithm": server(gathering=gathering)}

    return runs


def simulated(simulation: Callable[..., list[Array]]) -> Callable[[Plan], Versions]:
    """Return the points of a simulation, as many as the plan's server comes to."""

    def versions(own: Plan) -> Versions:
        config, task = own.config, Regression(own)
        whole = [[part.double().numpy() for part in own.data.train.take(spec.shard)] for spec in own.specs[:-1]]
        seconds = [config.compute.agents[k].expectation() for k in range(config.num_agents)]
        workers = rivals.Workers(seconds, task.start, lambda k, x: gradient_of(x, *whole[k]), ETA)
        number = sum(row is not None and row.agent == config.num_agents for row in own.schedule)
        return {(config.num_agents, v): np.asarray(x) for v, x in enumerate(simulation(workers, number))}

    return versions


def flipping(gathering: str, seed: int) -> Settings:
    """Return random runs of softmax regression, of whose workers one trains on flipped labels."""
    faults = {"faults": {"agents": [1], "attack": "label-flip"}, "task": classification(seed)}
    return drawn(server(gathering=gathering), faults | {"optimizer": {}}, least=4)(seed)


def _plain() -> Iterator[Method]:
    for name, gathering in GATHERINGS.items():
        settings = server(gathering=gathering, correction={"name": "dc-asgd-c", "lambda_0": 0.5})
        yield Method(
            f"`server`, {name}", "servers.py; the mean of K gradients", drawn(settings, least=3), of(Reference)
        )
    for name, (value, paper) in CORRECTIONS.items():
        yield Method(f"correction {name}", f"servers.py; {paper}", drawn(server(correction=value)), of(Reference))
    for name, (gathering, simulation) in SIMULATED.items():
        yield Method(
            f"{name}, with its schedule", "rivals.py; the paper's algorithm", fixed(gathering), simulated(simulation)
        )
    adversary = server(gathering={"name": "adversarial", "delay": 4})

    def held_back(seed: int) -> Settings:
        return drawn(adversary)(seed) | {"links": []}

    yield Method("`adversarial`", "servers.py; Alistarh et al. 2018", held_back, of(Reference))
    view = server(view={"delay": 3, "block": 2})
    yield Method("`view`", "server_variants.py; Alistarh et al. 2018", drawn(view), of(ViewReference))


def _judging() -> Iterator[Method]:
    kardam = server(correction={"name": "kardam", "attackers": 1, "window": 5})
    yield Method(
        "correction kardam",
        "kardam.py; arXiv 1802.07928",
        drawn(kardam, {"optimizer": {}}, least=4, most=7),
        of(KardamReference),
    )
    for name, is_mixed in itertools.product(SCREENED, (False, True)):
        least = {"bulyan": 7, "krum": 5}.get(name, 3)
        most = 7 if is_mixed and name == "bulyan" else 8  # as between peers
        screen = {"name": name, "nearest_neighbor_mixing": is_mixed}
        yield Method(
            f"`server`, screen {name}" + (MIXED if is_mixed else ""),
            "screens.py, server_variants.py" + (f"; {MIXING}" if is_mixed else ""),
            drawn(server(gathering="sync", screen=screen, attackers=1), least=least, most=most),
            of(ScreenedServer),
        )
    for name, attack in LIES.items():
        for gathering in ("sync", "asgd"):
            changes = {"faults": {"agents": [1], "attack": attack}}
            yield Method(
                f"attack `{name}` on {gathering}",
                "attacks.py, server_variants.py",
                drawn(server(gathering=gathering), changes | {"optimizer": {}}, least=4),
                of(LiedToServer),
                runs_in_double=name not in NOISE,
            )
    for gathering in ("sync", "asgd"):
        yield Method(
            f"attack `label-flip` on {gathering}",
            "softmax.py; gradients at labels C - 1 - y",
            partial(flipping, gathering),
            of(FlippingWorkers),
        )


def _variants() -> Iterator[Method]:
    nesterov: Any = {"name": "momentum-compensation", "momentum": 0.6, "delay": 2}
    for name, settings in (("asgd", {}), ("sync", {"gathering": "sync"})):
        own = nesterov if name == "asgd" else {"name": "momentum-compensation"}
        yield Method(
            f"`momentum-compensation`, {name}",
            "server_variants.py; arXiv 1802.09747",
            drawn(server(nesterov=own, **settings), {"optimizer": {}}),
            of(NesterovReference),
        )
    for gathering in ("asgd", "sync"):
        yield Method(
            f"`yellowfin` at a server, {gathering}",
            "yellowfin.py; arXiv 1706.03471, algorithms 1 to 5",
            drawn(server(gathering=gathering), {"optimizer": YELLOWFIN, "step_size": 0.5}),
            of(YellowFinServer, 0.5),
        )
    svrg = {"name": "svrg", "gathering": {"name": "epochs", "updates": 10}}
    yield Method(
        "`svrg`",
        "svrg.py; arXiv 1604.03584",
        drawn(svrg, {"optimizer": {}, "step_size": 0.05}),
        lambda own: servers_of(SVRGReference(own, 10), own),
    )
    for beta, first in ((0.2, "batch"), (0.2, "shard"), (1, "batch")):
        glomo = {"name": "fedglomo", "beta": beta, "first": first}
        yield Method(
            f"`fedglomo`, beta {beta:g}, {first} first",
            "fedglomo.py; arXiv 2012.04061",
            drawn(glomo, {"optimizer": {"weight_decay": 0.1}, "step_size": 0.05, "local_steps": 3}),
            lambda own: servers_of(FedGLOMOReference(own, lambda _: 0.05), own),
        )
    for gathering in ("asgd", {"name": "k-async", "k": 2}):
        name = gathering if isinstance(gathering, str) else "k-async"
        elastic = {"name": "elastic-averaging", "alpha": 0.3, "period": 3, "gathering": gathering}
        yield Method(
            f"`elastic-averaging`, {name}",
            "servers.py; Zhang, Choromanska, LeCun 2015",
            drawn(elastic),
            of(lambda own: ElasticReference(own, 0.3, 3)),
        )


OUTER: dict[str, tuple[Any, str]] = {
    "`diloco`": ({"outer": {"name": "sgd", "step_size": 0.4}}, "arXiv 2311.08105, algorithm 1"),
    "`diloco`, heavy ball": (
        {"outer": {"name": "sgd", "nesterov": False, "momentum": 0.5}, "average": "samples"},
        "arXiv 2311.08105",
    ),
    "`diloco`, `delayed-nesterov`": (
        {"gathering": "asgd", "outer": {"name": "delayed-nesterov", "step_size": 0.5, "every": 2, "spread": 0.4}},
        "arXiv 2401.09135, algorithm 3",
    ),
    "`diloco`, `polynomial` (FedBuff)": (
        {
            "gathering": {"name": "k-batch-async", "k": 3},
            "weighting": "polynomial",
            "outer": {"name": "sgd", "momentum": 0},
        },
        "arXiv 2106.06639",
    ),
    "`diloco`, `hinge`": (
        {"gathering": "asgd", "weighting": {"name": "hinge", "a": 2, "b": 1}, "outer": {"name": "sgd", "momentum": 0}},
        "arXiv 1903.03934",
    ),
    "`diloco`, `exponential`": (
        {"gathering": "asgd", "weighting": "exponential", "outer": {"name": "sgd", "momentum": 0}},
        "arXiv 1802.07928",
    ),
    "`diloco`, `heloco`": ({"gathering": {"name": "k-async", "k": 2}, "outer": "heloco"}, "arXiv 2606.00271, table 3"),
    "`diloco`, `radial-directional`": ({"merging": "radial-directional"}, "arXiv 2604.21428"),
}


def _rounds() -> Iterator[Method]:
    local = {"local_steps": 3, "optimizer": MOMENTUM}
    for name, (settings, paper) in OUTER.items():
        yield Method(
            name,
            f"rounds.py; {paper}" if "heloco" not in name and "radial" not in name else f"heloco.py; {paper}",
            drawn({"name": "diloco", **settings}, local),
            rounds_of(HeLoCoReference),
        )
    fed = {"name": "fedasync", "weighting": "polynomial", "proximal": 0.5, "mix": 0.7}
    yield Method(
        "`fedasync`", "rounds.py; arXiv 1903.03934, algorithm 1", drawn(fed, local), rounds_of(FedAsyncReference)
    )
    parts: Settings = {**local, "wire": {"fragments": PARTS}}
    streamed = {"name": "diloco", "gathering": "asgd", "outer": {"name": "sgd", "step_size": 0.3}, "alpha": 0.5}
    yield Method(
        "`diloco` in parts",
        "streaming.py; arXiv 2501.18512, algorithm 2",
        drawn(streamed, parts),
        rounds_of(StreamingReference),
    )
    yield Method("`fedasync` in parts", "streaming.py", drawn(fed, parts), rounds_of(FedAsyncInParts))
    elastic = {"name": "elastic-averaging", "period": 3, "alpha": 0.2, "gathering": "asgd"}
    without = {"optimizer": MOMENTUM, "wire": {"fragments": PARTS}}
    yield Method("`elastic-averaging` in parts", "streaming.py", drawn(elastic, without), rounds_of(ElasticInParts))


SERVERS = (*_plain(), *_judging(), *_variants(), *_rounds())
