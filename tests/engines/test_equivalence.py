"""The test that holds the project together: one schedule, any engine, the same bits."""

import multiprocessing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import first_difference, read_rows
from tests.comparing import assert_same_to_the_bit
from tests.devices import GPUS
from tests.speed import slow_unless

from .fragile import fragile
from .images import DRAWN
from .language import STEPPED
from .restless import restless

UNBATCHED = {"name": "local", "batched": "never"}
PLANNED = {"name": "ray", "mode": "planned"}
SMALL = {
    "num_agents": 3,
    "num_steps": 12,
    "evaluate_every": 6,
    "links": [{"between": "clusters", "delay": 3}],
    "optimizer": {"momentum": 0.9, "weight_decay": 1e-4},
    "step_size": 0.02,
}
UNEVEN = {"compute": {"law": {"name": "exponential", "mean": 1.0}}}


def train(folder: Path, engine: Any, **settings: Any) -> Result:
    result = Trainer(SMALL | settings, engine=engine, storage_path=str(folder)).fit()
    assert result.error is None
    return result


def assert_same_bits(result: Result, other: Result) -> None:
    rows, others = (read_rows(Path(r.path) / "schedule.parquet")[0] for r in (result, other))
    assert first_difference(rows, others) is None
    left, right = (r.checkpoint.state_dict() for r in (result, other) if r.checkpoint)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    mine, theirs = (
        r.metrics_dataframe.drop(columns="wall_seconds").sort_values(["step", "agent"]).reset_index(drop=True)
        for r in (result, other)
    )
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


BATCH_NORM: dict[str, Any] = {
    "task": {
        "data": {"name": "custom", "train": "tests.engines.images:TRAIN", "test": "tests.engines.images:TEST"},
        "model": {"name": "small-cnn", "channels": [4], "batch_norm": True},
    }
}
ADAMW: dict[str, Any] = {
    "algorithm": {"name": "pc-asgd", "compensation": "relative", "stability": {"name": "curvature", "warmup": 4}},
    "optimizer": {"name": "adamw", "decay": "matrices", "eps": 1e-3},
    "step_size": 0.002,
    "gradient_clipping": {"norm": 0.5},
}
ACID = {"name": "ad-psgd", "acceleration": "acid"}
ALGORITHMS: dict[str, Any] = {
    "d-psgd": {"algorithm": "d-psgd"},
    "d-asgd": {"algorithm": "d-asgd"} | UNEVEN,
    "c-asgd": {"algorithm": "c-asgd"} | UNEVEN,
    "p-asgd": {"algorithm": "p-asgd"} | UNEVEN,
    "pc-asgd, linear theta": {
        "algorithm": {"name": "pc-asgd", "theta": {"name": "linear", "start": 1, "end": 0, "steps": 10}}
    }
    | UNEVEN,
    "pc-asgd, adaptive lambda": {"algorithm": {"name": "pc-asgd", "compensation": {"name": "adaptive"}}} | UNEVEN,
    "pc-asgd, local steps": {"algorithm": "pc-asgd", "local_steps": [1, 3, 2], "num_steps": 16} | UNEVEN,
    "pc-asgd, local steps, narrow wire": {
        "algorithm": "pc-asgd",
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": {"weights": "bf16", "directions": "int8"},
    }
    | UNEVEN,
    "pc-asgd, combining first": {
        "algorithm": {"name": "pc-asgd", "stability": {"name": "curvature", "every": 2, "warmup": 4}},
        "overlap": False,
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": {"weights": "bf16", "directions": {"name": "top-k", "share": 0.2}},
    }
    | UNEVEN,
    "pc-asgd, in parts": {
        "algorithm": {"name": "pc-asgd", "stability": {"name": "curvature", "every": 2, "warmup": 4}},
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": {"weights": "bf16", "directions": "int8", "fragments": 3},
    }
    | UNEVEN,
    "pc-asgd, by displacement": {
        "algorithm": {"name": "pc-asgd", "prediction": "displacement"},
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": "bf16",
    }
    | UNEVEN,
    "gasloc": {"algorithm": "gasloc", "local_steps": 3, "num_steps": 16} | BATCH_NORM | UNEVEN,
    "slowmo": {"algorithm": "slowmo", "barrier": "none", "local_steps": 3, "num_steps": 16} | UNEVEN,
    "noloco": {"algorithm": "noloco", "local_steps": 3, "num_steps": 16, "links": [{"delay": "0.7s"}]} | UNEVEN,
    "choco-sgd": {
        "algorithm": {"name": "choco-sgd", "gamma": 0.4},
        "wire": {"name": "top-k", "share": 0.2},
        "local_steps": [1, 3, 2],
        "num_steps": 16,
    }
    | BATCH_NORM
    | UNEVEN,
    "sgp-overlap, narrow wire": {"algorithm": "sgp-overlap", "wire": "int4"} | UNEVEN,
    "sgp-overlap, local steps": {"algorithm": "sgp-overlap", "local_steps": 3, "num_steps": 16} | UNEVEN,
    "bridge, churn, replayed": {
        "algorithm": {"name": "bridge", "screen": "median"},
        "faults": {"agents": [1], "attack": {"name": "stale-replay", "period": 3}},
        "num_agents": 4,
        "num_steps": 16,
        "evaluate_every": 4,
        "membership": [{"agents": [1, 2], "leaves": "3.3s", "returns": "8s"}],
    }
    | BATCH_NORM
    | UNEVEN,
    "bridge, predicting": {
        "algorithm": {"name": "bridge", "screen": "krum", "late": "predict", "bounded": True},
        "num_agents": 6,
        "wire": "bf16",
        "faults": {"agents": [1, 4], "attack": "alie"},
    }
    | UNEVEN,
    "bridge, mixed, predicting, churn": {
        "algorithm": {
            "name": "bridge",
            "screen": {"name": "trimmed-mean", "nearest_neighbor_mixing": True},
            "late": "predict",
        },
        "num_agents": 5,
        "faults": {"agents": [1], "attack": {"name": "uniform", "low": -0.5, "high": 0.25}},
        "membership": [{"agent": 2, "leaves": "3.3s", "returns": "8s"}],
    }
    | UNEVEN,
    "bridge, bulyan, combining first": {
        "algorithm": {"name": "bridge", "screen": "bulyan", "attackers": 0, "late": "clip"},
        "overlap": False,
        "local_steps": 3,
        "num_steps": 16,
        "faults": {"agents": [2], "attack": "label-flip"},
    }
    | UNEVEN,
    "bridge, trimmed mean": {
        "algorithm": "bridge",
        "num_agents": 4,
        "faults": {"agents": [1], "attack": "inner-product"},
    }
    | UNEVEN,
    "bridge, nearest neighbors": {
        "algorithm": {"name": "bridge", "screen": "nearest-neighbors", "late": "predict", "prediction": "displacement"},
        "num_agents": 4,
        "faults": {"agents": [0], "attack": "mimic"},
    }
    | UNEVEN,
    "bridge, centered clipping": {
        "algorithm": {"name": "bridge", "screen": "centered-clipping"},
        "num_agents": 4,
        "local_steps": [1, 3, 2, 1],
        "faults": {"agents": [2], "attack": "sign-flip"},
    }
    | UNEVEN,
    "bridge, geometric median": {
        "algorithm": {"name": "bridge", "screen": "geometric-median"},
        "barrier": {"name": "bounded", "staleness": 1},
        "faults": {"agents": [2], "attack": "inner-product"},
    }
    | UNEVEN,
    "gossip-pull, noise": {
        "algorithm": {"name": "gossip-pull", "every": 2},
        "faults": {"agents": [2], "attack": {"name": "noise", "std": 0.1}},
    }
    | UNEVEN,
    "dc-s3gd": {"algorithm": "dc-s3gd", "mixing": "uniform"},
    "d-asgd-importance": {"algorithm": "d-asgd-importance"} | UNEVEN,
    "gossip-pull": {"algorithm": {"name": "gossip-pull", "every": 2}} | UNEVEN,
    "gossip-push": {"algorithm": {"name": "gossip-push", "every": 1.5}} | UNEVEN,
    "sgp, directed": {"algorithm": "sgp", "topology": "directed-exponential"} | UNEVEN,
    "sgp-overlap, directed, batch norm": {"algorithm": "sgp-overlap", "topology": "directed-ring"}
    | BATCH_NORM
    | UNEVEN,
    "ad-psgd": {"algorithm": "ad-psgd", "links": [{"delay": 0.4, "unit": "seconds"}]} | UNEVEN,
    "ad-psgd, batch norm": {"algorithm": "ad-psgd", "links": []} | BATCH_NORM | UNEVEN,
    "ad-psgd, acid": {"algorithm": ACID, "links": [{"delay": 0.4, "unit": "seconds"}], "topology": "star"} | UNEVEN,
    "d-psgd, one peer": {"algorithm": "d-psgd", "topology": "one-peer-exponential", "num_agents": 5} | UNEVEN,
    "d-asgd, hierarchical, batch norm": {
        "algorithm": "d-asgd",
        "topology": {"name": "hierarchical", "inside": 2},
        "num_agents": 5,
        "links": [{"between": "clusters", "delay": "1.5s"}],
    }
    | BATCH_NORM
    | UNEVEN,
    "slowmo, hierarchical": {"algorithm": "slowmo", "topology": "hierarchical", "num_agents": 4, "local_steps": 2}
    | UNEVEN,
    "d-asgd, braking": {"algorithm": "d-asgd", "optimizer": {"momentum": 0.9, "braking": 0.5, "weight_decay": 1e-4}}
    | UNEVEN,
    "pc-asgd, adamw, clipped": ADAMW | UNEVEN,
    "pc-asgd, adamw, clipped, in pieces": ADAMW | {"accumulate": 3} | UNEVEN,
    "pc-asgd, adamw, bf16": ADAMW | {"precision": "bf16"} | BATCH_NORM | UNEVEN,
    "pc-asgd, yellowfin": {"algorithm": "pc-asgd", "optimizer": "yellowfin", "step_size": None, "local_steps": 2}
    | UNEVEN,
    "p-asgd, adafactor": {
        "algorithm": "p-asgd",
        "optimizer": {"name": "torch", "optimizer": "torch.optim:Adafactor", "settings": {"weight_decay": 0.1}},
    }
    | UNEVEN,
    "pc-asgd-pv, probe": {"algorithm": {"name": "pc-asgd-pv", "probe_every": 2}} | UNEVEN,
    "pc-asgd, theta by curvature, guarded": {
        "algorithm": {"name": "pc-asgd", "stability": {"name": "curvature", "every": 5, "warmup": 4}, "guard": True}
    }
    | UNEVEN,
    "pc-asgd, own drift, stable": {
        "algorithm": {"name": "pc-asgd", "prediction": "own-drift", "reach": {"name": "stable", "drag": 0.1}}
    }
    | UNEVEN,
    "pc-asgd-pv, borrowed pairs": {
        "algorithm": {"name": "pc-asgd-pv", "candidates": [[0, 0], [0.5, 2], 1], "probe_data": "shared"}
    }
    | UNEVEN,
    "pc-asgd-pv, descent": {"algorithm": {"name": "pc-asgd-pv", "condition": "descent"}} | UNEVEN,
    "pc-asgd, churn": {
        "algorithm": {"name": "pc-asgd", "stability": {"name": "curvature", "every": 2, "warmup": 4}},
        "num_agents": 4,
        "num_steps": 16,
        "evaluate_every": 4,
        "membership": [
            {"agent": 1, "leaves": "3.3s", "returns": "8s"},
            {"agents": [0, 2], "leaves": 6, "returns": "9.5s"},
            {"agent": 1, "leaves": 12},
            {"agent": 3, "returns": "2s"},
        ],
    }
    | BATCH_NORM
    | UNEVEN,
    "pc-asgd, churn, combining first": {
        "algorithm": "pc-asgd",
        "overlap": False,
        "barrier": {"name": "bounded", "staleness": 1},
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": {"weights": "bf16", "directions": {"name": "top-k", "share": 0.2}},
        "membership": [{"agents": [0, 1], "leaves": "3s", "returns": "6.5s"}, {"agent": 2, "returns": "1.5s"}],
    }
    | UNEVEN,
    "pc-asgd, churn, in parts": {
        "algorithm": "pc-asgd",
        "local_steps": [1, 3, 2],
        "num_steps": 16,
        "wire": {"weights": "bf16", "directions": "int8", "fragments": 3},
        "membership": [{"agent": 1, "leaves": "3s", "returns": "6.5s"}, {"agent": 2, "returns": "1.5s"}],
    }
    | UNEVEN,
}
BARRIERS: dict[str, Any] = {
    "bounded": {"barrier": {"name": "bounded", "staleness": 1}} | UNEVEN,
    "sampled": {"barrier": {"name": "sampled", "beta": 1}} | UNEVEN,
    "all": {"barrier": {"name": "all"}} | UNEVEN,
    "seconds on a ring": {
        "topology": "ring",
        "links": [{"unit": "seconds", "delay": {"name": "uniform", "low": 0, "high": 2}}],
    },
    "batch norm": BATCH_NORM,
    "own tensors": {"algorithm": "pc-asgd"} | restless() | UNEVEN,
    "language model, step": {"algorithm": "pc-asgd", "task": STEPPED, "num_agents": 2, "num_steps": 6} | UNEVEN,
    "own tensors, probed": {"algorithm": {"name": "pc-asgd-pv", "probe_every": 2}} | restless() | UNEVEN,
    "own tensors, pairs": {"algorithm": "ad-psgd", "links": [{"delay": 0.4, "unit": "seconds"}]} | restless() | UNEVEN,
    "random items": {"task": {"data": DRAWN, "model": {"hidden": [8]}}} | UNEVEN,
}


# What a rule computes is the agent's own code on either engine. Here stands once what the engines do by themselves:
# waiting for weights, directions, buffers, probes, masses; who is sent what; in which order. A run costs seconds.
ON_RAY = [
    "d-psgd",
    "d-asgd",
    "pc-asgd, linear theta",
    "pc-asgd-pv, probe",
    "pc-asgd, theta by curvature, guarded",
    "pc-asgd, adamw, clipped, in pieces",
    "pc-asgd, adamw, bf16",
    "p-asgd, adafactor",
    "pc-asgd, yellowfin",
    "pc-asgd, local steps",
    "sgp-overlap, local steps",
    "pc-asgd, local steps, narrow wire",
    "pc-asgd, combining first",
    "pc-asgd, in parts",
    "pc-asgd, by displacement",
    "gasloc",
    "noloco",
    "choco-sgd",
    "sgp-overlap, narrow wire",
    "bridge, churn, replayed",
    "bridge, predicting",
    "bridge, mixed, predicting, churn",
    "bridge, bulyan, combining first",
    "bridge, trimmed mean",
    "bridge, nearest neighbors",
    "dc-s3gd",
    "d-asgd-importance",
    "gossip-pull",
    "gossip-push",
    "pc-asgd, churn",
    "pc-asgd, churn, combining first",
    "pc-asgd, churn, in parts",
    "sgp-overlap, directed, batch norm",
    "ad-psgd, batch norm",
    "ad-psgd, acid",
    "d-psgd, one peer",
    "d-asgd, hierarchical, batch norm",
    "seconds on a ring",
    "batch norm",
    "random items",
    "own tensors",
    "own tensors, probed",
    "own tensors, pairs",
    "language model, step",
]


# Plain ``pc-asgd`` is compared in the same way by the tests of agents that leave and of faults.
QUICK = [
    "choco-sgd",
    "pc-asgd, combining first",
    "pc-asgd, in parts",
    "own tensors, probed",
    "gossip-push",
    "pc-asgd, churn",
    "bridge, predicting",
    "sgp-overlap, directed, batch norm",
]
BETWEEN_HOSTS = {"transport": "object-store", "inline_bytes": 0}
"""All messages go as they do between hosts, by calls and through the object store."""
CALLED = ("pc-asgd, in parts", "gossip-push")


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in ON_RAY])
@pytest.mark.usefixtures("ray_cluster")
def test_planned_ray_equals_planned_local_to_the_bit(name: str, tmp_path: Path) -> None:
    settings = (ALGORITHMS | BARRIERS)[name]
    engine = PLANNED | (BETWEEN_HOSTS if name in CALLED else {})
    assert_same_bits(train(tmp_path / "ray", engine, **settings), train(tmp_path / "local", UNBATCHED, **settings))


@pytest.mark.parametrize("name", ["pc-asgd, adamw, bf16", "pc-asgd-pv, probe", "language model, step"] if GPUS else [])
@pytest.mark.usefixtures("ray_cluster")
def test_planned_agents_that_share_a_gpu_have_the_bits_of_the_local_engine_on_it(name: str, tmp_path: Path) -> None:
    settings = (ALGORITHMS | BARRIERS)[name]
    actors = train(tmp_path / "ray", PLANNED | {"gpus_per_agent": 0.25}, **settings)
    assert_same_bits(actors, train(tmp_path / "local", UNBATCHED | {"device": "cuda"}, **settings))


@pytest.mark.parametrize("precision", ["float32", "fp16"] if GPUS else [])
@pytest.mark.usefixtures("ray_cluster")
def test_a_live_run_on_a_gpu_replays_to_its_weights(precision: str, tmp_path: Path) -> None:
    settings = ALGORITHMS["pc-asgd, adamw, clipped"] | BATCH_NORM | {"precision": precision}
    live = train(tmp_path / "live", PLANNED | {"mode": "live", "gpus_per_agent": 0.25}, **settings)
    schedule, written = str(Path(live.path) / "schedule.parquet"), read_yaml(Path(live.path) / "config.yaml")
    settings |= {"algorithm": written["algorithm"], "reliability": written["reliability"]}
    replayed = train(tmp_path / "replay", UNBATCHED | {"device": "cuda"}, **settings, schedule=schedule)
    assert_same_to_the_bit(live, replayed)


PREDICTED: dict[str, Any] = {
    "algorithm": {"name": "pc-asgd", "theta": 0.3, "compensation": {"lambda_0": 1e38}},
    "step_size": 3.0,
    "num_agents": 4,
    "num_steps": 5,
    "evaluate_every": 1,
}
"""With this strength, predictions overflow from finite directions; what they come of others may read."""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", slow_unless(False, "buffers"), slow_unless(False, "predictions")])
@pytest.mark.usefixtures("ray_cluster")
def test_an_agent_that_overflows_leaves_both_engines_alike(what: str, tmp_path: Path) -> None:
    """Others may read its last version, but neither what it would have come to nor the direction that leads there."""
    settings = {"algorithm": "pc-asgd", "step_size": 64.0 if what == "weights" else 0.25}
    settings = PREDICTED if what == "predictions" else settings | {"num_steps": 30} | fragile(what)
    settings = settings | UNEVEN | {"on_non_finite_loss": "isolate", "optimizer": {}}
    local = train(tmp_path / "local", UNBATCHED, **settings)
    assert_same_bits(train(tmp_path / "ray", PLANNED, **settings), local)
    rows, metadata = read_rows(Path(local.path) / "schedule.parquet")
    gone = set(map(int, metadata["left"].split()))
    last = {(agent, 1 + max((row.step for row in rows if row.agent == agent), default=-1)) for agent in gone}
    assert any(read.staleness and read[:2] in last for row in rows for read in row.reads)
    assert gone < {row.agent for row in rows} | {0}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["planned", slow_unless(False, "live")])
@pytest.mark.parametrize("what", ["weights", slow_unless(False, "buffers")])
@pytest.mark.usefixtures("ray_cluster")
def test_an_overflow_in_the_very_last_step_ends_a_run_on_actors(what: str, mode: str, tmp_path: Path) -> None:
    settings = SMALL | {"algorithm": "d-asgd", "optimizer": {}, "step_size": 64.0 if what == "weights" else 0.25}
    settings = settings | fragile(what)
    alone = Trainer(settings, engine=UNBATCHED, storage_path=str(tmp_path), num_steps=40).fit()
    assert isinstance(alone.error, NonFiniteLossError)
    last = {"num_steps": alone.error.step + 1, "evaluate_every": max(1, alone.error.step)}
    result = Trainer(settings | last, engine={"name": "ray", "mode": mode}, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, NonFiniteLossError)
    assert str(result.error) == str(alone.error)


ALONE = ("ad-psgd", "narrow wire", "own tensors", "in pieces", "adafactor", "yellowfin", "bf16", "language model")
STACKED = [name for name in [*ALGORITHMS, *BARRIERS] if not any(part in name for part in ALONE)]


@pytest.mark.parametrize("name", STACKED)
def test_batched_equals_unbatched_within_rounding(name: str, tmp_path: Path) -> None:
    settings = (ALGORITHMS | BARRIERS)[name]
    batched = train(tmp_path / "batched", {"name": "local", "batched": "always"}, **settings)
    alone = train(tmp_path / "alone", UNBATCHED, **settings)
    assert batched.schedule_hash == alone.schedule_hash
    assert batched.checkpoint
    assert alone.checkpoint
    expected = alone.checkpoint.state_dict()
    for key, value in batched.checkpoint.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


RECORDED: dict[str, Any] = {
    **{name: {"algorithm": name} for name in ("pc-asgd", "pc-asgd-pv", "gossip-push", "sgp-overlap", "ad-psgd")},
    "ad-psgd, acid": {"algorithm": ACID},
    "one peer": {"algorithm": "d-asgd", "topology": "one-peer-exponential"},
    "hierarchical": {"algorithm": "d-psgd", "topology": "hierarchical"},
    "theta 0.9": {"algorithm": {"name": "pc-asgd", "theta": 0.9}},
    "local steps, narrow wire": {
        "algorithm": "pc-asgd",
        "local_steps": [4, 2, 1],
        "wire": {"weights": "int8", "directions": "bf16"},
        "links": [{"between": "clusters", "delay": "12 steps"}],
    },
    "combining first, narrow wire": {
        "algorithm": "pc-asgd",
        "overlap": False,
        "local_steps": [4, 2, 1],
        "wire": {"weights": "int8", "directions": "top-k"},
    },
    "in parts": {
        "algorithm": "pc-asgd",
        "local_steps": [4, 2, 1],
        "wire": {"weights": "bf16", "directions": "int8", "fragments": 3},
        "links": [{"between": "clusters", "delay": "12 steps"}],
    },
    "by displacement": {"algorithm": {"name": "pc-asgd", "prediction": "displacement"}},
    "noloco": {"algorithm": "noloco", "local_steps": [2, 1, 1], "links": [{"delay": "0.02s"}]},
    "bridge, attacked": {
        "algorithm": {"name": "bridge", "screen": "median", "late": "predict"},
        "faults": {"agents": [1], "attack": "alie"},
    },
    "bridge, mixed, attacked": {
        "algorithm": {"name": "bridge", "screen": {"name": "median", "nearest_neighbor_mixing": True}},
        "faults": {"agents": [1], "attack": "uniform"},
    },
    "choco-sgd": {"algorithm": "choco-sgd", "local_steps": [4, 2, 1], "wire": "int8"},
    "adamw": ADAMW | {"accumulate": 3},
    "adafactor": ALGORITHMS["p-asgd, adafactor"],
    "yellowfin": {"algorithm": "d-asgd", "optimizer": "yellowfin", "step_size": None},
}
BOUNDED = (
    "pc-asgd",
    "theta 0.9",
    "local steps, narrow wire",
    "combining first, narrow wire",
    "in parts",
    "by displacement",
    "pc-asgd-pv",
    "bridge, attacked",
    "adamw",
    "adafactor",
)
"""Those that predict."""
QUICK = ("combining first, narrow wire", "ad-psgd")


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in RECORDED])
@pytest.mark.usefixtures("ray_cluster")
def test_a_live_run_s_recorded_schedule_replays_to_its_weights(name: str, tmp_path: Path) -> None:
    settings = RECORDED[name] | {"num_steps": 60, "compute": {"stragglers": {2: 0.01}}} | restless()
    # Stale reads, however fast messages are.
    settings.setdefault("links", [{"delay": "0.001s" if name.startswith("ad-psgd") else "12 steps"}])
    live = train(tmp_path / "live", {"name": "ray", "mode": "live"}, **settings)
    rows, metadata = read_rows(Path(live.path) / "schedule.parquet")
    assert metadata["mode"] == "live"
    if name.startswith("ad-psgd"):
        assert any(row.kind == "passive" for row in rows)
    elif name != "noloco":
        assert max(read.staleness for row in rows for read in row.reads) >= 3
    # As the run has written them: what was left to it is filled in as it is in live runs.
    written = read_yaml(Path(live.path) / "config.yaml")
    settings |= {"algorithm": written["algorithm"], "reliability": written["reliability"]}
    assert settings["algorithm"].get("bounded") is (True if name in BOUNDED else None)
    schedule = str(Path(live.path) / "schedule.parquet")
    replayed = train(tmp_path / "replay", UNBATCHED, **settings, schedule=schedule)
    assert replayed.schedule_hash == live.schedule_hash
    assert live.checkpoint
    assert replayed.checkpoint
    weights = live.checkpoint.state_dict()
    for key, value in replayed.checkpoint.state_dict().items():
        assert torch.equal(value, weights[key]), key
    if name == "theta 0.9":
        settings["algorithm"] |= {"bounded": False}
        free = train(tmp_path / "free", UNBATCHED, **settings, schedule=schedule)
        assert free.metrics["test_loss"] != replayed.metrics["test_loss"], "nothing was beyond the bound"


@pytest.mark.parametrize("batched", ["never", "always"])
def test_batches_made_in_the_background_are_the_same(batched: str, tmp_path: Path) -> None:
    settings = BARRIERS["random items"] | ALGORITHMS["pc-asgd-pv, probe"]
    loaded = settings | {"task": settings["task"] | {"loading": {"workers": 2, "prefetch": 1}}}
    engine = {"name": "local", "batched": batched}
    assert_same_bits(train(tmp_path / "loaded", engine, **loaded), train(tmp_path / "plain", engine, **settings))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    settings = ALGORITHMS["pc-asgd-pv, probe"]
    first, again, other = (
        train(tmp_path / str(n), UNBATCHED, **settings, seed=seed) for n, seed in enumerate((5, 5, 6))
    )
    assert_same_bits(first, again)
    assert other.schedule_hash != first.schedule_hash
    assert other.metrics["test_loss"] != first.metrics["test_loss"]
