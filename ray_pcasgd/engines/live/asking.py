"""Whom a live peer asks for a whole copy: who sends it differences, one of which it has lost."""

ASK_AGAIN = 8
"""Refusals of a sender's differences after which it is asked once more: its answer takes about a round to come."""


class Asking:
    """Of which senders a peer can take in no further differences."""

    def __init__(self) -> None:
        self._refused: dict[int, int] = {}
        """By sender, how often something of it could not be taken in since something could."""

    def refuse(self, sender: int) -> bool:
        """Take in that something of a sender could not be taken in; return whether to ask it now."""
        number = self._refused[sender] = self._refused.get(sender, 0) + 1
        return number % ASK_AGAIN == 1

    def is_asked(self, sender: int) -> bool:
        """Return whether a sender has been asked, and its whole copy was not taken in yet."""
        return sender in self._refused

    def follow(self, sender: int) -> None:
        """Take in that something of a sender was taken in, or that the sender comes back with a whole copy."""
        self._refused.pop(sender, None)
