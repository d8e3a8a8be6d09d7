"""What every algorithm with a server promises; each correction, each screen and each way to count workers once."""

import pickle
from typing import Any, get_args

import pytest
import torch

from ray_pcasgd.config import AnyAlgorithm
from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.correction import AnyCorrection, GapBounded, Kardam, NoCorrection
from ray_pcasgd.rules.diloco import DiLoCo
from ray_pcasgd.rules.elastic_averaging import ElasticAveraging
from ray_pcasgd.rules.fedasync import FedAsync
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.rules.gathering import AnyGathering
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.screens import AnyScreen, NearestNeighbors
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.rules.svrg import SVRG

WORKERS = 8


def kinds(union: Any) -> list[Any]:
    """Return the classes of a union."""
    return [union] if isinstance(union, type) else [kind for part in get_args(union) for kind in kinds(part)]


CORRECTIONS = [kind(bound=0.5) if kind is GapBounded else kind() for kind in kinds(AnyCorrection)]
SCREENS = [kind() for kind in kinds(AnyScreen) if kind is not NearestNeighbors]
COUNTING_WORKERS = [kind() for kind in kinds(AnyGathering) if getattr(kind, "averages", "gradients") != "gradients"]


def server(**settings: Any) -> ParameterServer:
    return ParameterServer.model_validate(settings)


CASES: dict[str, ServerRule] = {
    **{f"correction {correction.name}": server(correction=correction) for correction in CORRECTIONS},
    "kardam, two attackers": server(correction=Kardam(attackers=2, window=2)),
    **{f"screen {screen.name}": server(screen=screen, gathering="sync") for screen in SCREENS},
    "screen median, of corrected gradients": server(screen="median", gathering="sync", correction="dc-asgd-a"),
    **{f"gathering {one.name}": server(gathering=one) for one in COUNTING_WORKERS},
    "gathering ringleader, corrected": server(gathering="ringleader", correction={"name": "dc-asgd-c", "lambda_0": 2}),
    "momentum compensation": server(nesterov="momentum-compensation"),
    "view": server(view={"delay": 3}),
    "elastic averaging": ElasticAveraging(),
    "diloco": DiLoCo(),
    "fedasync": FedAsync(),
    "fedglomo": FedGLOMO(),
    "svrg": SVRG(),
}


def test_every_algorithm_with_a_server_has_its_row_here() -> None:
    known = {kind for kind in kinds(AnyAlgorithm) if issubclass(kind, ServerRule)}
    assert {type(rule) for rule in CASES.values()} == known
    assert NoCorrection() in CORRECTIONS
    assert len(SCREENS) >= 6
    assert {one.averages for one in COUNTING_WORKERS} == {"workers", "rounds", "latest"}


@pytest.mark.parametrize("name", CASES)
def test_it_keeps_what_every_rule_promises(name: str) -> None:
    rule = CASES[name]
    rule.check(WORKERS)
    check_rule(rule, WORKERS)


@pytest.mark.parametrize("name", CASES)
def test_it_survives_pickle_and_yaml_like_data_and_so_does_its_state(name: str) -> None:
    rule = CASES[name]
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert type(rule).model_validate(rule.model_dump(mode="json")) == rule
    state = rule.init(torch.ones(11), WORKERS)
    restored = pickle.loads(pickle.dumps(state))
    assert type(restored) is type(state)
    assert all(torch.equal(one, other) for one, other in zip(restored, state, strict=True))
