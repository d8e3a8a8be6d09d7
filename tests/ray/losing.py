"""A model that loses a message on the way: in the process of one live agent, between two of its reads."""

import gc
import time

from torch import Tensor, nn

from ray_pcasgd.engines.ray.actor import Actor

FREE = 10
"""Forward passes in training before that."""


class Losing(nn.Module):
    """As its agent 0 computes, waits for the next version of agent 1 and takes it out of the mailbox, once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += self.training
        if self.training and self.passes == FREE:
            # Besides, Ray's handle of the class counts as one in the driver's process.
            actors = [one for one in gc.get_objects() if isinstance(one, Actor) and hasattr(one, "participant")]
            for actor in actors:
                if actor.spec.agent == 0:
                    lose_next(actor, 1)
        outputs: Tensor = self.linear(inputs)
        return outputs


def lose_next(actor: Actor, sender: int) -> None:
    copies = actor.participant.copies
    assert copies is not None
    lost = copies.version(sender) + 1
    # Its sender does not wait for this agent's present step before it takes its own.
    while actor.mailbox.get(sender, lost) is None:
        time.sleep(0.001)
    with actor.changed:
        actor.mailbox.discard(sender, lost)
