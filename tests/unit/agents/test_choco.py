"""CHOCO-SGD: held against the paper's formulas in float64, and what lost or late messages do to a reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd import Trainer
from ray_pcasgd.agents.copies import HeldCopies, PublicCopy
from ray_pcasgd.agents.dense_wire import BF16, Float32, Format, Int4, Int8
from ray_pcasgd.agents.sparse_wire import RandomK, TopK
from ray_pcasgd.base.numerics import SMALLEST
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules.choco import ChocoSGD
from ray_pcasgd.runs.plan.fitting import with_gossip
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.parquet import read_rows, write_rows
from tests.comparing import assert_same_to_the_bit
from tests.references.choco import ChocoReference, largest
from tests.references.peers import (
    SMALL,
    Array,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    gone_on,
    planned,
    regression,
)
from tests.speed import examples, slow_unless

FORMS: list[Format] = [Float32(), BF16(), Int8(), Int4(block=8), TopK(share=0.2), RandomK(share=0.2)]
CHOCO: dict[str, Any] = {
    "algorithm": {"name": "choco-sgd", "gamma": 0.6},
    "wire": {"name": "top-k", "share": 0.5},
}
D = 10


def matrix(edges: set[tuple[int, int]], number: int) -> Array:
    """Return the Metropolis matrix of a ring with these chords."""
    pairs = {(min(e), max(e)) for e in edges | {(i, (i + 1) % number) for i in range(number)} if e[0] != e[1]}
    degree = [sum(i in pair for pair in pairs) for i in range(number)]
    result = np.zeros((number, number))
    for i, j in pairs:
        result[i, j] = result[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return result + np.diag(1 - result.sum(1))


class Network:
    """Agents that gossip by the rule and their public copies, with steps that are given."""

    def __init__(self, mixing: Array, form: Format, gamma: float, start: Tensor) -> None:
        self.mixing, self.rule = torch.tensor(mixing, dtype=torch.float32), ChocoSGD(gamma=gamma)
        self.z = [start.clone() for _ in mixing]
        self.public = [PublicCopy(form, start) for _ in mixing]
        self.version = 0

    def combined(self, i: int) -> Tensor:
        others = [k for k in range(len(self.z)) if k != i and self.mixing[i, k] > 0]
        zero = torch.zeros(len(others))
        row = self.mixing[i, others]
        own = Own(self.z[i], torch.zeros(D), self.mixing[i, i], zero.sum(), {}, public=(self.public[i].weights,))
        reads = Reads(tuple(self.public[k].weights for k in others), (), (), row, zero, zero, zero == 0)
        update: Tensor = self.rule.step((), own, reads)[1].weights
        return update

    def gossip(self) -> list[Tensor]:
        return [self.combined(i) for i in range(len(self.z))]

    def come_to(self, z: list[Tensor]) -> None:
        self.version += 1
        self.z = z
        for i, copy in enumerate(self.public):
            copy.follow(z[i], (0, "weights", i, self.version))


NUMBERS = st.integers(3, 6)
CHORDS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4)


@given(number=NUMBERS, chords=CHORDS, seed=st.integers(0, 9999), gamma=st.floats(0.01, 1), count=st.integers(1, D))
@examples(quick=10, whole=200)
def test_it_is_the_paper_s_algorithm(
    number: int, chords: set[tuple[int, int]], seed: int, gamma: float, count: int
) -> None:
    """Algorithm 2 line by line in float64, with as many numbers of a difference as are sent."""
    mixing, draw = matrix({(i % number, j % number) for i, j in chords}, number), np.random.default_rng(seed)
    network = Network(mixing, TopK(share=count / D), gamma, torch.from_numpy(draw.normal(size=D)).float())
    x = np.array([network.z[0].double().numpy()] * number)
    known = x.copy()
    for step in range(5):
        u = draw.normal(size=(number, D)).astype(np.float32)
        network.come_to([y - 0.1 * torch.from_numpy(u[i]) for i, y in enumerate(network.gossip())])
        half = x - 0.1 * u.astype(np.float64)
        for i in range(number):
            np.testing.assert_allclose(network.z[i].numpy(), half[i], rtol=1e-6, atol=2e-6, err_msg=str(step))
        known = known + np.array([largest(half[i] - known[i], count) for i in range(number)])
        x = np.array(
            [half[i] + gamma * sum(mixing[i, j] * (known[j] - known[i]) for j in range(number)) for i in range(number)]
        )


@given(number=NUMBERS, chords=CHORDS, seed=st.integers(0, 9999), gamma=st.floats(0.01, 1), form=st.sampled_from(FORMS))
@examples(quick=10, whole=200)
def test_gossip_leaves_the_mean_where_it_is_whatever_travels(
    number: int, chords: set[tuple[int, int]], seed: int, gamma: float, form: Format
) -> None:
    mixing, draw = matrix({(i % number, j % number) for i, j in chords}, number), np.random.default_rng(seed)
    network = Network(mixing, form, gamma, torch.zeros(D))
    for _ in range(4):
        before = [y + torch.from_numpy(draw.normal(size=D)).float() for y in network.gossip()]
        network.come_to(before)
        mean = torch.stack(before).double().mean(0)
        scale = max(float(torch.stack([*before, *(p.weights for p in network.public)]).abs().max()), SMALLEST)
        after = torch.stack(network.gossip()).double().mean(0)
        torch.testing.assert_close(after, mean, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("form", [TopK(share=0.3), slow_unless(False, RandomK(share=0.3))], ids=lambda form: form.name)
def test_without_gradients_agents_come_to_consensus(form: Format) -> None:
    """They come to their mean; those that send a part of their weights as they are come to something else."""
    mixing = matrix(set(), 5)
    network = Network(mixing, form, 0.2, torch.zeros(D))
    start = [torch.from_numpy(row).float() for row in np.random.default_rng(0).normal(size=(5, D))]
    network.come_to(start)
    for _ in range(80):
        network.come_to(network.gossip())
    mean = torch.stack(start).mean(0)
    assert max(float((z - mean).abs().max()) for z in network.z) < 0.01
    naive = start
    for version in range(80):
        draws = [(0, "weights", i, version) for i in range(5)]
        sent = [form.decode(form.encode(z, draw), D) for z, draw in zip(naive, draws, strict=True)]
        pulls = [sum((mixing[i, j] * (sent[j] - sent[i]) for j in range(5)), torch.zeros(D)) for i in range(5)]
        naive = [z + 0.2 * pull for z, pull in zip(naive, pulls, strict=True)]
    assert max(float((z - mean).abs().max()) for z in naive) > 0.1


@pytest.mark.parametrize("kind", ["top-k", "random-k"])
@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("topology", ["ring", "complete"])
def test_the_usual_step_size_of_the_gossip_brings_agents_together(topology: str, share: float, kind: str) -> None:
    config = load_config({"algorithm": "choco-sgd", "wire": {"name": kind, "share": share}})
    rule, numbers = with_gossip(config).algorithm, 100
    assert isinstance(rule, ChocoSGD)
    assert rule.gamma is not None
    chords = {(i, j) for i in range(8) for j in range(i)} if topology == "complete" else set[tuple[int, int]]()
    network = Network(matrix(chords, 8), config.wire.weights, rule.gamma, torch.zeros(numbers))
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(8, numbers))).float()
    network.come_to(list(start))
    for _ in range(int(20 / share)):
        network.come_to(network.gossip())
    apart = torch.stack(network.z) - start.mean(0)
    assert float(apart.norm()) < 0.1 * float((start - start.mean(0)).norm())


@pytest.mark.parametrize("links", [[], SMALL["links"]], ids=["nobody late", "late"])
@pytest.mark.parametrize("local_steps", [1, (2, 7, 5)], ids=str)
def test_agents_are_where_the_slow_reference_has_them_alone_and_stacked(local_steps: Any, links: Any) -> None:
    own = planned(**CHOCO, local_steps=local_steps, links=links)
    agents, _ = executed(own)
    expected = ChocoReference(own).run()
    assert_where_the_reference_is(agents, expected, rtol=1e-5, atol=1e-6)
    stacked, _ = executed(own, stacked=True)
    assert_where_the_reference_is(stacked, expected, rtol=1e-4, atol=1e-5)


def test_where_all_of_a_difference_travels_it_is_d_psgd() -> None:
    whole = {"wire": "float32", "local_steps": 2, "links": []}
    agents, _ = executed(planned(**whole, algorithm="choco-sgd"))
    others, _ = executed(planned(**whole, algorithm="d-psgd", overlap=False))
    for one, other in zip(agents, others, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wire", ["float32", "int8", "random-k"])
def test_a_run_goes_on_from_a_state_to_the_bit(wire: str) -> None:
    own = planned(algorithm="choco-sgd", wire=wire, local_steps=(2, 7, 5), optimizer="adamw")
    for one, other in gone_on(own):
        assert torch.equal(one.public.weights, other.public.weights)


@given(
    form=st.sampled_from(FORMS), fates=st.lists(st.sampled_from(["read", "lost", "late", "twice", "whole", "damaged"]))
)
@examples(quick=40, whole=400)
def test_whatever_becomes_of_messages_a_reader_has_a_copy_that_its_sender_had(form: Format, fates: list[str]) -> None:
    """To the bit, at the version that it says; what does not follow on it is refused, and changes nothing."""
    draw = np.random.default_rng(len(fates))
    copy, held = PublicCopy(form, torch.zeros(D)), HeldCopies(form)
    held.put(1, 0, torch.zeros(D))
    had, waiting = {0: torch.zeros(D)}, list[tuple[int, Tensor]]()
    for version, fate in enumerate(fates, start=1):
        copy.follow(copy.weights + torch.from_numpy(draw.normal(size=D)).float(), (0, "weights", 1, version))
        had[version] = copy.weights
        assert copy.difference is not None
        waiting.append((version, copy.difference))
        if fate == "late":
            continue  # it comes with the next one
        if fate == "lost":
            waiting.clear()
        if fate == "damaged":
            waiting[-1] = (version, copy.difference[:-1] if form.is_plain else copy.difference[:-4])
        for number, difference in waiting * (2 if fate == "twice" else 1):
            before = held.version(1)
            broken = fate == "damaged" and number == version
            if number == before + 1 and not broken:
                held.add(1, number, difference)
                continue
            with pytest.raises((ValueError, RuntimeError)):
                held.add(1, number, difference)
            assert held.version(1) == before
        waiting.clear()
        if fate == "whole":
            held.put(1, version, copy.weights)
        assert torch.equal(held.weights(1), had[held.version(1)])
    assert HeldCopies(form).version(1) == -1


def test_a_schedule_is_replayed_where_no_read_goes_back(tmp_path: Path) -> None:
    settings = SMALL | {"task": regression(), **CHOCO, "storage_path": str(tmp_path)}
    recorded = Trainer(settings).fit()
    schedule = Path(recorded.path) / "schedule.parquet"
    assert_same_to_the_bit(recorded, Trainer(settings | {"schedule": str(schedule)}).fit())
    late = Trainer(settings | {"algorithm": "d-asgd", "wire": "float32"}).fit()
    again = Trainer(settings | {"schedule": str(Path(late.path) / "schedule.parquet")}).fit()
    assert again.error is None, "versions that nobody reads come all the same"
    rows, metadata = read_rows(schedule)
    place = max(place for place, row in enumerate(rows) if row.reads and row.reads[0].version)
    back = rows[place].reads[0]._replace(version=0)
    rows[place] = rows[place]._replace(reads=(back, *rows[place].reads[1:]))
    write_rows(schedule, rows, metadata)
    assert_refused(settings | {"schedule": str(schedule)}, f"schedule = {str(schedule)!r}: agent")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"barrier": "none"}, "barrier.name = 'none': allowed with algorithm.name = 'choco-sgd' is all"),
        ({"overlap": True}, "overlap = true: allowed with algorithm.name = 'choco-sgd' is false"),
        ({"membership": [{"agent": 1, "leaves": "3s"}]}, "membership: allowed with algorithm.name = 'choco-sgd' is an"),
        ({"algorithm": {"name": "choco-sgd", "gamma": 0}}, "algorithm.gamma = 0: allowed are"),
        ({"algorithm": "d-psgd"}, "wire.weights.name = 'top-k': allowed are float32, bf16, int8 and int4"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    assert_refused(CHOCO | settings, message)


@pytest.mark.parametrize(
    ("wire", "gamma"), [("int8", 1.0), ("top-k", 0.015), ({"name": "random-k", "share": 0.2}, 0.1)], ids=str
)
def test_the_step_size_of_the_gossip_fits_the_format(wire: Any, gamma: float) -> None:
    own = planned(algorithm="choco-sgd", wire=wire)
    assert own.specs[0].recipe.rule.gamma == pytest.approx(gamma)  # type: ignore[attr-defined]
    assert own.config.algorithm.gamma is None  # type: ignore[union-attr]
