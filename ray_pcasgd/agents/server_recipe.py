"""What all workers and servers of a run share: the rule, the rounds, and what travels of a version in which form."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ray_pcasgd.agents.dense_wire import Draw
from ray_pcasgd.agents.fragments import Fragments
from ray_pcasgd.agents.participant import Training
from ray_pcasgd.agents.wire import Wire, WireFormat
from ray_pcasgd.rules.server import ServerRule


@dataclass(frozen=True, kw_only=True)
class ServerRecipe(Training):
    """What all workers and servers of a run share."""

    rule: ServerRule
    local_steps: tuple[int, ...]
    """Mini-batches of each worker's message."""
    shares: tuple[float, ...] = ()
    """By how much each worker's message counts in a mean; empty: all alike."""
    wire: Wire = field(default_factory=Wire)
    """The formats of what workers and servers send."""

    @property
    def num_workers(self) -> int:
        """P."""
        return len(self.local_steps)

    @property
    def num_servers(self) -> int:
        """Servers that share the parameters."""
        return self.rule.shards

    @property
    def senses_momentum(self) -> bool:
        """Whether the server's optimizer asks how the weights have moved around where workers compute."""
        return self.optimizer.senses_momentum and not self.rule.workers_step

    @property
    def keeps_versions(self) -> bool:
        """Whether a server needs the weights of versions that gradients were computed at."""
        return self.rule.needs_gap or self.senses_momentum

    def part(self, server: int, num_parameters: int) -> slice:
        """Return the parameters of a server, counted from 0; the parts differ in size by one at most."""
        share, larger = divmod(num_parameters, self.num_servers)
        start = server * share + min(server, larger)
        return slice(start, start + share + (server < larger))

    def sizes(self, num_parameters: int) -> list[int]:
        """Return the number of parameters of each server."""
        parts = [self.part(server, num_parameters) for server in range(self.num_servers)]
        return [part.stop - part.start for part in parts]

    def parts_of_message(self, vector: Tensor) -> list[Tensor]:
        """Return what a worker sends, vectors of shape (D,) one after another, server by server: its part of each."""
        vectors = vector.chunk(self.rule.message_vectors)
        sizes = self.sizes(vectors[0].numel())
        of_servers = zip(*(one.split_with_sizes(sizes) for one in vectors), strict=True)
        return [part for parts in of_servers for part in parts]

    @cached_property
    def fragments(self) -> Fragments:
        """Into which parts each server's numbers are cut, of which a worker sends one at a time, and is answered it."""
        return Fragments(self.wire.fragments, None)

    @property
    def has_fragments(self) -> bool:
        """Whether there is more than one."""
        return self.wire.fragments > 1

    def published(self, server: int, version: int, weights: Tensor) -> Tensor:
        """Return a server's version, shape (D,), as it is published: in fragments, each of them by itself."""
        form, fragments = self.wire.weights, self.fragments
        if form.is_plain:
            return weights
        parts = [fragments.cut(weights, number) for number in range(fragments.fragments)]
        whats = ["weights", *(f"weights {number}" for number in range(1, fragments.fragments))]
        return torch.cat(
            [form.encode(part, (self.seed, what, server, version)) for part, what in zip(parts, whats, strict=True)]
        )

    def fragment_of(self, published: Tensor, number: int) -> Tensor:
        """Return one fragment of what a server has published, as it travels."""
        fragments = self.fragments
        if self.wire.weights.is_plain:
            return fragments.cut(published, number)
        return published.chunk(fragments.fragments)[number]

    def opened(self, published: Tensor, numbers: int) -> Tensor:
        """Return what a worker reads of a server that has so many numbers: one fragment, or all of them, shape (D,).

        Raises:
            ValueError: it is neither.

        """
        form, fragments, length = self.wire.weights, self.fragments, self.fragments.length(numbers)
        each = length if form.is_plain else form.num_bytes(length)
        whole = numbers if form.is_plain else fragments.fragments * each
        if len(published) == each:
            return form.opened("weights", published, length)
        if len(published) != whole:
            unit = "numbers" if form.is_plain else "bytes"
            also = f" and {whole}" if self.has_fragments else ""
            raise ValueError(f"its weights have {len(published)} {unit}; allowed are {each}{also}")
        if form.is_plain:
            return published
        parts = [form.opened("weights", part, length) for part in published.chunk(fragments.fragments)]
        return torch.cat(parts)[:numbers]

    def bytes_of_version(self, numbers: int) -> int:
        """Return the bytes of all fragments of a server's version that has so many numbers."""
        form, fragments = self.wire.weights, self.fragments
        return (
            form.num_bytes(numbers)
            if form.is_plain
            else fragments.fragments * form.num_bytes(fragments.length(numbers))
        )

    @property
    def format_of_workers(self) -> WireFormat:
        """The format of what workers send, part by part."""
        return self.wire.weights if self.rule.sends_weights else self.wire.directions

    def draw_of_worker(self, worker: int, version: int, place: int) -> Draw:
        """Return what a part of a worker's message is rounded by, counted from 0 as ``parts_of_message`` has them."""
        what = "weights" if self.rule.sends_weights else "direction"
        return self.seed, f"{what} {place}" if place else what, worker, version
