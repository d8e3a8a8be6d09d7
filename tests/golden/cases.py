"""Small runs of every family, rule, barrier and gathering policy, through the public interface alone."""

from typing import Any

BASE: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 14,
    "evaluate_every": 7,
    "links": [{"between": "clusters", "delay": 3}],
    "optimizer": {"momentum": 0.9, "weight_decay": 1e-4},
    "step_size": 0.02,
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "task": {"model": {"hidden": [8]}},
    "algorithm": {"name": "pc-asgd", "theta": 0.3},
}


def _server(gathering: Any, **more: Any) -> dict[str, Any]:
    return {"algorithm": {"name": "server", "gathering": gathering, **more}}


PEERS = (
    "d-psgd",
    "d-asgd",
    "c-asgd",
    "p-asgd",
    "pc-asgd-pv",
    "dc-s3gd",
    "d-asgd-importance",
    "gossip-pull",
    "gossip-push",
)
BOUNDED_GAP = {"name": "gap-bounded", "bound": 0.5}

CASES: dict[str, dict[str, Any]] = {
    **{rule: {"algorithm": rule} for rule in PEERS},
    "pc-asgd": {"algorithm": {"name": "pc-asgd", "theta": 0.3}},
    "pc-asgd, chosen": {"algorithm": "pc-asgd"},
    "pc-asgd, own drift": {"algorithm": {"name": "pc-asgd", "prediction": "own-drift", "reach": "stable"}},
    "sgp": {"algorithm": "sgp", "topology": "directed-exponential"},
    "sgp-overlap": {"algorithm": "sgp-overlap", "topology": "directed-ring"},
    "ad-psgd": {"algorithm": "ad-psgd", "links": [{"delay": 0.4, "unit": "seconds"}]},
    "adaptive compensation": {"algorithm": {"name": "pc-asgd", "theta": 0.3, "compensation": "adaptive"}},
    "probing": {"algorithm": {"name": "pc-asgd-pv", "condition": "probe"}},
    "sampled barrier": {"barrier": {"name": "sampled", "beta": 1}},
    "bounded barrier": {"barrier": {"name": "bounded", "staleness": 1}},
    "ring, straggler": {"topology": "ring", "compute": {"stragglers": {1: 3.0}}},
    "asgd": _server("asgd"),
    "asgd, dc-asgd-a": _server("asgd", correction="dc-asgd-a"),
    "asgd, delay-adaptive": _server("asgd", correction="delay-adaptive"),
    "sync": _server("sync"),
    "k-sync": _server({"name": "k-sync", "k": 2}),
    "k-batch-sync": _server({"name": "k-batch-sync", "k": 3}),
    "k-async": _server({"name": "k-async", "k": 2}),
    "k-batch-async, gap-bounded": _server({"name": "k-batch-async", "k": 2}, correction=BOUNDED_GAP),
    "n-softsync, staleness-aware": _server({"name": "n-softsync", "n": 2}, correction="staleness-aware"),
    "adasync": _server({"name": "adasync", "every_seconds": 2.0}),
    "ringmaster, stopping, dampened": _server(
        {"name": "ringmaster", "delay_threshold": 3, "stops": True}, correction="dampened"
    ),
    "rennala": _server({"name": "rennala", "k": 6}),
    "malenia": _server("malenia"),
    "ringleader, dampened": _server("ringleader", correction="dampened"),
    "ia2sgd, two servers": _server("ia2sgd", shards=2),
    "two servers": _server("asgd", shards=2, correction="dc-asgd-c"),
    "k-sync, two servers": _server({"name": "k-sync", "k": 2}, shards=2),
    "elastic averaging": {"algorithm": {"name": "elastic-averaging", "period": 3, "alpha": 0.2}},
    "diloco": {"algorithm": "diloco", "local_steps": 3},
    "diloco, quorum": {
        "algorithm": {
            "name": "diloco",
            "gathering": {"name": "quorum", "k": 2, "grace_seconds": 0.5},
            "outer": "heloco",
            "merging": "radial-directional",
        },
        "local_steps": 2,
    },
    "fedasync": {"algorithm": {"name": "fedasync", "proximal": 0.01}, "local_steps": 2},
    "fedbuff": {
        "algorithm": {"name": "diloco", "gathering": {"name": "k-batch-async", "k": 6}, "weighting": "polynomial"},
        "local_steps": 2,
    },
    "ad-psgd, acid": {
        "algorithm": {"name": "ad-psgd", "acceleration": "acid"},
        "topology": "ring",
        "links": [{"delay": 0.4, "unit": "seconds"}],
    },
    "bridge, attacked": {
        "algorithm": {"name": "bridge", "late": "predict"},
        "faults": {"agents": [1], "attack": "alie"},
    },
    "yellowfin": {"algorithm": "d-asgd", "optimizer": "yellowfin", "step_size": 1.0},
    "asgd, kardam": _server("asgd", correction="kardam"),
    "sync, median, attacked": {
        **_server("sync", screen="median", attackers=1),
        "faults": {"agents": [1], "attack": "alie"},
    },
    "asgd, momentum compensation": _server("asgd", nesterov="momentum-compensation") | {"optimizer": {}},
    "svrg": {"algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 12}}, "optimizer": {}},
    "fedglomo": {
        "algorithm": {"name": "fedglomo", "beta": 0.2},
        "local_steps": 2,
        "wire": {"directions": "int8"},
        "optimizer": {},
        "compute": {},
    },
    "slowmo": {"algorithm": "slowmo", "local_steps": 2},
    "noloco": {"algorithm": "noloco", "local_steps": 2},
    "gasloc": {"algorithm": "gasloc", "local_steps": 2},
    "choco-sgd, top-k": {"algorithm": "choco-sgd", "wire": "top-k", "links": []},
    "adversarial, mixed view": _server({"name": "adversarial", "delay": 4}, view={"delay": 2}) | {"links": []},
    "hierarchical": {"algorithm": "d-asgd", "topology": "hierarchical"},
    "one-peer exponential": {"algorithm": "d-asgd", "topology": "one-peer-exponential"},
    "diloco, delayed nesterov": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov", "weighting": "polynomial"},
        "local_steps": [3, 3, 2, 1],
    },
}
"""What each case changes of ``BASE``."""

BATCHED = ("never", "always")
ALONE = ("ad-psgd", "ad-psgd, acid", "yellowfin")
"""Cases that do not run stacked."""
