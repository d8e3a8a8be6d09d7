import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.samples import MapSamples, Samples


def numbered(count: int) -> Samples:
    """Return samples whose input and target tell their index."""
    return Samples(torch.arange(count).reshape(-1, 1).float(), torch.arange(count))


@settings(max_examples=80)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_every_epoch_covers_the_shard_exactly_once(shard_size: int, batch_size: int, seed: int) -> None:
    shard = np.arange(100, 100 + 2 * shard_size, 2)
    batches = Batches(numbered(200), shard, batch_size, seed, agent=1)
    num_batches = -(-3 * shard_size // batch_size)
    drawn = []
    for _ in range(num_batches):
        inputs, targets = batches.next()
        assert inputs.shape == (batch_size, 1)
        assert torch.equal(inputs[:, 0].long(), targets)
        drawn += targets.tolist()
    for epoch in range(3):
        assert sorted(drawn[epoch * shard_size : (epoch + 1) * shard_size]) == shard.tolist()


def test_each_epoch_has_another_order() -> None:
    batches = Batches(numbered(30), np.arange(30), 30, 0, 0)
    first, second = batches.next()[1], batches.next()[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(30))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 40))
def test_a_restart_from_the_state_goes_on_with_the_same_batches(shard_size: int, batch_size: int, taken: int) -> None:
    def start() -> Batches:
        return Batches(numbered(20), np.arange(shard_size), batch_size, 5, 2)

    whole = start()
    for _ in range(taken):
        whole.next()
    resumed = start()
    resumed.restore(pickle.loads(pickle.dumps(whole.state())))
    for _ in range(5):
        assert torch.equal(whole.next()[1], resumed.next()[1])


def test_a_batch_can_be_made_from_its_number_in_any_order() -> None:
    batches = Batches(numbered(7), np.arange(7), 3, 0, 0)
    in_order = [batches.next()[1].tolist() for _ in range(10)]
    assert [batches.at(number)[1].tolist() for number in (9, 0, 4)] == [in_order[n] for n in (9, 0, 4)]


def test_agents_purposes_and_seeds_have_their_own_orders() -> None:
    orders = [
        tuple(Batches(numbered(50), np.arange(50), 50, seed, agent, purpose).next()[1].tolist())
        for seed, agent, purpose in ((0, 0, "batches"), (1, 0, "batches"), (0, 1, "batches"), (0, 0, "probes"))
    ]
    assert len(set(orders)) == 4


def test_a_shard_on_its_own_gives_the_batches_that_its_indices_give() -> None:
    """An agent may be sent its shard alone instead of all samples and its indices."""
    samples, shard = numbered(40), np.array([3, 5, 8, 13, 21, 34])
    from_whole = Batches(samples, shard, 4, 0, 0)
    alone = Batches(samples.subset(shard), np.arange(len(shard)), 4, 0, 0)
    for _ in range(5):
        assert torch.equal(from_whole.next()[1], alone.next()[1])


def test_images_are_augmented_and_normalized_the_same_way_after_a_restart() -> None:
    images = (torch.arange(12 * 16) % 256).to(torch.uint8).reshape(12, 1, 4, 4)
    samples = Samples(images, torch.arange(12))

    def start(augmentation: Augmentation) -> Batches:
        return Batches(samples, np.arange(12), 4, 0, 0, "batches", augmentation, Normalization((0.5,), (0.5,)))

    batches = start(Augmentation(crop_padding=1, flip=True))
    seen = [batches.next() for _ in range(4)]
    resumed = start(Augmentation(crop_padding=1, flip=True))
    resumed.restore(2)
    for expected in seen[2:]:
        assert all(torch.equal(a, b) for a, b in zip(expected, resumed.next(), strict=True))
    plain_inputs, plain_targets = start(Augmentation()).next()
    assert torch.equal(plain_targets, seen[0][1])
    assert torch.equal(plain_inputs, (images[plain_targets].float() / 255 - 0.5) / 0.5)
    assert not torch.equal(plain_inputs, seen[0][0])


def test_each_batch_is_augmented_by_its_own_draws() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8)
    batches = Batches(Samples(image, torch.zeros(1)), np.arange(1), 32, 0, 0, augmentation=Augmentation(crop_padding=2))
    first, second = batches.next()[0], batches.next()[0]
    assert not torch.equal(first, second)


def test_a_map_style_data_set_gives_the_batches_that_tensors_give() -> None:
    samples = numbered(20)
    mapped = MapSamples(list(zip(samples.inputs, samples.targets.tolist(), strict=True)))
    shard = np.arange(3, 17)
    from_tensors, from_items = Batches(samples, shard, 5, 0, 0), Batches(mapped, shard, 5, 0, 0)
    for _ in range(6):
        assert all(torch.equal(a, b) for a, b in zip(from_tensors.next(), from_items.next(), strict=True))


def test_an_empty_shard_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="agent 3 has no samples"):
        Batches(numbered(5), np.array([], dtype=np.int64), 2, 0, agent=3)
    with pytest.raises(ValueError, match="batch_size = 0"):
        Batches(numbered(5), np.arange(5), 0, 0, 0)
