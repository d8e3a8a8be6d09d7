"""Samples of the user's own data sets: which are kept in memory, and which are drawn anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.tasks.drawing import are_alike, generator_states, nature_of, seeded
from ray_pcasgd.tasks.samples import AnySamples, MapSamples, Samples
from ray_pcasgd.tasks.trees import Batch


class CustomSamples(NamedTuple):
    """Samples, and what the user should know about them."""

    samples: AnySamples
    remark: str | None = None


def custom_samples(
    setting: str, dataset: Any, in_memory: bool | None, collate: Callable[[list[Any]], Batch] | None = None
) -> CustomSamples:
    """Return the samples of a map-style data set, as ``task.data.in_memory`` says; ``setting`` is train or test.

    Raises:
        ValueError: Its items are random in a way that no seed decides.

    """
    name, drawn = f"task.data.{setting}", MapSamples(dataset, collate=collate)
    if collate is not None or not drawn.are_pairs:
        return _collated(name, drawn, in_memory)
    nature, place = nature_of(drawn.take, len(drawn))
    if nature == "unseeded" and not in_memory:
        raise _unseeded(name, place)
    kept: Samples | None = None
    if in_memory or (in_memory is None and (setting == "test" or nature == "fixed")):
        kept, draws = _kept(drawn)
        if nature == "fixed" and not draws:
            return CustomSamples(kept)
        if in_memory or setting == "test":
            return CustomSamples(kept, f"{name}: its items are random; one draw of each is kept")
    elif nature == "fixed":
        return CustomSamples(drawn)
    labels = drawn.labels()
    if labels is None and in_memory is None:
        # Whoever did not say that the samples are too many for it may have them taken once.
        labels = (kept or _kept(drawn)[0]).labels()
    return CustomSamples(MapSamples(dataset, labels, is_random=True), _how(name))


def _collated(name: str, drawn: MapSamples, in_memory: bool | None) -> CustomSamples:
    """Return samples whose batches are more than stacked pairs: they are put together whenever they are drawn.

    What is kept of them, only on request, are the items.
    """
    if in_memory:
        with seeded(stream_seed(0, "kept items")):
            drawn = drawn.kept()
    nature, place = nature_of(drawn.take, len(drawn))
    if nature == "unseeded":
        raise _unseeded(name, place)
    if nature == "fixed":
        return CustomSamples(drawn)
    drawn.is_random = True
    return CustomSamples(drawn, _how(name))


def _how(name: str) -> str:
    how = "each batch draws them anew" if name.endswith("train") else "every evaluation has the same draws of them"
    return f"{name}: its items are random; {how}"


def _unseeded(name: str, place: int) -> ValueError:
    return ValueError(
        f"{name}: item {place} differs each time it is taken, whatever the seed: it has a generator of its own; "
        "allowed are draws from the global generators of Python, NumPy and PyTorch, or task.data.in_memory = true, "
        "which keeps one draw of each item"
    )


def _kept(samples: MapSamples) -> tuple[Samples, bool]:
    """Return all samples, the same in every run, and whether one of them is drawn at random."""
    with seeded(stream_seed(0, "kept items")):
        before = generator_states()
        kept = samples.in_memory()
        moved = generator_states() != before
    if not moved:
        return kept, False
    # Or else they seed the generators themselves.
    with seeded(stream_seed(0, "kept items", 1)):
        again = samples.in_memory()
    return kept, not are_alike((kept.inputs, kept.targets), (again.inputs, again.targets))
