"""How the training samples are dealt to the agents: disjoint shards that cover all of them."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.tasks.samples import AnySamples

Shards = tuple[np.ndarray, ...]
"""For each agent the indices of its samples, int64, rising."""


class _Partition(Settings, ABC):
    def split(self, samples: AnySamples, num_agents: int, seed: int) -> Shards:
        """Return disjoint, non-empty shards that cover all samples, one for each agent.

        Raises:
            ValueError: There are more agents than samples, or the samples do not allow such a partition.

        """
        if not 1 <= num_agents <= samples.num_units:
            what = "the training samples" if samples.num_units == len(samples) else "the row groups of streamed files"
            raise ValueError(f"num_agents = {num_agents}: allowed are 1 to {samples.num_units}, {what}")
        shards = self._shards(samples, num_agents, generator(seed, "partition"))
        return tuple(np.sort(shard) for shard in shards)

    @abstractmethod
    def _shards(self, samples: AnySamples, num_agents: int, random: np.random.Generator) -> list[np.ndarray]: ...


class IID(_Partition):
    """Shuffled and cut into shards whose sizes differ by at most 1."""

    name: Literal["iid"] = "iid"

    def _shards(self, samples: AnySamples, num_agents: int, random: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(random.permutation(samples.num_units), num_agents)


class Dirichlet(_Partition):
    """Each class is dealt to the agents in proportions drawn from a symmetric Dirichlet distribution.

    The form for finite data sets of the label skew of Hsu, Qi, Brown (2019), as in Yurochkin et al. (ICML 2019).
    Shard sizes differ too. **Choice**: an agent left with fewer than ``min_samples`` takes the rest from the agent
    that has most at that moment, so that every draw succeeds, instead of drawing anew until one does.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.3, gt=0)
    """Concentration: towards 0 a class goes to one agent, towards infinity to all alike."""
    min_samples: int | None = Field(None, ge=1)
    """The fewest samples that an agent may have; not given: 10, or an equal share where that is less."""

    def _shards(self, samples: AnySamples, num_agents: int, random: np.random.Generator) -> list[np.ndarray]:
        labels = _required_labels(samples, self.name)
        limit = len(labels) // num_agents
        fewest = min(10, limit) if self.min_samples is None else self.min_samples
        if fewest > limit:
            raise ValueError(
                f"partition.min_samples = {self.min_samples}: allowed are 1 to {limit} "
                f"for {num_agents} agents and {len(labels)} samples"
            )
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(num_agents, self.alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for agent, part in enumerate(np.split(members, cuts)):
                owner[part] = agent
        self._top_up(owner, num_agents, fewest, random)
        return [np.flatnonzero(owner == agent) for agent in range(num_agents)]

    def _top_up(self, owner: np.ndarray, num_agents: int, fewest: int, random: np.random.Generator) -> None:
        sizes = np.bincount(owner, minlength=num_agents)
        for agent in range(num_agents):
            while sizes[agent] < fewest:
                richest = int(sizes.argmax())
                owner[random.choice(np.flatnonzero(owner == richest))] = agent
                sizes[richest] -= 1
                sizes[agent] += 1


class ByLabel(_Partition):
    """Each agent holds samples of ``labels_per_agent`` labels only, the pathological split of McMahan et al. (2017).

    **Choice**: labels are dealt in turn, to agents that do not hold them yet, and a label's samples are shared evenly
    by its holders, so that no shard runs over the border between two labels.
    """

    name: Literal["by-label"] = "by-label"
    labels_per_agent: int | None = Field(None, ge=1)
    """How many different labels each agent holds; not given: 2, or as many as it takes for few agents to cover all."""

    def _shards(self, samples: AnySamples, num_agents: int, random: np.random.Generator) -> list[np.ndarray]:
        labels = _required_labels(samples, self.name)
        classes, counts = np.unique(labels, return_counts=True)
        each = self._labels_of_each(len(classes), num_agents)
        holders = self._deal(len(classes), num_agents, each, random)
        parts: list[list[np.ndarray]] = [[] for _ in range(num_agents)]
        for label, count, agents in zip(classes, counts, holders, strict=True):
            if count < len(agents):
                raise ValueError(
                    f"partition.labels_per_agent = {each}: label {label} has {count} samples for {len(agents)} agents; "
                    "allowed is at least one for each"
                )
            members = random.permutation(np.flatnonzero(labels == label))
            for agent, part in zip(agents, np.array_split(members, len(agents)), strict=True):
                parts[agent].append(part)
        return [np.concatenate(part) for part in parts]

    def _labels_of_each(self, num_classes: int, num_agents: int) -> int:
        fewest = -(-num_classes // num_agents)
        each = min(max(2, fewest), num_classes) if self.labels_per_agent is None else self.labels_per_agent
        if not fewest <= each <= num_classes:
            raise ValueError(
                f"partition.labels_per_agent = {each}: allowed are {fewest} to {num_classes}, so that {num_agents} "
                f"agents cover {num_classes} labels"
            )
        return each

    def _deal(self, num_classes: int, num_agents: int, each: int, random: np.random.Generator) -> list[list[int]]:
        """Return the holders of each label; the numbers of holders differ by at most 1."""
        holders: list[list[int]] = [[] for _ in range(num_classes)]
        for agent in range(num_agents):
            # A stable sort by how often a label was dealt keeps the random order among equals.
            order = sorted(random.permutation(num_classes), key=lambda label: len(holders[label]))
            for label in order[:each]:
                holders[label].append(agent)
        return holders


Partition = Annotated[
    Annotated[IID | Dirichlet | ByLabel, Field(discriminator="name")],
    BeforeValidator(from_name),
]
"""One of the partitions, by its ``name``."""


def label_histogram(samples: AnySamples, shards: Shards, num_classes: int) -> np.ndarray:
    """Return how many samples of each class each agent holds, int64 of shape (agents, classes).

    Raises:
        ValueError: The samples have no labels.

    """
    labels = _required_labels(samples, "label histogram")
    return np.stack([np.bincount(labels[shard], minlength=num_classes) for shard in shards])


def _required_labels(samples: AnySamples, purpose: str) -> np.ndarray:
    labels = samples.labels()
    if labels is None:
        raise ValueError(
            f"partition.name = {purpose!r}: this data set has no class label for each sample; allowed is 'iid'"
        )
    return labels
