"""The study's page and its picture, made from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.differences import quantile
from experiments.rivals import claims
from experiments.rivals.study import CHOICE, METHODS, SHARDS, speeds_of
from experiments.slow_and_stale.page import mean_curve, seconds_to
from experiments.studies import machine, percent
from ray_pcasgd.report.drawing import as_svg, in_percent, legend, line, name_axes, new_figure, style

NEAR = 0.1
"""Within which share of their distance from each other a method counts as settled at one of the minima."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md and its picture."""
    results, curves, bias = (pd.read_parquet(output / f"{name}.parquet") for name in ("results", "curves", "bias"))
    final = with_times(results[~results["validates"]], curves, settings["targets"])
    (output / "accuracy.svg").write_bytes(as_svg(picture(curves, settings["seconds"])))
    text = page(settings, final, results[results["validates"]], bias, scale)
    (output / "RESULTS.md").write_text(text, encoding="utf-8")


def with_times(final: pd.DataFrame, curves: pd.DataFrame, targets: list[float]) -> pd.DataFrame:
    """Return the runs with the time to each target, in a column for each; infinite where it was not reached."""
    keys = [*CHOICE.columns, "seed"]
    groups = dict(list(curves.groupby(keys)))
    places = [tuple(row[key] for key in keys) for row in final.to_dict("records")]
    columns = {
        f"to {target:.0%}": [seconds_to(groups[place], target) if place in groups else float("inf") for place in places]
        for target in targets
    }
    return final.assign(**columns)


def picture(curves: pd.DataFrame, seconds: float) -> Figure:
    """Draw the test accuracy against virtual time, a panel for each kind of shards, means over the seeds."""
    figure, panels = new_figure(len(SHARDS), height=5.0, shared_y=True)
    for axes, shards in zip(panels, SHARDS, strict=True):
        for place, method in enumerate(METHODS):
            rows = curves[(curves["shards"] == shards) & (curves["method"] == method)]
            if len(rows):
                curve = mean_curve(rows, seconds)
                line(axes, curve.index.to_numpy(), curve.to_numpy(), *style(place))
        in_percent(axes.yaxis)
        axes.set_xlim(0, seconds)
        name_axes(axes, "virtual seconds", "test accuracy" if axes is panels[0] else "", f"shards {shards}")
    legend(figure, [(method, *style(place)) for place, method in enumerate(METHODS)])
    return figure


def page(settings: Mapping[str, Any], final: pd.DataFrame, tuning: pd.DataFrame, bias: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    seconds, target, seeds = settings["seconds"], settings["targets"][1], settings["seeds"]
    speeds = ", ".join(f"{each:g}" for each in speeds_of(settings["config"]))
    limited = final.assign(seconds=final[f"to {target:.0%}"].clip(upper=seconds))
    found = claims.verdicts(limited)
    return f"""# Rivals of ASGD: workers of different speeds

Written by `python -m experiments.rivals --scale {scale}` on {machine()}.

One server, {len(speeds_of(settings["config"]))} workers whose seconds a mini-batch are fixed ({speeds}), links without
delay. Every method has the same {seconds} virtual seconds, and the step size that is best on a validation split (the
least mean loss over the seeds {settings["tuning_seeds"]}); {len(seeds)} other seeds. ± is the sample standard deviation
over the seeds; standard errors, in parentheses, are those of the mean difference between two methods, seed by seed.
One small task: digits, a small network.

## What does not reproduce

Of what is said of a method, that it needs less time than another, {sum(not one.reproduces for one in found)} of
{len(found)} claims: of ASGD (Dutta et al.), of dampening what is late (Xie et al., Damaskinos et al.), of Rennala and
Malenia (Tyurin, Richtarik), of Ringmaster, Ringleader and IA2SGD (Maranjyan et al.); of Malenia, Ringleader and IA2SGD
where shards differ, of the others where they are alike. A difference is told from 0 where Student's 95 % interval
leaves 0 out, {quantile(len(seeds)):.1f} standard errors here; chance alone passes this in one of twenty
comparisons. A run that does not reach {target:.0%} counts as if it did at the end, one that diverged as a guess.

{claims.table([one for one in found if not one.reproduces], target)}

## What reproduces

{claims.table([one for one in found if one.reproduces], target)}

## Accuracy against virtual time

![accuracy against virtual time](accuracy.svg)

Virtual seconds to an accuracy, between tests on straight lines; –: not reached by all seeds (by how many). Step sizes
are those best at the end, not those soonest there: with another a method may reach an accuracy sooner. Where speeds are
fixed, Ringmaster that stops late work takes the same updates as one that ignores it.

{tables(final, settings["targets"])}

## The bias toward fast workers, where it can be seen

{bias_section(settings, bias)}

## The search

Validation loss at the end, by step size (inf: diverged, with at least one of the seeds).

{CHOICE.table(tuning)}
"""


def tables(final: pd.DataFrame, targets: list[float]) -> str:
    """Return one table for each kind of shards."""
    heads = [f"to {target:.0%}" for target in targets]
    parts = []
    for shards in SHARDS:
        lines = [f"### Shards {shards}", ""]
        lines += [f"| method | step size | updates | mini-batches / 8 | {' | '.join(heads)} | accuracy | loss |"]
        lines += ["|---" * (6 + len(heads)) + "|"]
        for method in METHODS:
            rows = final[(final["shards"] == shards) & (final["method"] == method)]
            first = rows.iloc[0]
            cells = [method, f"{first['step_size']:g}", str(first["updates"]), str(first["taken"])]
            cells += [_time(rows[head]) for head in heads]
            cells += [percent(rows["test_accuracy"].fillna(claims.GUESS)), f"{rows['test_loss'].mean():.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _time(times: "pd.Series[float]") -> str:
    reached = times[times < float("inf")]
    if len(reached) < len(times):
        return f"– ({len(reached)})"
    return f"{times.mean():.0f}" + (f" ± {times.std():.0f}" if len(times) > 1 else "")


def bias_section(settings: Mapping[str, Any], bias: pd.DataFrame) -> str:
    """Return what was measured of where methods settle."""
    own = settings["bias"]
    means = bias.groupby("method", sort=False)[["plain", "paced", "own"]].mean()
    plain, paced = ([str(one) for one in means.index[means[name] < NEAR]] for name in ("plain", "paced"))
    rest = [str(one) for one in means.index if one not in plain + paced]
    claimed = ["Malenia", "Ringleader", "IA2SGD"]
    missed = [one for one in claimed if one not in plain] + ["ASGD"] * ("ASGD" not in paced)
    said = f"**It does not reproduce for {_named(missed)}.**" if missed else "It reproduces."
    kept = [one for one in rest if means.loc[one, "own"] < NEAR]
    return f"""The claim: under ASGD the server minimizes the workers' losses weighted by their paces, since fast ones
send more gradients; under Malenia, Ringleader and IA2SGD their plain mean. {said}

It cannot be seen on the networks above, which may fit all shards at once. So here it is half the squared error of a
linear model on the digits, with weight decay {own["config"]["optimizer"]["weight_decay"]}: each worker has samples of
{own["config"]["partition"]["labels_per_agent"]} digits alone, and so a minimum of its own. Mini-batches of
{own["config"]["batch_size"]}; step size times updates is {own["movement"]} for every method, which settles at the
mean of its weights over the second half of its run. Distances are divided by that between the two minima: a method that
settles at the plain mean's has 0 and 1, one that settles at the paced losses' has 1 and 0. The last distance is to the
minimum that the method's own updates weight: by the planner, each worker's loss counts as much as its gradients do,
without those that are ignored, and less where they are dampened, which gives weight decay a larger part.
{len(own["seeds"])} seeds, each with shards of its own.

{_bias_table(bias)}

- At the minimum of the plain mean (within {NEAR:g}): {_named(plain)}.
- At that of the losses weighted by pace: {_named(paced)}.
- At neither: {_named(rest)}.
- Of these within {NEAR:g} of where their own updates' weights have it: {_named(kept)}."""


def _named(methods: list[str]) -> str:
    return "; ".join(methods) or "none"


def _bias_table(bias: pd.DataFrame) -> str:
    heads = ["method", "step size", "updates", "virtual seconds", "weight of the slower half of the workers"]
    heads += ["to the plain mean's", "to the paced losses'", "to its own"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, rows in bias.groupby("method", sort=False):
        first = rows.iloc[0]
        cells = [str(method), f"{first['step_size']:g}", str(first["updates"]), f"{first['seconds']:.0f}"]
        cells.append(f"{first['slow_half']:.2f}")
        for name in ("plain", "paced", "own"):
            spread = f" ± {rows[name].std():.3f}" if len(rows) > 1 else ""
            cells.append(f"{rows[name].mean():.3f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
