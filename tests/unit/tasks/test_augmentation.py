import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.normalization import Normalization, channel_statistics


def images_of(number: int, channels: int, height: int, width: int) -> Tensor:
    """Every pixel different from 0, and almost all different from each other."""
    count = number * channels * height * width
    return (torch.arange(count) % 251 + 1).to(torch.uint8).reshape(number, channels, height, width)


def variants(image: Tensor, padding: int, flip: bool) -> dict[tuple[int, int, bool], Tensor]:
    """Every crop and flip of one image (channels, height, width), made pixel by pixel."""
    channels, height, width = image.shape
    result = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = torch.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    source_y, source_x = y + top - padding, x + left - padding
                    if 0 <= source_y < height and 0 <= source_x < width:
                        for channel in range(channels):
                            crop[channel, y, x] = image[channel, source_y, source_x]
            result[top, left, False] = crop
            if flip:
                mirrored = torch.zeros_like(crop)
                for x in range(width):
                    mirrored[:, :, x] = crop[:, :, width - 1 - x]
                result[top, left, True] = mirrored
    return result


@settings(max_examples=12)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(3, 6), st.integers(3, 6), st.integers(0, 2), st.booleans())
def test_every_image_is_one_of_its_own_crops_and_flips(
    number: int, channels: int, height: int, width: int, padding: int, flip: bool
) -> None:
    images = images_of(number, channels, height, width)
    before = images.clone()
    result = Augmentation(crop_padding=padding, flip=flip).apply(images, torch_generator(0, "test"))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)
    for image, changed in zip(images, result, strict=True):
        assert any(torch.equal(changed, variant) for variant in variants(image, padding, flip).values())


def test_all_crops_and_flips_occur_about_equally_often() -> None:
    image = images_of(1, 1, 4, 5)[0]
    result = Augmentation(crop_padding=1, flip=True).apply(image.expand(3600, -1, -1, -1), torch_generator(3, "test"))
    expected = variants(image, 1, True)
    counts = [int((result == variant).flatten(1).all(1).sum()) for variant in expected.values()]
    assert len(counts) == 18
    assert sum(counts) == 3600
    # 200 of each expected, standard deviation 14.
    assert min(counts) > 140
    assert max(counts) < 260


def test_floats_are_cropped_and_flipped_as_bytes_are() -> None:
    images = images_of(4, 3, 6, 6)
    augmentation = Augmentation(crop_padding=2, flip=True)
    as_bytes = augmentation.apply(images, torch_generator(1, "test"))
    as_floats = augmentation.apply(images.float(), torch_generator(1, "test"))
    assert torch.equal(as_bytes.float(), as_floats)


def test_the_stream_decides() -> None:
    images = images_of(16, 1, 8, 8)
    augmentation = Augmentation(crop_padding=2, flip=True)
    first, again, other = (augmentation.apply(images, torch_generator(seed, "test")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_default_changes_nothing_and_takes_any_input() -> None:
    vectors = torch.ones(3, 64)
    assert Augmentation().apply(vectors, torch_generator(0, "test")) is vectors


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \(64,\) are no images"):
        Augmentation(flip=True).apply(torch.ones(3, 64), torch_generator(0, "test"))


def test_statistics_are_those_of_all_pixels_of_a_channel() -> None:
    images = torch.randint(256, (7, 3, 5, 4), generator=torch_generator(0, "test"), dtype=torch.uint8)
    images[:, 2] = 9
    result = channel_statistics(images)
    for channel in range(2):
        pixels = [float(value) / 255 for value in images[:, channel].flatten()]
        mean = sum(pixels) / len(pixels)
        assert result.mean[channel] == pytest.approx(mean, abs=1e-12)
        variance = sum((value - mean) ** 2 for value in pixels) / len(pixels)
        assert result.std[channel] == pytest.approx(variance**0.5, abs=1e-12)
    assert result.std[2] == 1.0


def test_normalized_training_images_have_mean_0_and_deviation_1() -> None:
    images = torch.randint(256, (50, 3, 8, 8), generator=torch_generator(0, "test"), dtype=torch.uint8) // 2
    before = images.clone()
    normalized = channel_statistics(images)(images)
    assert normalized.dtype == torch.float32
    assert torch.equal(images, before)
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normalized.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_only_bytes_are_normalized() -> None:
    normalization = Normalization((0.5,), (0.25,))
    for inputs in (torch.ones(2, 1, 2, 2), torch.ones(2, 5, dtype=torch.int64)):
        assert normalization(inputs) is inputs
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert normalization(white).item() == 2.0
    assert Normalization()(white).item() == 1.0
