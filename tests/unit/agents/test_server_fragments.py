"""Rounds around a server whose messages hold a part of the model, against a slow reference in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from ray_pcasgd.agents.server_recipe import ServerRecipe
from ray_pcasgd.agents.worker import Worker
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from tests.references.peers import gone_on
from tests.references.streaming import PARTS, ElasticInParts, FedAsyncInParts, StreamingReference
from tests.unit.agents.test_diloco import (
    DELAYED,
    HEAVY,
    LATE,
    SECONDS,
    UNEQUAL,
    diloco,
    executed,
)
from tests.unit.agents.test_server import OPTIMIZERS, SMALL, plan

ELASTIC = {"name": "elastic-averaging", "period": 3, "alpha": 0.2, "gathering": {"name": "k-async", "k": 2}}
RUNS: dict[str, Any] = {
    "nobody late": {"algorithm": diloco()},
    "its own share": {"algorithm": diloco(alpha=0.3), "links": SECONDS},
    "delays in steps": {"algorithm": diloco(alpha=0.5), "links": [{"delay": 4}]},
    "by samples, unequal rounds": {"algorithm": diloco(average="samples", outer=HEAVY)} | UNEQUAL,
    "k-async": {"algorithm": diloco({"name": "k-async", "k": 2}, weighting="polynomial"), "links": SECONDS} | LATE,
    "fedbuff, asgd": {
        "algorithm": diloco({"name": "k-batch-async", "k": 5}, HEAVY, weighting="polynomial"),
        **LATE,
        "num_steps": 24,
    },
    "asgd, delayed, spread": {"algorithm": diloco("asgd", DELAYED | {"every": 2, "spread": 0.4})} | LATE,
    "fedasync, asgd": {"algorithm": {"name": "fedasync", "proximal": 0.5, "mix": 0.7}, "links": SECONDS} | LATE,
    "elastic, k-async": {"algorithm": ELASTIC, "links": SECONDS} | LATE,
}
IN_PARTS = {"fedasync": FedAsyncInParts, "elastic": ElasticInParts}


@pytest.mark.parametrize("name", RUNS)
def test_parts_follow_the_reference(name: str) -> None:
    settings = {"num_steps": 15, "local_steps": 3, "optimizer": OPTIMIZERS["momentum"]} | RUNS[name]
    if "elastic" in name:
        settings.pop("local_steps")
    own = plan(**settings, wire={"fragments": PARTS})
    rounds = own.config.local_steps if isinstance(own.config.local_steps, tuple) else (3, 3, 3)
    agents, reports = executed(own)
    reference = IN_PARTS.get(name.split(",")[0], StreamingReference)(own, rounds)
    for report in reports:
        reference.execute(report.row)
        assert report.bytes_sent == 4 * 154 * (1 if report.row.agent < 3 else len(report.row.reads))
    np.testing.assert_allclose(agents[3].weights.numpy(), reference.weights[-1], rtol=0, atol=3e-5)
    for agent, x in zip(agents, reference.x, strict=False):
        np.testing.assert_allclose(agent.weights.numpy(), x, rtol=0, atol=3e-5)
    assert all(np.abs((reference.weights[-1] - reference.weights[0])[reference.part(p)]).max() > 0.01 for p in range(3))
    assert (reference.latest > 0) == ("steps" in name or "async" in name or "asgd" in name)
    # Workers that are apart meet in one update with different parts.
    assert (reference.most_parts > 1) == ("k-async" in name or "fedbuff" in name)


@pytest.mark.parametrize(
    "wire",
    [{}, {"weights": "bf16", "directions": "int8"}, {"weights": "int8", "directions": {"name": "top-k", "share": 0.1}}],
    ids=str,
)
def test_a_run_goes_on_from_a_state_to_the_bit(wire: dict[str, Any]) -> None:
    algorithm = diloco("asgd", DELAYED, shards=2, alpha=0.2)
    gone_on(plan(algorithm, num_steps=16, evaluate_every=6, local_steps=2, wire={**wire, "fragments": 3}, **LATE))


@pytest.mark.parametrize("weights", ["float32", "bf16", "int4"])
def test_a_fragment_that_is_sent_alone_opens_as_that_of_the_whole_version(weights: str) -> None:
    """As live servers send it, and as planned ones publish it."""
    own = plan(diloco(shards=2), wire={"weights": weights, "fragments": 4})
    recipe = own.specs[0].recipe
    assert isinstance(recipe, ServerRecipe)
    vector = torch.linspace(-1, 1, 230)
    published = recipe.published(3, 7, vector)
    whole = recipe.opened(published, 230)
    assert whole.shape == vector.shape
    assert float((whole - vector).abs().max()) <= {"float32": 0.0, "bf16": 0.004, "int4": 0.15}[weights]
    parts = [recipe.fragment_of(published, number) for number in range(4)]
    opened = torch.cat([recipe.opened(part, 230) for part in parts])
    assert torch.equal(opened[:230], whole)
    assert {part.nbytes for part in parts} == {recipe.wire.weights.num_bytes(58)}
    assert recipe.bytes_of_version(230) == published.nbytes
    with pytest.raises(ValueError, match=r"^its weights have \d+ (numbers|bytes); allowed are \d+ and \d+$"):
        recipe.opened(torch.cat([parts[0], parts[1]]), 230)


def test_a_worker_that_is_back_goes_on_from_whole_weights() -> None:
    own = plan(diloco(), wire={"weights": "bf16", "fragments": 3}, local_steps=2, num_steps=12)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    list(execution.reports())
    worker, server = execution.agents[0], execution.agents[3]
    read = Read(3, server.version, 0, 0)
    row = Row(0, worker.version, 0.0, 0.0, 0.0, (read,), "rejoined")
    whole = worker.opened(read, server.message(None))
    assert not torch.equal(worker.weights, whole.weights)
    worker.take(row, [whole])
    assert torch.equal(worker.weights, whole.weights)
    # All that comes of its next round was changed since.
    worker.step([whole])
    assert torch.equal(worker.computed, whole.weights - worker.weights)
    assert worker.bytes_sent(row) == 3 * 2 * 154


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "workers without weights of their own": (
        {"algorithm": "server"},
        "wire.fragments = 4: allowed with algorithm.name = 'server' is 1; others are for d-psgd, d-asgd, c-asgd, "
        "p-asgd, pc-asgd and pc-asgd-pv, and with a server for diloco, fedasync and elastic-averaging",
    ),
    "whole tensors": (
        {"algorithm": diloco(outer="heloco")},
        "wire.fragments = 4: allowed with algorithm.outer.name = 'heloco' is 1, since it looks at whole tensors",
    ),
    "their lengths": (
        {"algorithm": diloco(merging="radial-directional")},
        "wire.fragments = 4: allowed with algorithm.merging = 'radial-directional' is 1, since it looks at whole",
    ),
    "more parts than a server has numbers": (
        {"algorithm": diloco(shards=2), "wire": {"fragments": 231}},
        "wire.fragments = 231: allowed are 1 to 230, the parameters that a server has",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sent_in_parts_is_refused_in_one_line(name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(SettingsError) as raised:
        make_plan(load_config(SMALL | {"wire": {"fragments": 4}} | settings))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_what_was_left_out_of_a_part_comes_with_that_part() -> None:
    own = plan(diloco(shards=2), wire={"directions": {"name": "top-k", "share": 0.1}, "fragments": 3})
    worker = own.specs[0].build(own.data)
    assert isinstance(worker, Worker)
    left = np.zeros((2, 3, 77))
    """Of each server's each part, whose 230 numbers are 77, 77 and 76."""
    for version in range(1, 13):
        worker.version, worker.sent = version, torch.randn(460, generator=torch.Generator().manual_seed(version))
        encoded = worker.encoded.split(worker.encoded.numel() // 2)
        for place, (piece, vector) in enumerate(
            zip(encoded, worker.sent.double().numpy().reshape(2, 230), strict=True)
        ):
            part = np.pad(vector, (0, 1))[77 * (version % 3) :][:77] + left[place, version % 3]
            kept = np.argsort(-np.abs(part))[:8]
            arrived = np.zeros(77)
            arrived[kept] = part[kept]
            left[place, version % 3] = part - arrived
            found = worker.spec.recipe.wire.directions.decode(piece, 77).numpy()
            np.testing.assert_allclose(found, arrived, atol=1e-5)
