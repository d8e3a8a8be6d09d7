"""What a peer publishes, to whom, and how it opens what others have published."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ray_pcasgd.agents.participant import Incoming, Published, Received
from ray_pcasgd.agents.peer_memory import PeerMemory, zeros_for
from ray_pcasgd.records import Read, Row


class PeerMessages(PeerMemory):
    """One that sends its versions to its neighbors, and opens theirs."""

    def partners(self) -> tuple[int, ...]:
        """Return the neighbors that the agent reads at its next step."""
        spec = self.spec
        return spec.recipe.exchange.partners(spec.recipe.seed, spec.agent, self.version, spec.neighbors)

    def receivers(self) -> tuple[int, ...]:
        """Return whom the present version is sent to."""
        spec = self.spec
        if not self.is_running and spec.recipe.exchange.waits_for_partners:
            return spec.receivers  # lest one wait for a partner that has none to send any more
        return spec.recipe.exchange.receivers(spec.recipe.seed, spec.agent, self.version, spec.receivers)

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message."""
        return self.spec.recipe.message_bytes(self.weights.shape[-1], self.buffers.shape[-1])

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent of the present version, and to who is back in place of fragments."""
        sent = self.message_bytes * (len(self.receivers()) if receivers is None else receivers)
        if row.kind == "rejoined" and self.spec.recipe.has_fragments:
            sent += len(row.reads) * 4 * (self.weights.numel() + self.buffers.numel())
        return sent

    def message(self, row: Row | None) -> Published:
        """Return the present version, as it is published."""
        return self._published(self.spec.agent)

    def _published(self, sender: int) -> Published:
        """Return the present version as it is published by ``sender``, whose draws round it."""
        recipe = self.spec.recipe
        if recipe.publishes_whole:
            return self.whole_message
        weights = recipe.sent_weights.fragment(self.shown_weights, (recipe.seed, "weights", sender, self.version))
        return Published(weights, self.buffers, mass=self.mass)

    @property
    def shown_weights(self) -> Tensor:
        """The present version's weights, or what an attacker says that they are; shape (D,)."""
        return self.weights if self.attacker is None else self.attacker.sent(self.version, self.weights)

    @property
    def whole_message(self) -> Published:
        """The present version with all its numbers, for who comes back into a run whose messages hold fragments."""
        return Published(self.spec.recipe.sent_weights.whole(self.weights), self.buffers)

    @property
    def published_direction(self) -> Tensor | None:
        """The newest direction as it is published: at the present version once it is computed, else at the one before.

        ``None`` where no reader needs it.
        """
        if not self.publishes_directions:
            return None
        recipe = self.spec.recipe
        encode = recipe.wire.directions.encode if self.feedback is None else self.feedback.encode
        version = self.version - (self.loss is None)
        # Of the same part as the weights that are predicted with it.
        part = recipe.fragments.cut(self.direction, version + 1 - self.spec.family.direction_lag)
        return encode(part, (recipe.seed, "direction", self.spec.agent, version))

    def note_direction(self) -> None:
        """Take a new direction in where later ones depend on it, whether it is going to be sent or not."""
        if self.feedback is not None:
            _ = self.published_direction

    def incoming(self) -> Incoming:
        """Return what the messages to the agent hold: of weights, fragments or all of them."""
        last, is_in_parts = max(map(self.rounds.last, self.spec.neighbors), default=0), self.spec.recipe.has_fragments
        encoded = {name: None if is_in_parts and name == "weights" else n for name, n in self._encoded.items()}
        numbers = None if is_in_parts else self.weights.numel()
        return super().incoming()._replace(weights=numbers, last_version=last, encoded=encoded)

    @property
    def _encoded(self) -> Mapping[str, int]:
        """Bytes of a message's weights and direction, where these are fewer."""
        wire, numbers = self.spec.recipe.wire, self.spec.recipe.fragments.length(self.weights.numel())
        formats = {"weights": wire.weights, "direction": wire.directions}
        return {name: one.num_bytes(numbers) for name, one in formats.items() if not one.is_plain}

    def outgoing(self) -> Mapping[str, int | None]:
        """Return the bytes of what the agent publishes in a format of fewer of them, by name."""
        whole = {"weights": 4 * self.weights.numel()} if self.spec.recipe.publishes_whole else {}
        return {name: whole.get(name, number) for name, number in self._encoded.items()}

    def example_of(self, name: str) -> Tensor:
        """Return a tensor of the form in which the agent publishes its ``weights``, ``buffers`` or ``direction``."""
        example = super().example_of(name)
        is_whole = name == "buffers" or (name == "weights" and self.spec.recipe.publishes_whole)
        if example.dtype == torch.uint8 or is_whole:
            return example
        return example[: self.spec.recipe.fragments.length(len(example))]

    def starts(self) -> dict[int, Published]:
        """Return version 0 of each neighbor: the numbers are those of the agent itself."""
        if self.spec.recipe.wire.weights.is_plain:
            return dict.fromkeys(self.spec.neighbors, self.message(None))
        return {k: self._published(k) for k in self.spec.neighbors}

    def opened(self, read: Read, published: Published) -> Received:
        """Return a neighbor's version as this agent reads it; one that has left the run has moved nowhere since."""
        recipe, direction = self.spec.recipe, published.direction
        draw = (recipe.seed, "weights", read.neighbor, read.version)
        weights, whole = recipe.sent_weights.opened(published.weights, self.weights, draw)
        if direction is not None:
            direction = self.opened_direction(read, direction) if self.needs_direction(read) else None
        if direction is None and self.publishes_directions:
            direction = zeros_for(weights)
        return Received(read, weights, published.buffers, direction, published.mass, whole=whole)

    def opened_direction(self, read: Read, encoded: Tensor) -> Tensor:
        """Return the direction at a version that is read, zeros where nothing of it has come; shape (D,)."""
        wire, fragments = self.spec.recipe.wire, self.spec.recipe.fragments
        length = fragments.length(self.weights.shape[-1])
        part = wire.directions.opened("direction", encoded, length)
        if fragments.fragments > 1 and len(part) != length:
            raise ValueError(f"its direction has {len(part)} numbers; allowed are {length}")
        return fragments.filled(part, read.version, self._zeros)

    def _predicts(self, read: Read) -> bool:
        return self.spec.recipe.predicts(self.spec.agent, read)

    def needs_direction(self, read: Read) -> bool:
        """Return whether the direction at a version is needed, not its weights alone."""
        return self.spec.recipe.needs_direction(self.spec.agent, read)
