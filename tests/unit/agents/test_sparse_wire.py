"""Sparse wire formats with error feedback: against slow references, and in runs of every family."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd import Trainer
from ray_pcasgd.agents.error_feedback import ErrorFeedback
from ray_pcasgd.agents.sparse_wire import RandomK, TopK
from ray_pcasgd.base.randomness import generator
from tests.comparing import assert_same_to_the_bit
from tests.references.peers import (
    PUBLISHED,
    SMALL,
    Array,
    CombiningReference,
    Reference,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    gone_on,
    planned,
    regression,
)
from tests.speed import slow_unless

DRAW = (0, "direction", 3, 7)
VECTORS = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=60).map(torch.tensor)
SHARES = st.sampled_from([0.01, 0.07, 0.3, 1.0])


@given(VECTORS, SHARES)
def test_the_largest_numbers_travel_with_their_places(vector: Tensor, share: float) -> None:
    form = TopK(share=share)
    count = form.num_kept(len(vector))
    encoded = form.encode(vector, DRAW)
    assert (encoded.dtype, encoded.numel()) == (torch.uint8, form.num_bytes(len(vector)))
    # One after another, of equal ones the first.
    left, expected = vector.abs().tolist(), torch.zeros(len(vector))
    for _ in range(count):
        place = left.index(max(left))
        left[place], expected[place] = -1.0, vector[place]
    assert torch.equal(form.opened("direction", encoded, len(vector)), expected)


@given(VECTORS, SHARES)
def test_random_numbers_travel_by_a_seed(vector: Tensor, share: float) -> None:
    form = RandomK(share=share)
    encoded = form.encode(vector, DRAW)
    assert encoded.numel() == form.num_bytes(len(vector)) == 8 + 4 * form.num_kept(len(vector))
    decoded = form.opened("direction", encoded, len(vector))
    kept = decoded != 0
    assert torch.equal(decoded[kept], vector[kept])
    assert kept.sum() <= form.num_kept(len(vector))
    assert torch.equal(form.encode(vector, DRAW), encoded)


def test_random_places_are_drawn_alike_and_anew_for_each_version() -> None:
    form, ones = RandomK(share=0.1), torch.ones(50)
    counts = sum(form.decode(form.encode(ones, (*DRAW[:3], version)), 50) for version in range(2_000))
    assert isinstance(counts, Tensor)
    # Binomial with 2,000 draws of a tenth: four standard deviations are 54.
    assert (counts - 200).abs().max() < 54


def test_a_share_is_taken_as_it_is_written() -> None:
    assert [TopK(share=share).num_kept(100) for share in (0.07, 0.29, 0.001, 1)] == [7, 29, 1, 100]


@pytest.mark.parametrize("form", [TopK(share=0.05), RandomK(share=0.05)], ids=lambda form: form.name)
def test_all_that_was_sent_and_what_is_left_are_all_that_was_to_be_sent(form: Any) -> None:
    """Over 1,000 rounds, in float64 beside it; and nothing waits for ever."""
    draw, feedback = generator(0, "feedback"), ErrorFeedback(form)
    sent, true = np.zeros(200), np.zeros(200)
    longest = 0.0
    for version in range(1_000):
        vector = torch.from_numpy(draw.standard_normal(200, dtype=np.float32) + 0.5)
        true += vector.double().numpy()
        sent += form.decode(feedback.encode(vector, (0, "direction", 0, version)), 200).double().numpy()
        assert feedback.left is not None
        longest = max(longest, float(feedback.left.abs().max()))
    assert feedback.left is not None
    np.testing.assert_allclose(sent + feedback.left.double().numpy(), true, rtol=1e-4)
    assert longest < (30 if form.name == "top-k" else 150)


def test_asked_twice_for_a_version_it_sends_the_same() -> None:
    feedback, vector = ErrorFeedback(TopK(share=0.1)), torch.arange(20.0)
    first = feedback.encode(vector, DRAW)
    assert torch.equal(feedback.encode(vector, DRAW), first)
    again = ErrorFeedback(TopK(share=0.1))
    again.restore(feedback.state(), torch.device("cpu"))
    assert torch.equal(again.encode(vector, DRAW), first)
    following = (*DRAW[:3], DRAW[3] + 1)
    assert torch.equal(again.encode(vector, following), feedback.encode(vector, following))


def test_places_outside_of_the_vector_are_refused() -> None:
    form = TopK(share=0.5)
    encoded = torch.cat([torch.tensor([0, 4], dtype=torch.int32).view(torch.uint8), torch.ones(2).view(torch.uint8)])
    with pytest.raises(ValueError, match="places that are not among the 4"):
        form.opened("direction", encoded, 4)


class Feedback:
    """A slow top-k with error feedback of each agent, by version."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.left: dict[int, Array] = {}
        self.sent: dict[tuple[int, int], Array] = {}

    def __call__(self, what: str, agent: int, version: int, vector: Array) -> Array:
        return self.sent[agent, version] if what == "direction" else vector

    def take(self, agent: int, version: int, vector: Array) -> None:
        whole = vector + self.left.get(agent, 0.0)
        kept = np.zeros_like(whole)
        for place in np.argsort(-np.abs(whole), kind="stable")[: self.count]:
            kept[place] = whole[place]
        self.left[agent], self.sent[agent, version] = whole - kept, kept


@pytest.mark.parametrize("overlap", [True, False])
def test_agents_predict_by_what_was_sent_with_error_feedback(overlap: bool) -> None:
    """Each direction is encoded once, in the order of versions, whether somebody reads it or not."""
    own = planned(
        algorithm=PUBLISHED, local_steps=2, overlap=overlap, wire={"directions": {"name": "top-k", "share": 0.5}}
    )
    agents, reports = executed(own)
    feedback = Feedback(2)

    class Sending(Reference if overlap else CombiningReference):  # type: ignore[misc]
        def compute(self, i: int, version: int, start: Array | None = None) -> None:
            super().compute(i, version, start)
            feedback.take(i, version, self.displacement[i, version] / self.step_sizes[i, version])

    assert_where_the_reference_is(agents, Sending(own, 0.6, feedback).run(), rtol=1e-5, atol=1e-6)
    assert any(read.staleness for report in reports for read in report.row.reads)
    assert agents[0].message_bytes == 4 * 4 + 8 * 2


SPARSE: dict[str, Any] = {
    "peers": {"algorithm": "pc-asgd", "wire": {"weights": "bf16", "directions": "top-k"}},
    "combining": {"algorithm": "pc-asgd", "overlap": False, "wire": {"directions": {"name": "random-k", "share": 0.3}}},
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_run_goes_on_from_a_state_to_the_bit(name: str) -> None:
    own = planned(**SPARSE[name], local_steps=(2, 7, 5))
    gone_on(own)


@pytest.mark.parametrize("shards", [1, slow_unless(False, 2)])
def test_a_server_gets_all_in_the_end(shards: int, tmp_path: Path) -> None:
    """A tenth of the numbers a message: learning is slower at first, and comes as far."""
    settings = SMALL | {
        "task": regression(),
        "num_steps": 200,
        "links": [],
        "optimizer": {},
        "step_size": 0.05,
        "algorithm": {"name": "server", "gathering": "asgd", "shards": shards},
    }
    plain = Trainer(settings, storage_path=str(tmp_path)).fit()
    sparse = settings | {"wire": {"directions": {"name": "top-k", "share": 0.25}}}
    result = Trainer(sparse, storage_path=str(tmp_path)).fit()
    assert result.metrics["test_loss"] < 1.2 * plain.metrics["test_loss"]
    schedule = str(Path(result.path) / "schedule.parquet")
    assert_same_to_the_bit(result, Trainer(sparse, storage_path=str(tmp_path), schedule=schedule).fit())


def test_sparse_weights_are_refused() -> None:
    assert_refused({"wire": {"weights": "top-k"}}, "wire.weights.name = 'top-k': allowed are float32, bf16, int8 and")
    assert_refused({"wire": "top-k"}, "wire.weights.name = 'top-k': allowed are float32, bf16, int8 and int4")
    assert_refused({"wire": {"directions": {"name": "top-k", "share": 0}}}, "wire.directions.share = 0: allowed are")
