"""What the page says of late honest neighbors: how many of them screens take for attackers, and why."""

import pandas as pd

from experiments.byzantine.figures import POINT, case, percent, value
from experiments.byzantine.methods import SCREENS, SHARDS
from experiments.byzantine.study import ASKED, LATE


def claim(peers: pd.DataFrame) -> str:
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


def table(peers: pd.DataFrame) -> str:
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
        (
            method,
            attack,
            shards,
            case(own, method=method, attack=attack, shards=shards, attackers=int(attack != "none")),
        )
        for method in SCREENS
        if len(case(own, method=method))
        for attack in ("none", *ASKED)
        for shards in SHARDS
    ]
