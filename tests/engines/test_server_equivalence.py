"""One schedule around servers, any engine, the same bits; and special cases that are plain SGD to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.result import Result
from ray_pcasgd.schedule.parquet import first_difference, read_rows, write_rows
from tests.speed import slow_unless

from .meeting import meeting
from .restless import restless
from .test_equivalence import PLANNED, UNBATCHED, assert_same_bits
from .test_equivalence import train as train_peers

LIVE = {"name": "ray", "mode": "live"}
SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 8,
    "evaluate_every": 4,
    "links": [],
    "task": {"model": {"hidden": [12]}},
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
}
SECONDS = {"links": [{"unit": "seconds", "delay": {"name": "uniform", "low": 0, "high": 1}}]}


def train(folder: Path, engine: Any, **settings: Any) -> Result:
    return train_peers(folder, engine, **(SMALL | settings))


def server(gathering: Any = "asgd", correction: Any = "none", **more: Any) -> dict[str, Any]:
    return {"algorithm": {"name": "server", "gathering": gathering, "correction": correction, **more}}


ADASYNC = {"name": "adasync", "base": "k-async", "every_seconds": 2.0}
IMAGES = {
    "data": {"name": "custom", "train": "tests.engines.images:TRAIN", "test": "tests.engines.images:TEST"},
    "model": {"name": "small-cnn", "channels": [4], "batch_norm": True},
}
# Every gathering and every correction once.
CASES: dict[str, Any] = {
    "k-sync": server({"name": "k-sync", "k": 2}) | SECONDS,
    "k-batch-sync, dc-asgd-c": server({"name": "k-batch-sync", "k": 2}, {"name": "dc-asgd-c", "lambda_0": 2.0})
    | {"links": [{"delay": 2}]},
    "k-async, staleness-aware": server({"name": "k-async", "k": 2}, "staleness-aware") | SECONDS,
    "k-batch-async, dc-asgd-a, three shards": server({"name": "k-batch-async", "k": 2}, "dc-asgd-a", shards=3)
    | SECONDS,
    "asgd, dc-asgd-c, batch norm": server("asgd", {"name": "dc-asgd-c", "lambda_0": 2.0}) | {"task": IMAGES},
    "asgd, gap-bounded": server("asgd", {"name": "gap-bounded", "bound": 1e-3}),
    "adversarial, inconsistent view": server({"name": "adversarial", "delay": 4}, view={"delay": 2, "block": 5}),
    "asgd, momentum compensation": server("asgd", nesterov="momentum-compensation") | {"optimizer": {}} | SECONDS,
    "k-async, yellowfin": server({"name": "k-async", "k": 2}) | {"optimizer": "yellowfin", "step_size": None} | SECONDS,
    "n-softsync, delay-adaptive": server({"name": "n-softsync", "n": 3}, {"name": "delay-adaptive", "above": "drop"}),
    "adasync": server(ADASYNC) | {"num_steps": 40, "evaluate_every": 10, "step_size": 0.3, "optimizer": {}, "task": {}},
    "ringmaster, stopping, dampened": server(
        {"name": "ringmaster", "delay_threshold": 2, "stops": True}, {"name": "dampened", "weighting": "exponential"}
    )
    | SECONDS,
    "rennala": server({"name": "rennala", "k": 4}) | SECONDS,
    "asgd, kardam, attacked": server("asgd", {"name": "kardam", "window": 3})
    | {"faults": {"agents": [1], "attack": {"name": "noise", "std": 9.0}}, "task": IMAGES, "num_agents": 4}
    | SECONDS,
    "k-batch-async, trimmed mean, two shards": server(
        {"name": "k-batch-async", "k": 4}, screen="trimmed-mean", shards=2
    )
    | {"faults": {"agents": [1], "attack": "label-flip"}}
    | SECONDS,
    "sync, centered clipping, churn": server("sync", screen="centered-clipping", attackers=1)
    | {"faults": {"agents": [1], "attack": "sign-flip"}}
    | SECONDS
    | {"membership": [{"agent": 2, "leaves": "3s", "returns": "6s"}]},
    "sync, mixed geometric median, churn": server(
        "sync", screen={"name": "geometric-median", "nearest_neighbor_mixing": True}, attackers=1
    )
    | {"faults": {"agents": [1], "attack": "uniform"}}
    | SECONDS
    | {"membership": [{"agent": 2, "leaves": "3s", "returns": "6s"}]},
    "k-batch-async, alie, churn, two shards": server({"name": "k-batch-async", "k": 2}, shards=2)
    | {"faults": {"agents": [1], "attack": "alie"}}
    | SECONDS
    | {"membership": [{"agent": 2, "leaves": "3s", "returns": "6s"}]},
    "asgd, attacked": server("asgd")
    | {"faults": {"agents": [1], "attack": {"name": "stale-replay", "period": 3}}, "wire": {"directions": "int8"}}
    | SECONDS,
    "elastic averaging, attacked": {"algorithm": {"name": "elastic-averaging", "period": 3, "alpha": 0.3}}
    | {"faults": {"agents": [1], "attack": {"name": "noise", "std": 0.01}}},
    "malenia": server({"name": "malenia", "target": 1.5}) | SECONDS,
    "ringleader, batch norm": server("ringleader") | {"task": IMAGES, "num_steps": 16},
    "ia2sgd, dc-asgd-c, two shards": server("ia2sgd", {"name": "dc-asgd-c", "lambda_0": 2.0}, shards=2) | SECONDS,
    "elastic averaging, sync": {
        "algorithm": {"name": "elastic-averaging", "gathering": "sync", "period": 2, "alpha": 0.3}
    },
    "elastic averaging, asgd, two shards": {
        "algorithm": {"name": "elastic-averaging", "period": 3, "alpha": 0.3, "shards": 2}
    },
}
DILOCO: dict[str, Any] = {
    "diloco, rounds of their own": {
        "algorithm": {"name": "diloco", "average": "samples"},
        "local_steps": [3, 1, 2],
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "optimizer": "adamw",
        "step_size": 0.005,
    }
    | SECONDS,
    "diloco, delayed nesterov, two shards, batch norm": {
        "algorithm": {
            "name": "diloco",
            "gathering": "asgd",
            "outer": {"name": "delayed-nesterov", "spread": 0.1},
            "weighting": "polynomial",
            "shards": 2,
        },
        "local_steps": 2,
        "task": IMAGES,
    },
}
CASES |= DILOCO
# More messages an update than there are workers; in the second of them, one after another.
CASES["fedbuff"] = {
    "algorithm": {"name": "diloco", "gathering": {"name": "k-batch-async", "k": 4}, "weighting": "polynomial"},
    "local_steps": 2,
} | SECONDS
CASES["diloco, quorum"] = {
    "algorithm": {"name": "diloco", "gathering": {"name": "quorum", "k": 2, "grace_seconds": 0.3}},
    "local_steps": 2,
} | SECONDS
CASES["heloco, k-async"] = {
    "algorithm": {
        "name": "diloco",
        "gathering": {"name": "k-async", "k": 2},
        "outer": "heloco",
        "merging": "radial-directional",
    },
    "local_steps": 2,
    "step_size": 0.05,
} | SECONDS
CASES["fedasync, proximal"] = {"algorithm": {"name": "fedasync", "proximal": 0.1}, "local_steps": [2, 1, 3]}
CASES["svrg, batch norm"] = {
    "algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 7}},
    "task": IMAGES,
} | SECONDS
CASES["fedglomo, narrow wire, batch norm"] = {
    "algorithm": {"name": "fedglomo", "shards": 2},
    "optimizer": {"weight_decay": 1e-3},
    "local_steps": [2, 1, 3],
    "task": IMAGES,
    "wire": {"weights": "bf16", "directions": {"name": "top-k", "share": 0.3}},
} | SECONDS
CHURN: dict[str, Any] = {
    "membership": [
        {"agent": 1, "leaves": "2.2s", "returns": "6.1s"},
        {"agent": 2, "returns": "1.5s"},
        {"agent": 0, "leaves": 9},
    ],
    "num_steps": 16,
}
CHURNS: dict[str, Any] = {
    "quorum, dc-asgd-c, churn": server(
        {"name": "quorum", "k": 2, "grace_seconds": 0.5}, {"name": "dc-asgd-c", "lambda_0": 2.0}
    )
    | SECONDS
    | CHURN,
    "k-batch-sync, own tensors, churn": server({"name": "k-batch-sync", "k": 2}) | SECONDS | restless(False) | CHURN,
    "diloco, two shards, churn": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov", "shards": 2},
        "local_steps": 2,
        "wire": {"weights": "bf16", "directions": {"name": "random-k", "share": 0.2}},
        "evaluate_every": 2,
    }
    | SECONDS
    | CHURN,
}
WIRED: dict[str, Any] = {
    "diloco, narrow wire, two shards": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov", "shards": 2},
        "local_steps": 2,
        "wire": {"weights": "bf16", "directions": {"name": "random-k", "share": 0.2}},
    },
    "diloco, in parts, narrow wire, two shards": {
        "algorithm": {
            "name": "diloco",
            "gathering": "asgd",
            "outer": "delayed-nesterov",
            "shards": 2,
            "alpha": 0.3,
        },
        "local_steps": [2, 1, 3],
        "wire": {"weights": "bf16", "directions": {"name": "random-k", "share": 0.5}, "fragments": 3},
        "task": IMAGES,
    },
    "dc-asgd-a, narrow wire, batch norm": server("asgd", "dc-asgd-a") | {"task": IMAGES, "wire": "int8"},
    "elastic averaging, narrow wire, three shards": {
        "algorithm": {"name": "elastic-averaging", "period": 2, "alpha": 0.3, "shards": 3},
        "wire": "bf16",
    },
}
CASES |= WIRED
OWN: dict[str, Any] = {
    "own tensors, two shards": server("asgd", {"name": "dc-asgd-c", "lambda_0": 2.0}, shards=2) | restless(False),
    "own tensors, cancelled": server({"name": "k-sync", "k": 2}) | SECONDS | restless(False),
    "own tensors, elastic averaging": {"algorithm": {"name": "elastic-averaging", "period": 3, "alpha": 0.3}}
    | restless(),
}
# What a correction computes is the server's own code on either engine; a run costs seconds.
ON_RAY = [
    "sync, mixed geometric median, churn",
    "k-batch-async, alie, churn, two shards",
    "asgd, momentum compensation",
    "adversarial, inconsistent view",
    "k-async, yellowfin",
    "k-sync",
    "k-batch-sync, dc-asgd-c",
    "k-batch-async, dc-asgd-a, three shards",
    "asgd, dc-asgd-c, batch norm",
    "adasync",
    "ringmaster, stopping, dampened",
    "rennala",
    "asgd, kardam, attacked",
    "k-batch-async, trimmed mean, two shards",
    "sync, centered clipping, churn",
    "malenia",
    "ringleader, batch norm",
    "ia2sgd, dc-asgd-c, two shards",
    "elastic averaging, asgd, two shards",
    *DILOCO,
    "fedbuff",
    "heloco, k-async",
    "diloco, quorum",
    "fedasync, proximal",
    "svrg, batch norm",
    "fedglomo, narrow wire, batch norm",
    *WIRED,
    *OWN,
    *CHURNS,
]
CANCELLING = ("k-sync", "k-batch-sync, dc-asgd-c", "ringmaster, stopping, dampened")
FRESH = (
    "k-sync",
    "rennala",
    "malenia",
    "diloco, rounds of their own",
    "sync, centered clipping, churn",
    "sync, mixed geometric median, churn",
    "fedglomo, narrow wire, batch norm",
)


def assert_same_run(result: Result, other: Result) -> None:
    """Assert the same rows, weights and measurements, but for when workers' reports have come in."""
    rows, others = (read_rows(Path(r.path) / "schedule.parquet")[0] for r in (result, other))
    assert first_difference(rows, others) is None
    assert [row[2:5] for row in sorted(rows)] == [row[2:5] for row in sorted(others)]
    assert_same_weights(result, other)
    mine, theirs = (
        frame[frame["agent"].isna() | (frame["agent"] >= workers_of(result))]
        .drop(columns=["wall_seconds", "waited_seconds", "bytes_sent", "cancelled_steps"])
        .sort_values(["step", "agent"])
        .reset_index(drop=True)
        for frame in (result.metrics_dataframe, other.metrics_dataframe)
    )
    assert len(mine) > 2
    assert mine.equals(theirs)


def workers_of(result: Result) -> int:
    return int(read_rows(Path(result.path) / "schedule.parquet")[1]["num_agents"])


def assert_same_weights(left: Result, right: Result) -> None:
    assert left.checkpoint
    assert right.checkpoint
    weights, others = left.checkpoint.state_dict(), right.checkpoint.state_dict()
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


QUICK = ["own tensors, cancelled", "adasync", "ringleader, batch norm"]


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in ON_RAY])
@pytest.mark.usefixtures("ray_cluster")
def test_planned_ray_equals_planned_local_to_the_bit(name: str, tmp_path: Path) -> None:
    settings = (CASES | OWN | CHURNS)[name]
    local = train(tmp_path / "local", UNBATCHED, **settings)
    assert_same_run(train(tmp_path / "ray", PLANNED, **settings), local)


@pytest.mark.parametrize("name", CHURNS)
def test_a_run_whose_workers_leave_and_come_back_replays_to_the_bit_batched_or_not(name: str, tmp_path: Path) -> None:
    settings = CHURNS[name]
    local = train(tmp_path / "local", UNBATCHED, **settings)
    rows, metadata = read_rows(Path(local.path) / "schedule.parquet")
    back = [row for row in rows if row.kind == "rejoined"]
    assert {row.agent for row in back} == {1, 2}
    assert metadata["left"] == "0"
    assert len([row for row in rows if row.agent == 0]) < len([row for row in rows if row.agent == 1])
    replay = settings | {"schedule": str(Path(local.path) / "schedule.parquet")}
    assert_same_run(train(tmp_path / "replay", UNBATCHED, **replay), local)
    batched = train(tmp_path / "batched", {"name": "local", "batched": "always"}, **settings)
    assert batched.schedule_hash == local.schedule_hash


@pytest.mark.parametrize("name", CASES)
def test_the_cases_are_what_they_are_named_for(name: str, tmp_path: Path) -> None:
    """Work is cancelled, gradients are late, and AdaSync's K rises."""
    local = train(tmp_path, UNBATCHED, **CASES[name])
    rows, _ = read_rows(Path(local.path) / "schedule.parquet")
    assert any(row.kind == "cancelled" for row in rows) == (name in CANCELLING)
    frame = local.metrics_dataframe
    last = frame[frame["agent"].isna()].iloc[-1]
    assert (last["cancelled_steps"] > 0) == (name in CANCELLING)
    late = max(read.staleness for row in rows if row.agent >= workers_of(local) for read in row.reads)
    assert late == {"elastic averaging, sync": 1, "ringmaster, stopping, dampened": 1}.get(name, late)
    assert (late > 0) == (name not in FRESH)
    if name == "adasync":
        measured = frame[frame["agent"] == 3]["gradients_per_update"].tolist()
        assert measured == sorted(measured)
        assert measured[0] < 1.5
        assert measured[-1] == 2
    if "kardam" in name:  # one filter or the other rejects some of the attacker's, and some of the others'
        shares = local.screening.groupby("attacker")["screened"].mean()
        assert 0 < shares[False] < shares[True]


SELDOM = ("ringmaster, stopping, dampened", "rennala", "malenia")


@pytest.mark.parametrize("name", [slow_unless(name not in SELDOM, name) for name in CASES])
def test_batched_equals_unbatched_within_rounding(name: str, tmp_path: Path) -> None:
    batched = train(tmp_path / "batched", {"name": "local", "batched": "always"}, **CASES[name])
    alone = train(tmp_path / "alone", UNBATCHED, **CASES[name])
    assert batched.schedule_hash == alone.schedule_hash
    assert batched.checkpoint
    assert alone.checkpoint
    expected = alone.checkpoint.state_dict()
    # Where a number is rounded to one of two, another one in its last bit may go to the other.
    rtol, atol = (2e-2, 2e-2) if name in WIRED else (1e-4, 1e-5)
    for key, value in batched.checkpoint.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=rtol, atol=atol)


# Cases that are the same method.


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_k_sync_with_all_workers_is_synchronous_sgd_to_the_bit(tmp_path: Path) -> None:
    # Batches whole: a gradient in pieces is the same only within rounding.
    everyone = server({"name": "k-sync", "k": 3}, micro_batches=1)
    synchronous = train(tmp_path / "sync", UNBATCHED, **server("sync"))
    assert_same_bits(train(tmp_path / "local", UNBATCHED, **everyone), synchronous)
    assert_same_run(train(tmp_path / "ray", PLANNED, **everyone), synchronous)
    assert_same_run(train(tmp_path / "sync on ray", PLANNED, **server("sync")), synchronous)


def test_k_async_with_all_workers_is_synchronous_sgd_to_the_bit(tmp_path: Path) -> None:
    everyone = train(tmp_path / "k", UNBATCHED, **server({"name": "k-async", "k": 3}))
    assert_same_bits(everyone, train(tmp_path / "sync", UNBATCHED, **server("sync")))


def test_ringmaster_without_a_bound_is_asgd_and_ignores_what_is_late_with_one(tmp_path: Path) -> None:
    plain = train(tmp_path / "asgd", UNBATCHED, **server() | SECONDS)
    wide, narrow = (server({"name": "ringmaster", "delay_threshold": bound}) | SECONDS for bound in (1000, 2))
    assert_same_bits(train(tmp_path / "wide", UNBATCHED, **wide), plain)
    rows, _ = read_rows(Path(train(tmp_path / "narrow", UNBATCHED, **narrow).path) / "schedule.parquet")
    taken = {read[:2] for row in rows if row.agent >= 3 for read in row.reads}
    assert {(row.agent, row.step + 1) for row in rows if row.agent < 3} - taken


@pytest.mark.parametrize("correction", ["dc-asgd-c", "dc-asgd-a"])
def test_delay_compensation_without_strength_is_asgd_to_the_bit(correction: str, tmp_path: Path) -> None:
    weak, strong = (server("asgd", {"name": correction, "lambda_0": value}) for value in (0.0, 5.0))
    plain = train(tmp_path / "asgd", UNBATCHED, **server())
    assert_same_bits(train(tmp_path / "weak", UNBATCHED, **weak), plain)
    compensated = train(tmp_path / "strong", UNBATCHED, **strong)
    assert compensated.schedule_hash == plain.schedule_hash
    assert compensated.metrics["test_loss"] != plain.metrics["test_loss"]


ALONE: dict[str, Any] = {
    **{name: server(name) for name in ("sync", "asgd")},
    **{name: server({"name": name, "k": 1}) for name in ("k-async", "k-batch-async")},
    **{name: server({"name": name, "k": 1}, micro_batches=1) for name in ("k-sync", "k-batch-sync")},
    "n-softsync": server({"name": "n-softsync", "n": 1}),
    "three shards": server("asgd", shards=3),
    **{name: server("asgd", name) for name in ("staleness-aware", "dc-asgd-c", "dc-asgd-a", "delay-adaptive")},
    "gap-bounded": server("asgd", {"name": "gap-bounded", "bound": 1e-9}),
    "shrink": server("asgd", {"name": "delay-adaptive", "above": "shrink", "smoothness": 1e9}),
    "drop": server("asgd", {"name": "delay-adaptive", "above": "drop"}),
    "dampened": server("asgd", "dampened"),
    "ringmaster": server({"name": "ringmaster", "delay_threshold": 1}),
    "rennala": server({"name": "rennala", "k": 1}),
    **{name: server(name) for name in ("malenia", "ringleader", "ia2sgd")},
}


def test_one_worker_is_plain_sgd_to_the_bit_whatever_the_gathering_and_correction(tmp_path: Path) -> None:
    """Section 4, point 1: no delay."""
    alone = {"num_agents": 1, "clusters": 1, "num_steps": 15}
    plain = train(tmp_path / "plain", UNBATCHED, algorithm="d-asgd", **alone)
    assert plain.metrics["step"] == 15
    for name, settings in ALONE.items():
        found = train(tmp_path / name, UNBATCHED, **settings, **alone)
        assert found.metrics["test_loss"] == plain.metrics["test_loss"], name
        assert_same_weights(found, plain)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    settings = CASES["k-async, staleness-aware"]
    first, again, other = (
        train(tmp_path / f"{n}", UNBATCHED, **settings, seed=seed) for n, seed in enumerate((5, 5, 6))
    )
    assert_same_bits(first, again)
    assert other.schedule_hash != first.schedule_hash
    assert other.metrics["test_loss"] != first.metrics["test_loss"]


# Live runs, recorded and replayed.

RECORDED: dict[str, Any] = {
    "asgd, dc-asgd-a": server("asgd", "dc-asgd-a"),
    "k-sync": server({"name": "k-sync", "k": 2}),
    "ringmaster": server({"name": "ringmaster", "delay_threshold": 2}),
    "rennala": server({"name": "rennala", "k": 4}),
    "malenia": server("malenia"),
    "ringleader": server("ringleader"),
    "ia2sgd": server("ia2sgd"),
    "k-batch-async, three shards": server({"name": "k-batch-async", "k": 2}, "dc-asgd-c", shards=3),
    "elastic averaging": {"algorithm": {"name": "elastic-averaging", "period": 2, "alpha": 0.3}},
    "diloco, narrow wire, two shards, asgd": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "shards": 2},
        "local_steps": 2,
        "step_size": 0.01,
        "wire": {"weights": "bf16", "directions": "int8"},
    },
    "diloco, in parts, two shards, asgd": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "shards": 2, "alpha": 0.3},
        "local_steps": 2,
        "step_size": 0.01,
        "wire": {"weights": "bf16", "directions": "int8", "fragments": 3},
    },
    "diloco, heloco, quorum": {
        "algorithm": {
            "name": "diloco",
            "gathering": {"name": "quorum", "k": 2, "grace_seconds": 0.02},
            "outer": "heloco",
        },
        "local_steps": 2,
        "step_size": 0.01,
    },
    "diloco, delayed nesterov, asgd": {
        "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov", "weighting": "hinge"},
        "local_steps": [2, 1, 2],
        "optimizer": {"momentum": 0.9},
        "step_size": 0.01,
    },
    "asgd, kardam, attacked": server("asgd", {"name": "kardam", "window": 3})
    | {"faults": {"agents": [1], "attack": {"name": "noise", "std": 9.0}}, "num_agents": 4},
    "k-batch-async, trimmed mean, dampened, attacked": server(
        {"name": "k-batch-async", "k": 4},
        {"name": "dampened", "weighting": {"name": "hinge", "b": 1}},
        screen="trimmed-mean",
    )
    | {"faults": {"agents": [1], "attack": "alie"}},
    "ringmaster, stopping, dampened": server(
        {"name": "ringmaster", "delay_threshold": 2, "stops": True}, {"name": "dampened", "weighting": "exponential"}
    ),
    "asgd, inconsistent view": server("asgd", view={"delay": 2, "block": 5}),
    "sync, mixed median": server("sync", screen={"name": "median", "nearest_neighbor_mixing": True})
    | {"faults": {"agents": [1], "attack": "uniform"}},
    "asgd, momentum compensation": server("asgd", nesterov="momentum-compensation") | {"optimizer": {}},
    "asgd, yellowfin": server("asgd") | {"optimizer": "yellowfin", "step_size": None},
    "svrg, as asgd": {"algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 7}}, "step_size": 0.01},
    "fedglomo": {
        "algorithm": {"name": "fedglomo", "first": "shard"},
        "optimizer": {},
        "local_steps": 2,
        "step_size": 0.01,
        "wire": {"directions": "int8"},
    },
    "asgd, adamw, clipped, in pieces": server("asgd")
    | {"optimizer": "adamw", "step_size": 0.002, "gradient_clipping": {"norm": 0.5}, "accumulate": 3},
}


@pytest.mark.parametrize("name", [slow_unless(name == "asgd, dc-asgd-a", name) for name in RECORDED])
@pytest.mark.usefixtures("ray_cluster")
def test_a_live_run_s_recorded_schedule_replays_to_its_weights(name: str, tmp_path: Path) -> None:
    # All workers begin at the server's first version, so what the second of them sends comes late.
    number = RECORDED[name].get("num_agents", SMALL["num_agents"])
    model = meeting(tmp_path / "met", number, changes_weights="elastic" in name or "diloco" in name)
    settings = RECORDED[name] | {"num_steps": 20, "compute": {"stragglers": {2: 0.005}}} | model
    live = train(tmp_path / "live", LIVE, **settings)
    schedule = Path(live.path) / "schedule.parquet"
    rows, metadata = read_rows(schedule)
    assert metadata["mode"] == "live"
    if "asgd" in name or "async" in name:
        assert max(read.staleness for row in rows if row.agent >= number for read in row.reads) > 0
    replayed = train(tmp_path / "replay", UNBATCHED, **settings, schedule=str(schedule))
    assert replayed.schedule_hash == live.schedule_hash
    assert_same_weights(live, replayed)
    assert live.screening.equals(replayed.screening)
    assert live.screening.empty == ("attacked" not in name)
    if name not in CANCELLING:  # a version is sent to those too whose work is cancelled
        assert bytes_of_servers(live) == bytes_of_servers(replayed)
    if name == "k-sync":  # what was cancelled live is passed over on planned actors too
        on_ray = train(tmp_path / "planned", PLANNED, **settings, schedule=str(schedule))
        assert_same_weights(on_ray, replayed)


def bytes_of_servers(result: Result) -> float:
    frame = result.metrics_dataframe
    return float(frame[frame["agent"] >= workers_of(result)]["bytes_sent"].sum())


def test_a_schedule_replays_under_another_correction(tmp_path: Path) -> None:
    """The fair comparison: the very same gradients late by as much, and shorter if wanted."""
    plain = train(tmp_path / "plain", UNBATCHED, **server(), num_steps=12)
    schedule = str(Path(plain.path) / "schedule.parquet")
    shorter = train(tmp_path / "shorter", UNBATCHED, **server(), num_steps=9)
    cut = train(tmp_path / "cut", UNBATCHED, **server(), num_steps=9, schedule=schedule)
    assert_same_weights(cut, shorter)
    other = train(tmp_path / "other", UNBATCHED, **server("asgd", "dc-asgd-a"), num_steps=12, schedule=schedule)
    assert other.schedule_hash == plain.schedule_hash
    assert other.metrics["test_loss"] != plain.metrics["test_loss"]


@pytest.mark.slow
def test_a_shortened_schedule_whose_servers_run_apart_reads_the_last_version_of_the_faster_one(tmp_path: Path) -> None:
    """As live workers do, which go on while one of their servers has taken all of its steps."""
    worker, fast, slow = range(3)

    def row(agent: int, step: int, time: float, *reads: tuple[int, int]) -> Row:
        return Row(agent, step, time, time, time, tuple(Read(*read, 0, 0) for read in reads))

    rows = []
    for step, read in enumerate([(0, 0), (1, 0), (2, 1), (3, 1)]):
        rows += [row(worker, step, 2.0 * step, (fast, read[0]), (slow, read[1]))]
        rows += [row(fast, step, 2.0 * step + 1, (worker, step + 1))]
        rows += [row(slow, step // 2, 2.0 * step + 1, (worker, step + 1))] if step % 2 else []
    path = tmp_path / "schedule.parquet"
    write_rows(path, rows, {"num_agents": "1", "num_servers": "2", "rate": "1"})
    settings = server({"name": "k-batch-async", "k": 1}, shards=2) | {
        "num_agents": 1,
        "clusters": 1,
        "schedule": str(path),
    }
    cut = train(tmp_path, UNBATCHED, **settings, num_steps=2, evaluate_every=2)
    assert cut.error is None
    executed, _ = read_rows(Path(cut.path) / "schedule.parquet")
    (last,) = (one for one in executed if one[:2] == (worker, 3))
    assert [read[:2] for read in last.reads] == [(fast, 2), (slow, 1)]
