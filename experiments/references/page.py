"""The study's page, made from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.studies import machine

WITHOUT = """- `wire` formats: each is tested against slow rounding by itself (`tests/unit/agents/test_wire.py`);
  in whole runs a number that rounding in float32 puts on the other side of a draw is off by a whole unit
- optimizers other than `sgd` and `yellowfin` are tested against PyTorch's own"""


PULL = "`pc-asgd-pv`, pull"
TIE = """Of `pull` it is a tie: where all that an agent reads is at one point, both candidates pull in the very same
direction, and rounding decides between them, as it may in float64, too."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md from results.parquet."""
    results = pd.read_parquet(output / "results.parquet")
    (output / "RESULTS.md").write_text(page(results, scale), encoding="utf-8")


def page(results: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    table = results.groupby("method", sort=False)[["float64", "float32"]].max()
    cases = results.groupby("method", sort=False)["seed"].nunique()
    lines = ["| method | reference (`tests/references/`); paper | runs | float64 | float32 |", "|---|---|---|---|---|"]
    for method, formula in results.drop_duplicates("method")[["method", "formula"]].itertuples(index=False):
        row = table.loc[method]
        cells = ["–" if value != value else f"{value:.1e}" for value in (row["float64"], row["float32"])]
        lines.append(f"| {method} | {formula} | {cases[method]} | {' | '.join(cells)} |")
    rows = "\n".join(lines)
    return f"""# Every method against a slow reference

Without a reference of whole runs are:

{WITHOUT}

{_summary(results)}

Each method was run by the package's local engine on random graphs, delays, speeds, data and seeds: linear regression
of four parameters (with `label-flip` softmax regression of four classes), two to eight agents, 12 to 23 steps of
each. Each run was repeated by a reference in float64, which was written from the formulas and knows nothing of the
rules' code; it is told the run's schedule, mini-batches and random draws ("with its schedule": no schedule, since it
has events of its own). The difference is that of any agent's weights after any step, as the largest of its numbers
over the largest of the reference's. *float32*: the package as it is. *float64*: the same code on models of float64,
which the package refuses otherwise, so that rounding hides nothing; – where what travels is encoded, or drawn, as
float32.
Written by `python -m experiments.references --scale {scale}` ({machine()}).

{rows}
"""


def _summary(results: pd.DataFrame) -> str:
    table = results.groupby("method", sort=False)[["float64", "float32"]].max()
    worst = table["float64"].idxmax()
    text = (
        f"The largest difference of {len(results)} runs of {len(table)} methods in float64 is "
        f"{table['float64'].max():.1e} ({worst})."
    )
    loose = table[table["float32"] > 1e-4]
    if len(loose):
        names = ", ".join(f"{method} {value:.1e}" for method, value in loose["float32"].items())
        text += f" In float32 beyond 1e-4: {names}."
        if PULL in loose.index:
            text += f" {TIE}"
    else:
        text += f" In float32 it is {table['float32'].max():.1e} ({table['float32'].idxmax()})."
    return text
