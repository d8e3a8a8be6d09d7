"""A server's table of its workers' gradients, over which all workers count alike however many each has sent.

``(1/n) sum_i (1/b_i) G_i``, G_i the sum of worker i's b_i gradients in the table, n the workers that have any there.
Pure: a table is tensors, and there is no ``if`` on them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Table(NamedTuple):
    """All workers' gradients of which a server's next update is made."""

    sums: Tensor
    """G, shape (P, D)."""
    counts: Tensor
    """b, shape (P,)."""
    updates: Tensor
    """Updates since the table was begun, shape (): 0 before the first one."""


class Entry(NamedTuple):
    """One gradient for a table."""

    worker: int
    gradient: Tensor
    """Shape (D,)."""
    staleness: Tensor
    """The server's updates since the weights of the gradient, shape ()."""


def empty_table(weights: Tensor, num_workers: int) -> Table:
    """Return a table without gradients, for weights of shape (D,)."""
    numbers = weights.new_zeros(num_workers)
    return Table(weights.new_zeros((num_workers, len(weights))), numbers, weights.new_zeros(()))


def begun(table: Table, entries: Sequence[Entry]) -> Table:
    """Return a new table of these gradients alone (Malenia SGD)."""
    added, numbers = _added(table, entries)
    return Table(added, numbers, torch.ones_like(table.updates))


def replaced(table: Table, entries: Sequence[Entry]) -> Table:
    """Return the table in which these gradients take the places of their workers' (IA2SGD)."""
    added, numbers = _added(table, entries)
    sums = torch.where(numbers[:, None] > 0, added, table.sums)
    return Table(sums, torch.where(numbers > 0, numbers, table.counts), table.updates + 1)


def folded(table: Table, entries: Sequence[Entry]) -> Table:
    """Return the table with one more gradient, or a new one of these gradients (Ringleader ASGD).

    It is one more where it comes alone, and its worker has had no new weights since the table was begun: then it is
    late by as many updates as there were since. With one worker every gradient is a table.
    """
    added, numbers = _added(table, entries)
    is_alone = len(entries) == 1 and len(table.counts) > 1
    is_more = (table.updates > 0) & (entries[0].staleness >= table.updates) & is_alone
    sums = torch.where(is_more, table.sums, 0.0) + added
    return Table(sums, torch.where(is_more, table.counts, 0.0) + numbers, torch.where(is_more, table.updates, 0.0) + 1)


def mean_of_workers(table: Table) -> Tensor:
    """Return the mean over the workers of their gradients' means, shape (D,)."""
    means = table.sums / table.counts.clamp(min=1)[:, None]
    return means.sum(0) / (table.counts > 0).sum()


def _added(table: Table, entries: Sequence[Entry]) -> tuple[Tensor, Tensor]:
    """Return the sums of gradients by worker, in their order, and their numbers."""
    sums, counts = torch.zeros_like(table.sums), torch.zeros_like(table.counts)
    for one in entries:
        sums[one.worker] += one.gradient
        counts[one.worker] += 1
    return sums, counts
