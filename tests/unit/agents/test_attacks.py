"""Attackers: each lie against its formula in float64, what it follows from, and where it is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from ray_pcasgd.agents.attacks import Attack, Attacker, Faults, ServedAttackers, flipped
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.trainer import Trainer, resume
from tests.references.attacks import lie
from tests.unit.interrupted_runs import SMALL, assert_as_undisturbed, interrupted

DRAW = generator(0, "attacks")
OWN = DRAW.normal(size=40)
READ = {0: DRAW.normal(size=40), 2: DRAW.normal(size=40), 4: DRAW.normal(size=40)}
"""What attacker 3 has read; 4 is a fellow of its."""


def attacker(attack: Any, seed: int = 0, agent: int = 3) -> Attacker:
    faults = Faults(agents=(3, 4), attack=TypeAdapter[Any](Attack).validate_python(attack))
    made = Attacker(faults, seed, agent)
    for neighbor, vector in READ.items():
        made.note(neighbor, torch.from_numpy(vector))
    return made


@pytest.mark.parametrize(
    "attack",
    [{"name": "sign-flip", "scale": 3}, {"name": "alie", "z": 0.7}, "inner-product", "mimic", "label-flip"],
    ids=str,
)
def test_a_lie_is_its_formula(attack: Any) -> None:
    own = attacker(attack)
    expected = lie(own.attack, OWN, [READ[0], READ[2]], OWN, None)
    np.testing.assert_allclose(own.sent(5, torch.from_numpy(OWN)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_noise_is_drawn_by_agent_and_version_and_has_its_deviation() -> None:
    own = torch.zeros(20_000)
    draws = {
        key: attacker({"name": "noise", "std": 3}, *key[:2]).sent(key[2], own)
        for key in [(0, 3, 1), (0, 3, 2), (0, 4, 1), (1, 3, 1)]
    }
    assert torch.equal(draws[0, 3, 1], attacker({"name": "noise", "std": 3}).sent(1, own))
    assert len({draw[0].item() for draw in draws.values()}) == 4
    assert all(abs(float(draw.std()) - 3) < 0.1 and abs(float(draw.mean())) < 0.1 for draw in draws.values())


def test_uniform_noise_is_drawn_by_agent_and_version_and_fills_its_interval() -> None:
    attack, own = {"name": "uniform", "low": -3.0, "high": 5.0}, torch.zeros(20_000)
    draws = [attacker(attack, *key[:2]).sent(key[2], own) for key in [(0, 3, 1), (0, 3, 2), (0, 4, 1), (1, 3, 1)]]
    random = generator(0, "attack", 3, 1)
    expected = lie(attacker(attack).attack, np.zeros(20_000), [], np.zeros(20_000), random)
    np.testing.assert_allclose(draws[0].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert len({draw[0].item() for draw in draws}) == 4
    for draw in draws:
        assert -3 <= float(draw.min()) < -2.9
        assert 4.9 < float(draw.max()) <= 5
        assert abs(float(draw.mean()) - 1) < 0.1
    with pytest.raises(ValueError, match="low = 1: allowed are values below high = 1"):
        attacker({"name": "uniform", "low": 1.0, "high": 1.0})


def test_a_replay_is_of_the_version_at_which_its_period_began() -> None:
    own = attacker({"name": "stale-replay", "period": 4})
    sent = [int(own.sent(version, torch.tensor([float(version)]))) for version in range(11)]
    assert sent == [0, 1, 1, 1, 4, 4, 4, 4, 8, 8, 8]
    late = attacker({"name": "stale-replay", "period": 4})
    assert [int(late.sent(version, torch.tensor([float(version)]))) for version in (6, 7, 8, 9)] == [6, 6, 8, 8]


def test_nobody_lies_about_the_start_and_who_has_read_nothing_knows_itself_alone() -> None:
    own = torch.from_numpy(OWN)
    for name in ("sign-flip", "noise", "uniform", "alie", "inner-product", "mimic", "stale-replay"):
        assert torch.equal(attacker(name).sent(0, own), own)
        again = attacker(name)
        again.forget()
        found = again.sent(1, own)
        if name in ("alie", "mimic"):
            assert torch.equal(found, own)


def test_flipped_labels_are_the_others_from_behind_and_what_is_no_class_stays() -> None:
    assert flipped(torch.tensor([0, 3, 9, -100]), 10).tolist() == [9, 6, 0, -100]


def served(value: Any) -> ServedAttackers:
    return ServedAttackers(Faults(agents=(3, 4), attack=TypeAdapter[Any](Attack).validate_python(value)), 0)


@pytest.mark.parametrize("attack", ["alie", {"name": "inner-product", "scale": 0.5}, "mimic"], ids=str)
def test_a_server_is_told_what_follows_from_the_last_of_each_honest_worker_that_it_has_taken(attack: Any) -> None:
    """Those of the update included; before there are any, from the attacker's own."""
    own, vectors = served(attack), {(k, v): DRAW.normal(size=40) for k in range(5) for v in (1, 2)}
    last: dict[int, np.ndarray] = {}
    for update in [[(3, 1)], [(4, 1), (2, 1)], [(0, 1), (0, 2), (3, 2)], [(4, 2)]]:
        keys = sorted(update)
        found = own.told([(*key, torch.from_numpy(vectors[key])) for key in keys])
        last |= {k: vectors[k, v] for k, v in keys if k < 3}
        for key, vector in zip(keys, found, strict=True):
            expected = vectors[key]
            if key[0] >= 3:
                kind = TypeAdapter[Any](Attack).validate_python(attack)
                expected = lie(kind, expected, [last[k] for k in sorted(last)], expected, None)
            np.testing.assert_allclose(vector.numpy(), expected, rtol=1e-12, atol=1e-12)
        again = served(attack)
        again.restore(own.state(), torch.device("cpu"))
        own = again
    assert sorted(last) == [0, 2]


def test_attackers_who_look_at_others_change_what_a_server_comes_to_and_the_median_stands_it(tmp_path: Path) -> None:
    """Of all four gathering kinds; and parts of several servers are lied about as one vector is."""
    lies = {"agents": [1], "attack": {"name": "inner-product", "scale": 2.0}}
    for gathering in ("sync", {"name": "k-sync", "k": 2}, {"name": "rennala", "k": 5}, "asgd"):
        algorithm = {"name": "server", "gathering": gathering}
        honest, attacked, parted = (
            trained(tmp_path, algorithm=algorithm | more, faults=faults, step_size=0.05).metrics["test_loss"]
            for more, faults in (({}, None), ({}, lies), ({"shards": 3}, lies))
        )
        assert attacked > honest
        assert parted == attacked
    screened = {"name": "server", "gathering": "sync", "screen": "median", "attackers": 1}
    sync = {"name": "server", "gathering": "sync"}
    losses = [trained(tmp_path, algorithm=one, faults=lies).metrics["test_loss"] for one in (screened, sync)]
    assert losses[0] < losses[1]


def trained(folder: Path, **settings: Any) -> Result:
    small = {"engine": "local", "num_agents": 4, "num_steps": 8, "evaluate_every": 8, "links": []}
    result = Trainer(small | settings, storage_path=str(folder)).fit()
    assert result.error is None
    return result


@pytest.mark.parametrize("algorithm", ["d-asgd", "server"])
def test_who_trains_on_flipped_labels_has_another_loss_and_the_others_have_not(algorithm: str, tmp_path: Path) -> None:
    """At the first step, which all take at the common start."""
    settings: dict[str, Any] = {"algorithm": algorithm, "num_steps": 1, "evaluate_every": 1}
    honest, attacked = (
        trained(tmp_path / name, **settings, faults=faults).metrics_dataframe.set_index("agent")["train_loss"]
        for name, faults in (("honest", None), ("attacked", {"agents": [2], "attack": "label-flip"}))
    )
    assert [k for k in range(4) if honest[k] != attacked[k]] == [2]


def test_an_attacker_trains_honestly_and_what_others_read_of_it_is_its_lie(tmp_path: Path) -> None:
    """Agent 0 alone reads a liar; in a step it gets no further than from what was sent."""
    line = {"topology": {"name": "edges", "edges": [[0, 1]]}, "num_agents": 2, "mixing": "uniform"}
    steps = {"num_steps": 2, "evaluate_every": 1, "step_size": 0.0, "algorithm": "d-psgd"}
    attack = {"agents": [1], "attack": {"name": "sign-flip", "scale": 3.0}}
    result = trained(tmp_path, **line, **steps, faults=attack)
    frame = result.metrics_dataframe
    # With a step size of 0 all stay at x; after two steps agent 0 is at (x + x)/2, and then at (x - 3 x)/2 = -x.
    distances = frame[frame["agent"] == 0].sort_values("step")["consensus_distance"].tolist()
    assert distances[0] == pytest.approx(0, abs=1e-6)
    liar = frame[frame["agent"] == 1].sort_values("step")["consensus_distance"].tolist()
    assert distances[1] == pytest.approx(liar[1])
    assert distances[1] > 1


@pytest.mark.parametrize("attack", ["alie", {"name": "stale-replay", "period": 7}])
@pytest.mark.parametrize("algorithm", ["bridge", "server"])
def test_an_interrupted_run_goes_on_to_the_same_bits(attack: Any, algorithm: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "algorithm": {"name": algorithm} | ({"screen": "median"} if algorithm == "bridge" else {}),
        "faults": {"agents": [1], "attack": attack},
    }
    result = resume(interrupted(tmp_path, 10, **changes))
    assert_as_undisturbed(result, **changes)
    whole = Trainer(SMALL | changes, storage_path=str(tmp_path / "whole")).fit()
    pd.testing.assert_frame_equal(result.screening, whole.screening)
    assert result.screening.empty == (algorithm == "server")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"faults": {"agents": [4], "attack": "noise"}}, "faults.agents = [4]: allowed are some of the agents 0 to 3"),
        ({"faults": {"agents": [0, 1, 2, 3], "attack": "noise"}}, "faults.agents = [0, 1, 2, 3]: allowed are some"),
        ({"faults": {"agents": [1, 1], "attack": "noise"}}, "faults.agents = [1, 1]: allowed is each agent once"),
        (
            {"algorithm": "svrg", "links": [], "faults": {"agents": [1], "attack": "alie"}},
            "faults.attack.name = 'alie': allowed with algorithm.name = 'svrg', whose messages are full gradients",
        ),
        ({"algorithm": "sgp", "faults": {"agents": [1], "attack": "noise"}}, "faults: allowed with algorithm.name = "),
        ({"algorithm": "ad-psgd", "faults": {"agents": [1], "attack": "noise"}}, "faults: allowed with algorithm.name"),
        ({"algorithm": "choco-sgd", "faults": {"agents": [1], "attack": "noise"}}, "faults: allowed with algorithm"),
        ({"algorithm": "bridge", "topology": "ring"}, "algorithm.attackers = 1: allowed with algorithm.screen.name = "),
        ({"algorithm": {"name": "bridge", "screen": "bulyan"}}, "topology.name = 'complete' is 0; agent 0 has 3 of "),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Trainer({"engine": "local", "num_agents": 4} | settings, storage_path=str(tmp_path)).fit()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
