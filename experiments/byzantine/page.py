"""The study's page, made from what was measured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.byzantine.study import (
    ASKED,
    ATTACKS,
    LARGE,
    LATE,
    MEAN,
    SCREENS,
    SERVER_ATTACKS,
    SERVERS,
    SHARDS,
    jobs_of,
)
from experiments.studies import machine

STANDS = 0.05
"""By how much less than the plain mean without attackers accuracy may be where an attack is said to be stood."""
POINT = 0.01
"""By how much less has to be left out, if less is said to be."""
TOLD_APART = 0.2
"""By how much more of attackers' messages than of honest ones has to be left out, if they are told apart."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md."""
    results = pd.read_parquet(output / "results.parquet")
    peers, servers = (results[results["kind"] == kind] for kind in ("peers", "servers"))
    kept = peers[peers["late"] == "keep"]
    text = f"""# Attackers, and honest neighbors that are late

Written by `python -m experiments.byzantine --scale {scale}` on {machine()}.

Digits, {settings["config"]["num_agents"]} agents that read each other, {settings["config"]["num_steps"]} steps each;
seeds {settings["seeds"]}. Attackers are agents 1 and 4, in this order. *Late*: messages between
agents 0 to 5 and agents 6 and 7 are {settings["delay"]} steps late. Accuracy is the mean over honest agents,
`bridge`'s b is the number of attackers (1 where there is none), `mean` is `d-asgd`.
{spread(results)}
{made(settings, results)}

## What does not reproduce

{lateness_claim(peers)}
{failures(kept, servers)}

## How many late honest neighbors are taken for attackers

{lateness(peers)}
### Why

{why(pd.read_parquet(output / "distances.parquet"))}
## Accuracy under each attack

One attacker. An attack is stood (no mark) where accuracy is at most {100 * STANDS:g} points below that of the plain
mean without attackers under the same delays and shards; **bold**: it is not.

{tables(kept)}
## Accuracy by the number of attackers

Nobody late, shards alike; a dash: the graph has too few neighbors for so many.

{numbers(kept)}
## Servers

Eight workers, exponential compute times, two attackers; b = 2 (Bulyan's 1: for 2 it asks for 11), Kardam's f = 2.
Mini-batches of {settings["config"]["batch_size"]}, large ones of {settings["distances"]["batch_sizes"][-1]}.
*Left out*: shares of the attackers' and of the others' gradients.

{of_servers(servers)}"""
    (output / "RESULTS.md").write_text(text, encoding="utf-8")


def made(settings: Mapping[str, Any], results: pd.DataFrame) -> str:
    """Return how many of the scale's runs were made."""
    number = sum(1 for _ in jobs_of(settings))
    if len(results) == number:
        return f"All {number} runs of this scale were made."
    return f"**{len(results)} of the {number} runs of this scale were made**; a dash stands for those that were not."


def spread(results: pd.DataFrame) -> str:
    """Return how far the seeds of one case are apart."""
    labels = ["kind", "method", "attack", "attackers", "shards", "is_late", "late"]
    deviations = results.groupby(labels)["accuracy"].std().dropna()
    if deviations.empty:
        return "One seed and one small task: differences of a few points say nothing."
    middle, most = (100 * deviations.quantile(share) for share in (0.5, 0.9))
    return (
        f"Figures are means over seeds, whose sample standard deviation is {middle:.1f} points in the middle of all "
        f"cases and {most:.1f} at most in nine of ten; the task is one small one."
    )


def value(rows: pd.DataFrame, column: str = "accuracy") -> float:
    """Return the mean over seeds; not a number where there is no run."""
    return float(rows[column].mean()) if len(rows) else float("nan")


def case(rows: pd.DataFrame, **labels: Any) -> pd.DataFrame:
    """Return the runs that have these labels."""
    for name, wanted in labels.items():
        rows = rows[rows[name] == wanted]
    return rows


def percent(share: float) -> str:
    """Return a share in percent; a dash for none."""
    return "–" if share != share else f"{100 * share:.1f} %"


def failures(kept: pd.DataFrame, servers: pd.DataFrame) -> str:
    """Return which attacks are not stood that a screen is said to stand, and whether Kardam tells attackers apart."""
    lines = []
    for is_late, where in ((False, "nobody late"), (True, "late links")):
        own = case(kept, shards="alike", is_late=is_late)
        goal = value(case(own, method=MEAN, attack="none")) - STANDS
        for method in (MEAN, *SCREENS):
            fallen = [
                f"{attack} ({percent(value(rows))})"
                for attack in ATTACKS
                if value(rows := case(own, method=method, attack=attack, attackers=1)) < goal
            ]
            if method == MEAN:
                reached = f"{percent(goal + STANDS)} without attackers"
                lines.append(f"- Shards alike, {where}: the plain mean has {reached}; it falls to {listed(fallen)}.")
            elif fallen:
                lines.append(f"  - `{method}` does not stand {listed(fallen)}.")
    return "\n".join([kardam(servers), *lines])


def listed(parts: Sequence[str]) -> str:
    """Return parts as one list."""
    return ", ".join(parts) or "none of the attacks"


def kardam(servers: pd.DataFrame) -> str:
    """Return what Kardam makes of attackers and of the honest, by small mini-batches and by large ones."""
    lines = [_kardam(servers, size) for size in ("", LARGE) if len(case(servers, method=f"asgd, kardam{size}"))]
    return "\n".join(lines)


def _kardam(servers: pd.DataFrame, size: str) -> str:
    parts, told = [], []
    for attack in SERVER_ATTACKS:
        rows = case(servers, method=f"asgd, kardam{size}", attack=attack)
        liars, honest = value(rows, "out_attackers"), value(rows, "out_late")
        told.append(liars - honest > TOLD_APART)
        parts.append(f"{attack} {percent(liars)}, {percent(honest)}")
    claim = f"**Kardam tells attackers from the honest**{size}"
    if not any(told):
        claim = f"**Kardam does not tell attackers apart**{size}"
    elif not all(told):
        claim = f"**Kardam tells attackers apart under some attacks**{size}"
    none = case(servers, method=f"asgd, kardam{size}", attack="none")
    plain = case(servers, method=f"asgd{size}", attack="none")
    cost = f"without attackers it rejects {percent(value(none, 'out_late'))} of late gradients"
    reached = f"and comes to {percent(value(none))}, ASGD to {percent(value(plain))}"
    shares = "; ".join(parts)
    return f"- {claim}: of the attackers' and of late honest gradients it rejects {shares}; {cost}, {reached}."


def lateness(peers: pd.DataFrame) -> str:
    """Return the answer in a line for each kind of prediction, and the table that it is read from."""
    own = case(peers, is_late=True)
    lines = [
        f"Of a late honest neighbor {percent(left_out(own, 'keep'))} is left out where it is judged by its weights as "
        "they were read, on average over the rows below."
    ]
    for late, by in (("predict", "direction, as PC-ASGD predicts"), ("displacement", "mean displacement")):
        pairs = [
            (value(case(rows, late="keep"), "out_late"), value(case(rows, late=late), "out_late"))
            for *_, rows in cases_of(own)
        ]
        fewer = sum(predicted < kept - POINT for kept, predicted in pairs)
        lines.append(
            f"Predicted by {by}, it is {percent(left_out(own, late))}: less by more than a point in {fewer} of "
            f"{len(pairs)} rows."
        )
    lines.append("Beside it stands the share of those that are in time: a screen leaves out something of everybody.")
    arms = [late for late in LATE if late != "clip"]
    heads = [f"{late}: late, in time" for late in arms] + [f"accuracy: {late}" for late in LATE]
    text = f"| screen | attack | shards | {' | '.join(heads)} |\n|---|---|---|" + "---|" * len(heads) + "\n"
    for method, attack, shards, rows in cases_of(own):
        cells = [
            ", ".join(percent(value(case(rows, late=late), column)) for column in ("out_late", "out_in_time"))
            for late in arms
        ]
        cells += [percent(value(case(rows, late=late))) for late in LATE]
        text += f"| {method} | {attack} | {shards} | {' | '.join(cells)} |\n"
    return " ".join(lines) + "\n\n" + text


def left_out(own: pd.DataFrame, late: str) -> float:
    """Return the share of late honest neighbors that is left out, on average over the table's rows."""
    shares = [value(case(rows, late=late), "out_late") for *_, rows in cases_of(own)]
    return sum(shares) / len(shares)


def lateness_claim(peers: pd.DataFrame) -> str:
    """Return whether prediction keeps late honest neighbors from being left out, and what it does to accuracy."""
    lines = []
    for late, by in (("predict", "by direction"), ("displacement", "by displacement")):
        both = [
            (kept, predicted)
            for *_, rows in cases_of(case(peers, is_late=True))
            if len(kept := case(rows, late="keep")) and len(predicted := case(rows, late=late))
        ]
        fewer = sum(value(predicted, "out_late") < value(kept, "out_late") - POINT for kept, predicted in both)
        better = sum(value(predicted) > value(kept) for kept, predicted in both)
        keeps = "keeps" if fewer > len(both) / 2 else "does not keep"
        lines.append(
            f"- **Prediction {by} {keeps} late honest neighbors from being taken for attackers**: less of them, by "
            f"more than a point, is left out in {fewer} of {len(both)} cases. Accuracy is higher with it in {better}."
        )
    return "\n".join(lines)


def why(found: pd.DataFrame) -> str:
    """Return how far late neighbors are from where they are by now, and what of their way is foreseen."""
    text = """Nobody attacks. *Truth*: where a late neighbor is by now. *Foreseen*: which part of its way since it was
read prediction goes, on average; 1 is all of it.

| screen | mini-batch | late neighbors | truth from reader | as read from truth | as taken from truth | as taken from \
reader | foreseen | left out: late, in time | accuracy |
|---|---|---|---|---|---|---|---|---|---|
"""
    for (screen, size, arm), rows in found.groupby(["screen", "batch_size", "arm"], sort=False):
        names = ("truth_reader", "read_truth", "taken_truth", "taken_reader")
        cells = [f"{rows[name].mean():.2f}" for name in names]
        cells.append("–" if arm == "kept" else f"{rows['foreseen'].mean():.2f}")
        cells.append(f"{percent(rows['out_late'].mean())}, {percent(rows['out_in_time'].mean())}")
        text += f"| {screen} | {size} | {arm} | {' | '.join(cells)} | {percent(rows['accuracy'].mean())} |\n"
    predicted = found[found["arm"] != "kept"].groupby(["screen", "batch_size", "arm"]).mean(numeric_only=True)
    nearer = int((predicted["taken_truth"] < predicted["read_truth"]).sum())
    return (
        f"{text}\nIn {nearer} of {len(predicted)} rows with prediction a neighbor is nearer to what it is taken for "
        "than to what was read of it. A prediction may be right on average and far off all the same: one mini-batch's "
        "direction, or a mean of few, stands for all the steps that were missed, with its noise as often, and what the "
        "neighbor has mixed in since is not in its direction. A screen goes by distances, or by how extreme a number "
        "is; a mean averages such errors out.\n\n"
    )


def cases_of(own: pd.DataFrame) -> list[tuple[str, str, str, pd.DataFrame]]:
    """Return screen, attack, shards and runs of each row of the table about lateness."""
    return [
        (method, attack, shards, case(own, method=method, attack=attack, shards=shards))
        for method in SCREENS
        if len(case(own, method=method))
        for attack in ("none", *ASKED)
        for shards in SHARDS
    ]


def tables(kept: pd.DataFrame) -> str:
    """Return a table for each kind of delays and of shards: methods by attacks."""
    text = ""
    for shards in SHARDS:
        for is_late, where in ((False, "nobody late"), (True, "late links")):
            own = case(kept, shards=shards, is_late=is_late)
            goal = value(case(own, method=MEAN, attack="none")) - STANDS
            text += f"### Shards {shards}, {where}\n\n"
            text += grid(("none", *ATTACKS), lambda m, a, own=own: at(own, m, a), goal) + "\n"
    return text


def at(own: pd.DataFrame, method: str, attack: str) -> float:
    """Return the accuracy with one attacker, or with none."""
    return value(case(own, method=method, attack=attack, attackers=int(attack != "none")))


def grid(columns: Sequence[str], cell: Callable[[str, str], float], goal: float) -> str:
    """Return a table of methods; what is below the goal is bold."""
    text = f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    for method in (MEAN, *SCREENS):
        values = [cell(method, column) for column in columns]
        marked = [f"**{percent(one)}**" if one < goal else percent(one) for one in values]
        text += f"| {method} | {' | '.join(marked)} |\n"
    return text


def numbers(kept: pd.DataFrame) -> str:
    """Return a table for each attack of which the number of attackers varies."""
    own, text = case(kept, shards="alike", is_late=False), ""
    goal = value(case(own, method=MEAN, attack="none")) - STANDS
    for attack in ATTACKS:
        text += f"### {attack}\n\n"

        def cell(method: str, column: str, attack: str = attack) -> float:
            number = int(column.split()[0])
            rows = case(own, method=method, attack=attack if number else "none", attackers=number)
            return value(rows)

        text += grid([f"{number} attackers" for number in range(3)], cell, goal) + "\n"
    return text


def of_servers(servers: pd.DataFrame) -> str:
    """Return the table of servers."""
    columns = ("none", *SERVER_ATTACKS)
    text = f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    for method in SERVERS:
        cells = []
        for attack in columns:
            rows = case(servers, method=method, attack=attack)
            liars = value(rows, "out_attackers")
            honest = [value(rows, name) for name in ("out_in_time", "out_late")]
            others = next((share for share in reversed(honest) if share == share), float("nan"))
            left_out = f" (left out {percent(liars)}, {percent(others)})" if others == others else ""
            cells.append(percent(value(rows)) + left_out)
        text += f"| {method} | {' | '.join(cells)} |\n"
    return text
