"""Makes an executable schedule of a run's rows, though agents die, clocks differ and live staleness is an estimate."""

from collections.abc import Iterator, Sequence
from typing import get_args

from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.records import Event
from ray_pcasgd.records import Row
from ray_pcasgd.rules.base import Reading
from ray_pcasgd.schedule.completing import with_unreported
from ray_pcasgd.schedule.trace import in_causal_order
from ray_pcasgd.schedule.trace import published
from ray_pcasgd.agents.server import ServerRecipe


def executable(rows: Sequence[Row], plan: Plan) -> tuple[list[Row], list[Event]]:
    """Return a run's rows as they can be executed, and remarks on what was changed."""
    known, events = _completed(rows, plan) if plan.is_live and plan.servers else (list(rows), [])
    known, left_out = _without_unreported_reads(known)
    if plan.is_live:
        known = in_causal_order(known, with_directions=plan.reading in get_args(Reading))
    return known, [*events, *left_out]


def _completed(rows: Sequence[Row], plan: Plan) -> tuple[list[Row], list[Event]]:
    """Return the rows with those of workers that were killed before they reported them."""
    recipe = plan.specs[0].recipe
    assert isinstance(recipe, ServerRecipe)
    completed = with_unreported(rows, plan.servers, recipe.rule.gathering.cancels, recipe.rule.workers_step)
    added = completed[len(rows) :]
    if not added:
        return completed, []
    names = _names(row.agent for row in added)
    detail = f"{len(added)} unreported steps of {names} were restored from the gradients that servers took"
    return completed, [Event("rows_completed", added[0].agent, added[0].step, detail)]


def _without_unreported_reads(rows: Sequence[Row]) -> tuple[list[Row], list[Event]]:
    """Return the rows without reads of versions whose steps were never reported."""
    known = published(rows)
    unknown = [read for row in rows for read in row.reads if read[:2] not in known]
    if not unknown:
        return list(rows), []
    names = _names(read.neighbor for read in unknown)
    detail = f"{len(unknown)} reads of unreported versions of {names} are left out of the schedule"
    kept = [row._replace(reads=tuple(read for read in row.reads if read[:2] in known)) for row in rows]
    return kept, [Event("reads_unrecorded", unknown[0].neighbor, unknown[0].version, detail)]


def _names(agents: Iterator[int]) -> str:
    return ", ".join(f"agent {agent}" for agent in sorted(set(agents)))
