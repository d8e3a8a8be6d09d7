"""Makes an executable schedule of a run's rows, though agents die, clocks differ and live staleness is an estimate."""

from collections.abc import Iterator, Sequence
from typing import get_args

from ray_pcasgd.agents.worker import ServerRecipe
from ray_pcasgd.records import Event, Row
from ray_pcasgd.rules.base import Reading
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.schedule.completing import with_unreported
from ray_pcasgd.schedule.trace import in_causal_order, published


def replayable(rows: Sequence[Row], plan: Plan) -> tuple[list[Row], list[Event]]:
    """Return a run's rows as they can be executed, and remarks on what was changed."""
    known, events = _completed(rows, plan) if plan.is_live and plan.servers else (list(rows), [])
    known, after_gaps = _without_rows_after_gaps(known) if plan.is_live else (known, [])
    known, left_out = _without_unreported_reads(known)
    if plan.is_live:
        known = in_causal_order(known, with_directions=plan.reading in get_args(Reading))
    return known, [*events, *after_gaps, *left_out]


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


def _without_rows_after_gaps(rows: Sequence[Row]) -> tuple[list[Row], list[Event]]:
    """Return the rows without those of an agent that follow one which it was killed before reporting.

    So it is where others average with an agent that is in the middle of an evaluation. From where it has come back,
    its rows count again.
    """
    next_steps: dict[int, int] = {}
    dropped = []
    for row in sorted(rows, key=lambda row: row.step):
        if row.step > next_steps.get(row.agent, 0) and row.kind != "rejoined":
            dropped.append(row)
        else:
            next_steps[row.agent] = row.step + 1
    if not dropped:
        return list(rows), []
    gone = {row[:2] for row in dropped}
    names = _names(row.agent for row in dropped)
    detail = f"{len(dropped)} steps of {names}, after a step that was not reported, are left out of the schedule"
    return [row for row in rows if row[:2] not in gone], [
        Event("reads_unrecorded", dropped[0].agent, dropped[0].step, detail)
    ]


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
