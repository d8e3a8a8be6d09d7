import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.tasks.partition import IID, ByLabel, Dirichlet, Partition, Shards, label_histogram
from ray_pcasgd.tasks.samples import Samples


def labelled(labels: np.ndarray) -> Samples:
    return Samples(torch.zeros(len(labels), 1), torch.from_numpy(labels.astype(np.int64)))


def balanced(num_classes: int, each: int) -> Samples:
    return labelled(np.repeat(np.arange(num_classes), each))


def assert_is_partition(shards: Shards, num_samples: int) -> None:
    assert all(len(shard) > 0 and shard.dtype == np.int64 for shard in shards)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(num_samples))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Samples, int, int]:
    labels = draw(st.lists(st.integers(0, 4), min_size=8, max_size=120))
    num_agents = draw(st.integers(1, 8))
    return labelled(np.array(labels)), num_agents, draw(st.integers(0, 2**31))


@settings(max_examples=60)
@given(cases())
def test_iid_deals_every_sample_once_and_evenly(case: tuple[Samples, int, int]) -> None:
    samples, num_agents, seed = case
    shards = IID().split(samples, num_agents, seed)
    assert_is_partition(shards, len(samples))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(cases(), st.sampled_from([0.01, 0.3, 1.0, 100.0]))
def test_dirichlet_deals_every_sample_once_and_no_agent_too_few(case: tuple[Samples, int, int], alpha: float) -> None:
    samples, num_agents, seed = case
    fewest = len(samples) // num_agents
    shards = Dirichlet(alpha=alpha, min_samples=fewest).split(samples, num_agents, seed)
    assert_is_partition(shards, len(samples))
    assert min(len(shard) for shard in shards) >= fewest


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(2, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_by_label_gives_the_stated_number_of_labels(num_agents: int, classes: int, held: int, seed: int) -> None:
    samples = balanced(classes, each=25)
    partition = ByLabel(labels_per_agent=held)
    if held > classes or num_agents * held < classes:
        with pytest.raises(ValueError, match=f"partition.labels_per_agent = {held}: allowed are"):
            partition.split(samples, num_agents, seed)
        return
    shards = partition.split(samples, num_agents, seed)
    assert_is_partition(shards, len(samples))
    histogram = label_histogram(samples, shards, classes)
    assert ((histogram > 0).sum(axis=1) == held).all()
    holders = (histogram > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for label in range(classes):
        shares = histogram[:, label][histogram[:, label] > 0]
        assert shares.max() - shares.min() <= 1


def largest_share(alpha: float, seed: int) -> float:
    """Return the largest share of a class that one of ten agents holds, averaged over ten classes."""
    samples = balanced(10, each=500)
    shards = Dirichlet(alpha=alpha, min_samples=1).split(samples, 10, seed)
    return float((label_histogram(samples, shards, 10).max(axis=0) / 500).mean())


def test_dirichlet_is_the_more_even_the_larger_alpha() -> None:
    means = [np.mean([largest_share(alpha, seed) for seed in range(5)]) for alpha in (0.01, 0.1, 1.0, 1000.0)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.9
    assert means[-1] < 0.12


def test_dirichlet_shares_have_the_distributions_mean_and_variance() -> None:
    """A share of a symmetric Dirichlet over N agents has mean 1/N and variance (1/N)(1 - 1/N) / (N alpha + 1)."""
    alpha, num_agents, each = 0.5, 4, 200
    samples = balanced(50, each)
    shares = np.concatenate(
        [
            label_histogram(samples, Dirichlet(alpha=alpha, min_samples=1).split(samples, num_agents, seed), 50) / each
            for seed in range(20)
        ],
        axis=1,
    )
    variance = (1 / num_agents) * (1 - 1 / num_agents) / (num_agents * alpha + 1)
    # 1000 independent classes: standard errors of about 0.008 and 0.002.
    assert shares.mean(axis=1) == pytest.approx(np.full(num_agents, 1 / num_agents), abs=0.03)
    assert shares.var(axis=1) == pytest.approx(np.full(num_agents, variance), abs=0.008)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(alpha=1.0, min_samples=1), ByLabel()])
def test_the_order_of_the_samples_does_not_decide_who_gets_them(partition: Partition) -> None:
    """Files are often sorted by more than the label: nobody gets the first of a class because they come first."""
    shards = partition.split(balanced(2, each=100), 2, 0)
    for shard in shards:
        first_class = shard[shard < 100]
        assert 20 < np.median(first_class) < 80
        assert len(set(np.diff(first_class))) > 1


@pytest.mark.parametrize("partition", [IID(), Dirichlet(min_samples=1), ByLabel()])
def test_the_seed_decides(partition: Partition) -> None:
    samples = balanced(10, each=20)
    first, again, other = (partition.split(samples, 8, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("partition", [IID(), Dirichlet(min_samples=1), ByLabel()])
@pytest.mark.parametrize("num_agents", [0, 21])
def test_more_agents_than_samples_or_none_are_refused(partition: Partition, num_agents: int) -> None:
    with pytest.raises(ValueError, match=f"num_agents = {num_agents}: allowed are 1 to 20"):
        partition.split(balanced(10, each=2), num_agents, 0)


def test_min_samples_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match=r"partition.min_samples = 6: allowed are 1 to 5 for 4 agents and 20 samples"):
        Dirichlet(min_samples=6).split(balanced(10, each=2), 4, 0)


def test_a_label_too_rare_for_its_holders_is_refused() -> None:
    with pytest.raises(ValueError, match="label 1 has 1 samples for 4 agents"):
        ByLabel(labels_per_agent=2).split(labelled(np.array([0] * 20 + [1])), 4, 0)


def test_only_iid_works_without_labels() -> None:
    samples = Samples(torch.zeros(20, 1), torch.linspace(0, 1, 20))
    assert_is_partition(IID().split(samples, 3, 0), 20)
    for partition in (Dirichlet(min_samples=1), ByLabel()):
        with pytest.raises(ValueError, match=f"partition.name = '{partition.name}': .* allowed is 'iid'"):
            partition.split(samples, 3, 0)


def test_histogram_counts_each_class_of_each_agent() -> None:
    samples = labelled(np.array([0, 1, 1, 2, 2, 2]))
    shards = (np.array([0, 1, 3]), np.array([2, 4, 5]))
    assert label_histogram(samples, shards, 4).tolist() == [[1, 1, 1, 0], [0, 1, 2, 0]]


def test_settings_read_a_bare_name_and_refuse_bad_values() -> None:
    adapter: TypeAdapter[Partition] = TypeAdapter(Partition)
    assert adapter.validate_python("dirichlet") == Dirichlet()
    with pytest.raises(ValidationError, match="greater than 0"):
        adapter.validate_python({"name": "dirichlet", "alpha": 0})
