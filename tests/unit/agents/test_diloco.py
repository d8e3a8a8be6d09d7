"""Rounds of local steps around a server, against a slow reference in float64 that follows the formulas row by row."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row, StepReport
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.rounds import FedAsyncReference, RoundsReference
from tests.unit.agents.test_server import OPTIMIZERS, Driven, plan
from tests.unit.agents.test_wire import slow_sent

Array = npt.NDArray[np.float64]
LATE = {"compute": {"law": {"name": "exponential", "mean": 1}, "stragglers": {2: 1.5}}}
SECONDS = [{"delay": {"name": "exponential", "mean": 1.5}, "unit": "seconds"}]


def diloco(gathering: Any = "sync", outer: Any = "sgd", **more: Any) -> dict[str, Any]:
    return {"name": "diloco", "gathering": gathering, "outer": outer, **more}


HEAVY = {"name": "sgd", "nesterov": False, "momentum": 0.5, "step_size": 1.1}
DELAYED = {"name": "delayed-nesterov", "step_size": 0.5, "momentum": 0.8}
UNEQUAL = {"partition": {"name": "dirichlet", "alpha": 0.5}, "local_steps": [3, 1, 2]}
RUNS: dict[str, Any] = {
    "diloco": {"algorithm": diloco()},
    "diloco, nesterov inside, links": {"algorithm": diloco(), "optimizer": OPTIMIZERS["nesterov"], "links": SECONDS},
    "delays in steps": {"algorithm": diloco(), "links": [{"delay": 4}]},
    "heavy ball": {"algorithm": diloco(outer=HEAVY)},
    "by samples, unequal rounds": {"algorithm": diloco(average="samples")} | UNEQUAL,
    "equally, unequal rounds": {"algorithm": diloco()} | UNEQUAL,
    "k-async": {"algorithm": diloco({"name": "k-async", "k": 2}, weighting="polynomial"), "links": SECONDS} | LATE,
    "fedbuff, asgd": {
        "algorithm": diloco({"name": "k-batch-async", "k": 5}, HEAVY, weighting="polynomial"),
        **LATE,
        "num_steps": 24,
    },
    "asgd, delayed": {"algorithm": diloco("asgd", DELAYED), "links": SECONDS} | LATE,
    "asgd, delayed, spread, hinge": {
        "algorithm": diloco("asgd", DELAYED | {"every": 2, "spread": 0.4}, weighting={"name": "hinge", "a": 2, "b": 1}),
        **LATE,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_rounds_follow_the_reference(name: str) -> None:
    settings = {"num_steps": 12, "local_steps": 3, "optimizer": OPTIMIZERS["momentum"]} | RUNS[name]
    own = plan(**settings)
    rounds = own.config.local_steps if isinstance(own.config.local_steps, tuple) else (3, 3, 3)
    driven, reference = Driven(own), RoundsReference(own, rounds)
    for row in driven.rows():
        reference.execute(row)
        if row.agent >= 3:
            np.testing.assert_allclose(driven.weights.numpy(), reference.weights[-1], rtol=0, atol=3e-5)
            # A position counts mini-batches, whoever took how many of them.
            assert (
                driven.servers[0].progress
                == sum(
                    rounds[one.spec.agent] * taken
                    for one, taken in zip(driven.workers, self_taken(own, row), strict=True)
                )
                // 3
            )
    assert driven.servers[0].is_done
    assert [worker.progress for worker in driven.workers] == reference.taken
    assert np.abs(reference.weights[-1] - reference.weights[0]).max() > 0.05
    assert (reference.latest > 0) == ("steps" in name or "asgd" in name or "k-async" in name)


def self_taken(own: Plan, last: Row) -> list[int]:
    """Return how many messages of each worker the server has taken up to a row of its own."""
    counts = [0, 0, 0]
    for row in own.schedule:
        assert row is not None
        for read in row.reads if row.agent >= 3 else ():
            counts[read.neighbor] += 1
        if row == last:
            break
    return counts


def test_the_inner_state_stays_with_its_worker() -> None:
    """A round begins with the momentum that the one before has left: a fresh one would end elsewhere."""
    own = plan(diloco(), num_steps=12, local_steps=3, optimizer=OPTIMIZERS["momentum"])
    driven, fresh = Driven(own), RoundsReference(own, (3, 3, 3))
    for row in driven.rows():
        if row.agent < 3:
            fresh.velocities[row.agent] = np.zeros_like(fresh.velocities[row.agent])
        fresh.execute(row)
    assert np.abs(driven.weights.numpy() - fresh.weights[-1]).max() > 1e-2


class WiredReference(RoundsReference):
    """What is read is what was decoded, of the server's weights and of what workers send."""

    def execute(self, row: Row) -> None:
        wire = self.plan.config.wire
        if row.agent < len(self.batches):
            (read,) = row.reads
            start = slow_sent(wire, "weights", read.neighbor, read.version, self.weights[read.version])
            delta = start - self.trained(row.agent, start)
            self.sent[row.agent, row.step + 1] = (
                slow_sent(wire, "direction", row.agent, row.step + 1, delta),
                read.version,
            )
        else:
            self.update(row)


WIRES: list[Any] = ["bf16", {"weights": "bf16", "directions": "int8"}, {"directions": {"name": "int4", "block": 8}}]


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_servers_and_workers_read_what_was_decoded(wire: Any) -> None:
    own = plan(diloco("asgd", DELAYED), num_steps=8, local_steps=2, wire=wire, **LATE)
    reference = WiredReference(own, (2, 2, 2))
    agents, reports = executed(own)
    for row in own.schedule:
        assert row is not None
        reference.execute(row)
    # A number that rounding in float32 puts on the other side of a draw is off by a whole unit: a few of them are.
    off = np.abs(agents[3].weights.numpy() - reference.weights[-1])
    assert np.median(off) < 1e-6
    assert off.max() < 0.05
    plain = executed(plan(diloco("asgd", DELAYED), num_steps=8, local_steps=2, **LATE))[0]
    # What is rounded of the start is in the end as well, and so hardly in their difference.
    assert np.median(np.abs(plain[3].weights.numpy() - reference.weights[-1])) > 20 * np.median(off)
    numbers = agents[3].weights.numel()
    bytes_of = {report.row.agent < 3: report.bytes_sent for report in reports}
    formats = own.config.wire
    assert bytes_of == {True: formats.directions.num_bytes(numbers), False: formats.weights.num_bytes(numbers)}


def executed(own: Plan) -> tuple[list[Any], list[StepReport]]:
    agents = [spec.build(own.data) for spec in own.specs]
    reports = list(Execution(own.schedule, agents).reports())
    return agents, [one for one in reports if isinstance(one, StepReport)]


@pytest.mark.parametrize("name", ["server", "elastic-averaging", "diloco", "fedasync"])
def test_each_server_s_part_is_encoded_by_itself(name: str) -> None:
    """A block ends where a server's part does, and workers make a server's first version as it does itself."""
    wire = {"weights": {"name": "int8", "block": 8}, "directions": {"name": "int4", "block": 8}}
    own = plan({"name": name, "shards": 3}, wire=wire)
    agents: list[Any] = [spec.build(own.data) for spec in own.specs]
    worker, servers = agents[0], agents[3:]
    for server, start in worker.starts().items():
        assert torch.equal(start.weights, agents[server].message(None).weights)
    reads = tuple(Read(server, 0, 0, 0) for server in range(3, 6))
    row = Row(0, 0, 0.0, 1.0, 1.0, reads)
    worker.take(row, [worker.opened(read, worker.starts()[read.neighbor]) for read in reads])
    sent = worker.message(row)
    parts = [one.opened(Read(0, 1, 0, 0), worker.share(sent, one.spec.agent)).weights for one in servers]
    assert [part.numel() for part in parts] == [one.weights.numel() for one in servers]
    together = torch.cat(parts)
    largest = worker.computed.abs().max() / (7 if name in ("server", "diloco") else 127)
    assert 0 < float((together - worker.computed).abs().max()) <= float(largest)
    assert worker.bytes_sent(row) == sum(worker.share(sent, k).weights.numel() for k in range(3, 6))
    with pytest.raises(ValueError, match=r"^its weights have \d+ bytes; allowed are \d+$"):
        servers[0].opened(Read(0, 1, 0, 0), sent)


@pytest.mark.parametrize("proximal", [0.0, 0.5])
@pytest.mark.parametrize("weighting", ["constant", "polynomial", {"name": "hinge", "a": 3, "b": 1}], ids=str)
def test_fedasync_follows_the_reference(weighting: Any, proximal: float) -> None:
    algorithm = {"name": "fedasync", "weighting": weighting, "proximal": proximal, "mix": 0.7}
    own = plan(algorithm, num_steps=16, local_steps=[3, 1, 2], optimizer=OPTIMIZERS["momentum"], links=SECONDS, **LATE)
    driven, reference = Driven(own), FedAsyncReference(own, (3, 1, 2))
    for row in driven.rows():
        reference.execute(row)
        if row.agent >= 3:
            np.testing.assert_allclose(driven.weights.numpy(), reference.weights[-1], rtol=0, atol=3e-5)
    assert reference.latest > 1
    assert np.abs(reference.weights[-1] - reference.weights[0]).max() > 0.05


def test_weights_of_late_messages_do_not_compound() -> None:
    """However many late messages there were, one that is not late counts by ``mix``."""
    own = plan({"name": "fedasync", "mix": 0.5}, num_steps=40, local_steps=2, **LATE)
    driven = Driven(own)
    for row in driven.rows():
        if row.agent >= 3 and row.step > 20 and row.reads[0].staleness == 0:
            break
    else:
        pytest.fail("no message came in time")
    before, now = (driven.versions[0][place][0] for place in (-2, -1))
    (read,) = row.reads
    sent = driven.messages[read.neighbor][read.version][0]
    torch.testing.assert_close(now, (before + sent) / 2, rtol=0, atol=1e-6)


PLAIN = {"name": "sgd", "step_size": 1.0, "momentum": 0}


def ends(algorithm: Any, **settings: Any) -> torch.Tensor:
    driven = Driven(plan(algorithm, **settings))
    for _ in driven.rows():
        pass
    return driven.weights


def test_rounds_of_one_step_are_synchronous_sgd_on_the_mean_gradient() -> None:
    rounds = ends(diloco(outer=PLAIN), local_steps=1)
    synchronous = ends({"name": "server", "gathering": "sync"})
    torch.testing.assert_close(rounds, synchronous, rtol=0, atol=1e-6)
    assert float((rounds - ends(diloco(outer=PLAIN), num_steps=1)).abs().max()) > 0.01


def test_one_worker_without_an_outer_optimizer_is_its_inner_one_alone() -> None:
    alone = {"num_agents": 1, "num_steps": 12, "optimizer": "adamw", "step_size": 0.01}
    rounds = ends(diloco(outer=PLAIN), local_steps=4, **alone)
    plain = ends({"name": "server", "gathering": "sync"}, **alone)
    torch.testing.assert_close(rounds, plain, rtol=0, atol=2e-6)
    assert float((rounds - ends(diloco(), local_steps=4, **alone)).abs().max()) > 0.01


@pytest.mark.parametrize("average", ["equal", "samples"])
def test_complete_rounds_with_an_outer_step_of_1_are_federated_averaging(average: str) -> None:
    """McMahan et al. 2017, algorithm 1: the next weights are the mean of the clients', by samples there."""
    settings: dict[str, Any] = {"num_steps": 12, "local_steps": 3, "partition": UNEQUAL["partition"]}
    own = plan(diloco(outer=PLAIN, average=average), **settings)
    driven, slow = Driven(own), RoundsReference(own, (3, 3, 3))
    for _ in driven.rows():
        pass
    sizes = np.array([len(spec.shard) for spec in own.specs[:3]], dtype=np.float64)
    assert sizes.max() > 1.2 * sizes.min()
    weights, theta = sizes if average == "samples" else np.ones(3), slow.weights[0]
    for _ in range(4):
        theta = sum(w * slow.trained(k, theta) for k, w in enumerate(weights / weights.sum()))
    np.testing.assert_allclose(driven.weights.numpy(), theta, rtol=0, atol=1e-5)


@pytest.mark.parametrize("outer", ["sgd", "delayed-nesterov"])
def test_several_servers_give_the_bits_of_one(outer: str) -> None:
    settings: dict[str, Any] = {"num_steps": 12, "local_steps": 2, **LATE}
    own = [ends(diloco("asgd", outer, weighting="polynomial", shards=n), **settings) for n in (1, 2, 5)]
    assert torch.equal(own[0], own[1])
    assert torch.equal(own[0], own[2])


def test_slower_workers_take_shorter_rounds_of_equal_time() -> None:
    compute = {"law": 1.0, "agents": {1: 2.0, 2: 5.0}}
    own = plan(diloco(), num_steps=24, local_steps={"name": "equal-time", "most": 6}, compute=compute)
    assert own.rounds.local_steps == (6, 3, 1)
    ready = {row.agent: row.ready for row in own.schedule if row is not None and row.step == 0}
    assert ready == {0: 6.0, 1: 6.0, 2: 5.0, 3: 6.0}
