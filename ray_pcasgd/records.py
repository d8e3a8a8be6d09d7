"""The records that all layers share: what a schedule says, what a message holds, what a step reports.

Notation: ``N`` agents, ``D`` parameters, ``F`` values in the buffers that are averaged (BatchNorm statistics),
``K`` neighbors of one agent. Version ``v`` of agent ``k`` is its state after ``v`` steps; version 0 is the
common start. Staleness and age are counted in steps, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the scheduler deals rows out, and needs no tensor for that
    from torch import Tensor


class Read(NamedTuple):
    """One neighbor's version as one step reads it."""

    neighbor: int
    version: int
    staleness: int
    """Steps that the neighbor has taken since that version, at the moment of the read (tau; 0 is fresh)."""
    age: int
    """Steps that the reader itself has taken since that version was sent."""


RowKind = Literal["step", "cancelled", "passive", "rejoined"]
"""``step``: a step that was taken. ``cancelled``: a worker's gradient that was given up at ``end``, and that is
never read; the worker still goes on to its next version. ``passive``: an agent of AD-PSGD was averaged with, at the
instant ``end`` and while it computed; so it came to its next version without a step of its own. Live, ``start`` and
``ready`` are those of the step for which its partner asked, by that one's clock: should the partner be lost before it
reports the step, a replay still knows when it asked. ``rejoined``: a lost agent
came back into the run, as the mean of the versions that it read, or as it was where it read none; the versions between
its last one and this were never published, or are lost."""


class Row(NamedTuple):
    """One step of one agent: the unit of a schedule.

    Between peers: from ``start`` to ``ready`` the agent computes its gradient at its version ``step``; from ``ready``
    to ``end`` it waits for its barrier; at ``end`` it reads, applies its rule and publishes version ``step + 1``.

    A worker reads its server's version at ``start``, computes until ``ready``, which is its ``end``, and publishes
    its version ``step + 1``, which is its gradient number ``step + 1``. A server's row is an instant, when it
    reads gradients: a worker may stand in its reads several times, with different versions. Of a gradient, staleness
    and age are the server's steps since the version that it was computed at.
    """

    agent: int
    step: int
    start: float
    ready: float
    end: float
    reads: tuple[Read, ...]
    """Sorted by neighbor and version. A neighbor that is not here is not read: its mixing weight goes to the agent
    itself."""
    kind: RowKind = "step"
    held: tuple[int, ...] = ()
    """Push-sum: who was not sent the agent's version ``step``, since it could not take its share, rising; the agent
    itself has kept those shares."""

    @property
    def waited_seconds(self) -> float:
        """How long the agent has waited within the row; averaged with at an instant, it has not."""
        return 0.0 if self.kind == "passive" else self.end - self.ready


class Version(NamedTuple):
    """What one version of one agent holds for its neighbors."""

    weights: Tensor
    """Shape (D,), float32."""
    buffers: Tensor
    """Buffers that are averaged, shape (F,), float32; F may be 0."""


class Own(NamedTuple):
    """What a rule sees of its own agent at one step."""

    weights: Tensor
    """x_i, shape (D,)."""
    direction: Tensor
    """u_i, shape (D,): the local optimizer's update direction at ``weights``."""
    mixing: Tensor
    """w_ii, shape ()."""
    step_size: Tensor
    """eta at this step, shape ()."""
    coefficients: dict[str, Tensor]
    """The rule's own numeric settings at this step (``Rule.coefficients``), each of shape ()."""
    led: tuple[Tensor, ...] = ()
    """Where the agent combines first, so that ``direction`` is zeros: the one that has led to ``weights``, shape (D,),
    the mean of its last round; else empty."""

    public: tuple[Tensor, ...] = ()
    """Where agents send differences: what the agent's readers know of it, its public copy, shape (D,); else empty."""

    @property
    def newest_direction(self) -> Tensor:
        """The agent's newest direction, shape (D,): what it usually does, by which a rule may judge others."""
        return self.led[0] if self.led else self.direction


class Reads(NamedTuple):
    """What a rule sees of its K neighbors at one step, sorted by neighbor, padded with mixing weight 0.

    Tuples of K tensors rather than one stacked tensor: what lies in shared memory is then never copied.
    """

    weights: tuple[Tensor, ...]
    """x_k(v), K tensors of shape (D,)."""
    directions: tuple[Tensor, ...]
    """u_k(v), K tensors of shape (D,), zeros where staleness is 0; of shape (0,) unless the rule needs them."""
    drift: tuple[Tensor, ...]
    """The agent's own mean displacement over its last ``age`` steps, K tensors like ``directions``."""
    mixing: Tensor
    """w_ik, shape (K,)."""
    staleness: Tensor
    """tau_ik in steps, shape (K,), float32."""
    age: Tensor
    """age_ik in steps, shape (K,), float32."""
    reliable: Tensor
    """Whether k is in R_i, shape (K,), bool."""


class IndexedReads(NamedTuple):
    """What a rule sees of the neighbors of B agents that step as one: where these versions lie in one table.

    An agent that has fewer than K neighbors, or does not read one, has a mixing weight of 0 there.
    """

    weights: Tensor
    """Published weights, shape (V, D)."""
    directions: Tensor
    """The directions at them, shape (V, D); unless the rule needs them of any shape."""
    places: Tensor
    """Which row is read, shape (B, K), int64."""
    velocity: Tensor
    """The agents' own mean velocities, shape (B, D), of which their drift follows; unless the rule needs it (B, 0)."""
    mixing: Tensor
    """w_ik, shape (B, K)."""
    staleness: Tensor
    """tau_ik in steps, shape (B, K), float32."""
    age: Tensor
    """age_ik in steps, shape (B, K), float32."""
    reliable: Tensor
    """Whether k is in R_i, shape (B, K), bool."""


class Update(NamedTuple):
    """What a rule returns: the new weights, shape (D,), and its measures, each of shape ()."""

    weights: Tensor
    measures: dict[str, Tensor]
    of_neighbors: Mapping[str, Tensor] = {}
    """Measures of each neighbor, each of shape (K,)."""


def of_neighbor(measure: str, neighbor: int) -> str:
    """Return the name of a measure of one neighbor, as a step's report has it."""
    return f"{measure} {neighbor}"


class Snapshot(NamedTuple):
    """An agent's replica as one version left it, for evaluation and for the model file."""

    weights: Tensor
    buffers: Tensor
    local: dict[str, Tensor]
    """By name the agent's own tensors: buffers that are not averaged, and frozen parameters that have changed."""


class StepReport(NamedTuple):
    """What an engine tells the trainer about one executed row."""

    row: Row
    progress: int
    """Steps taken so far in the sense of the run's ``num_steps``: a peer's own, or, at a server, the gradients that
    it has taken over the number of its workers, rounded down."""
    loss: float
    """Mini-batch training loss at version ``row.step``; at a server the mean over the gradients of its step."""
    measures: dict[str, float]
    """The rule's measures: theta, predicting, ...; those of one neighbor under the name of ``of_neighbor``."""
    bytes_sent: int
    wall_seconds: float
    """Real seconds since the run's first step, as the executing process saw them."""
    snapshot: Snapshot | None = None
    """The replica after the row, where the run asked for it; a server's part of it."""
    evaluation: dict[str, float] | None = None
    """The agent's own test metrics after the row, where the run asked for them."""
    messages_held: int | None = None
    """Messages in the agent's mailbox after the row, which later rows may read; ``None`` without actors."""
    bytes_in_flight: int | None = None
    """Of the agent's messages that their readers are not known to have as the row is reported; a live peer sends the
    row's own version after that. ``None`` where it was not measured: without actors, and between hand-ins."""
    waited_seconds: float | None = None
    """Real seconds that a live agent which waits before its row has waited there, as it measured them; ``None`` where
    the rows' times say it. Between rows it also evaluates and sends."""


EventKind = Literal[
    "agent_isolated",
    "agent_left",
    "agent_lost",
    "agent_returned",
    "agent_started",
    "cluster_joined",
    "command_delay",
    "command_heal",
    "command_isolate",
    "command_join",
    "command_leave",
    "evaluation_failed",
    "evaluation_lost",
    "evaluator_lost",
    "file_not_written",
    "folder_not_locked",
    "interrupted",
    "mass_low",
    "message_lost",
    "message_rejected",
    "model_format",
    "model_not_kept",
    "model_skipped",
    "neighbor_behind",
    "neighbor_lost",
    "neighbor_silent",
    "not_published",
    "noticed",
    "reads_unrecorded",
    "rows_completed",
    "run_begins_anew",
    "run_restarted",
    "run_resumed",
    "schedule_not_checked",
    "scheduler_lost",
    "scheduler_started",
    "state_not_kept",
    "state_skipped",
    "storage_failed",
    "waiting_for_resources",
]
"""What can happen in a run; a metric counts each of them from 0 on."""


class Event(NamedTuple):
    """An event of a run that must not go unnoticed."""

    kind: EventKind
    agent: int
    step: int
    detail: str
