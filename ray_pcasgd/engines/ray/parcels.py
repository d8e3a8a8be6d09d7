"""Parcels in Ray's object store, and what contents weigh."""

from typing import Any

from ray_pcasgd.engines.messages import Contents


class Stored(list[Any]):
    """A parcel in the object store: one reference. What travels is a list of it, and nothing else."""

    def __init__(self, reference: Any, num_bytes: int) -> None:
        super().__init__([reference])
        self.num_bytes = num_bytes
        """Of the array that the reference stands for; only its sender knows them before it is fetched."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def bytes_of(contents: Contents | None) -> int:
    """Return the bytes of what this process has published, in the form in which it travels."""
    if contents is None:
        return 0
    parcels = (parcel for parcel in contents[:3] if parcel is not None)
    arrays = sum(parcel.num_bytes if isinstance(parcel, Stored) else parcel.nbytes for parcel in parcels)
    return arrays + (0 if contents.extra is None else contents.extra.num_bytes)
