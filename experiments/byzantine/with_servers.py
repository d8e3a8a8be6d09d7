"""What the page says of servers: Kardam, and screens."""

import pandas as pd

from experiments.byzantine.figures import accuracy, case, percent, value
from experiments.byzantine.study import LARGE, SERVER_ATTACKS, SERVERS

TOLD_APART = 0.2
"""By how much more of attackers' messages than of honest ones has to be left out, if they are told apart."""


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


def table(servers: pd.DataFrame) -> str:
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
            cells.append(accuracy(rows, servers) + left_out)
        text += f"| {method} | {' | '.join(cells)} |\n"
    return text
