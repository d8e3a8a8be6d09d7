"""What the page says of screens between peers: by attack and number of attackers, and of mixing before them."""

import itertools
from collections.abc import Iterator, Sequence

import pandas as pd

from experiments.byzantine.figures import POINT, STANDS, accuracy, case, listed, percent, value
from experiments.byzantine.methods import ATTACKS, MEAN, MIXED, NNM, SCREENS, SHARDS, with_mixing
from experiments.byzantine.study import most_of

METHODS = (MEAN, *with_mixing(SCREENS))
CELLS = {
    f"shards {shards}, {'late links' if is_late else 'nobody late'}": {"shards": shards, "is_late": is_late}
    for shards, is_late in itertools.product(SHARDS, (False, True))
}


def claims(kept: pd.DataFrame) -> str:
    """Return which screens do not stand what they are said to, and whether mixing helps."""
    lines = [_stood(case(kept, **labels), where) for where, labels in CELLS.items()]
    lines += [_mixing(case(kept, **labels), where) for where, labels in CELLS.items()]
    return "\n".join(line for line in lines if line)


def not_stood(kept: pd.DataFrame) -> str:
    """Return a table of how many attacks, by one or two attackers, each method does not stand."""
    text = f"| | {' | '.join(CELLS)} |\n|---|{'---|' * len(CELLS)}\n"
    for method in METHODS:
        cells = []
        for labels in CELLS.values():
            own = case(kept, **labels)
            found = [stands for *_, stands in _attacked(own, method)]
            cells.append(f"{found.count(False)} of {len(found)}" if found else "–")
        text += f"| {method} | {' | '.join(cells)} |\n"
    return text


def tables(kept: pd.DataFrame) -> str:
    """Return a table for each kind of delays and of shards: methods by attacks, with one attacker and with two."""
    text = ""
    for where, labels in CELLS.items():
        own = case(kept, **labels)
        text += f"### {where.capitalize()}\n\n| | none | {' | '.join(ATTACKS)} |\n|---|---|{'---|' * len(ATTACKS)}\n"
        for method in METHODS:
            cells = [_marked([case(own, method=method, attack="none")], own)]
            for attack in ATTACKS:
                cells.append(_marked([case(own, method=method, attack=attack, attackers=k) for k in (1, 2)], own))
            text += f"| {method} | {' | '.join(cells)} |\n"
        text += "\n"
    return text


def mixing(kept: pd.DataFrame) -> str:
    """Return a table of what mixing first adds to each screen's accuracy, with 0 to 2 attackers."""
    text = f"| | {' | '.join(CELLS)} |\n|---|{'---|' * len(CELLS)}\n"
    for screen in MIXED:
        cells = []
        for labels in CELLS.values():
            gains = _gains(case(kept, **labels), screen)
            ahead = sum(gain > POINT for gain in gains)
            cells.append(f"{100 * sum(gains) / len(gains):+.1f} ({ahead} of {len(gains)})" if gains else "–")
        text += f"| {screen} | {' | '.join(cells)} |\n"
    return text


def seeds_of_mixing(kept: pd.DataFrame) -> str:
    """Return the seeds with which mixing was run."""
    return ", ".join(str(seed) for seed in sorted(kept[kept["method"].str.startswith(NNM)]["seed"].unique()))


def _stands(rows: pd.DataFrame, own: pd.DataFrame) -> bool:
    """Return whether accuracy is near that of the plain mean without attackers, over the same seeds."""
    plain = case(own, method=MEAN, attack="none")
    return value(rows) >= value(plain[plain["seed"].isin(rows["seed"])]) - STANDS


def _marked(found: Sequence[pd.DataFrame], own: pd.DataFrame) -> str:
    """Return accuracies; bold below the goal, with a star where not all seeds were run."""
    cells = []
    for rows in found:
        told = accuracy(rows, own)
        cells.append(f"**{told}**" if len(rows) and not _stands(rows, own) else told)
    return ", ".join(cells)


def _attacked(own: pd.DataFrame, method: str) -> Iterator[tuple[str, int, bool]]:
    """Yield attack, number of attackers and whether they are stood, of each case in which a method is attacked."""
    for attack, number in itertools.product(ATTACKS, range(1, most_of(method) + 1)):
        if len(rows := case(own, method=method, attack=attack, attackers=number)):
            yield attack, number, _stands(rows, own)


def _stood(own: pd.DataFrame, where: str) -> str:
    """Return to which attacks the mean falls, and which screens stand all of them, or how few."""
    if not len(own):
        return ""
    stood, not_all = [], []
    falls = [(attack, str(number)) for attack, number, stands in _attacked(own, MEAN) if not stands]
    fallen = [f"{attack} ({', '.join(n for a, n in falls if a == attack)})" for attack in dict(falls)]
    for method in METHODS[1:]:
        found = [stands for *_, stands in _attacked(own, method)]
        if len(found) < len(ATTACKS) * most_of(method):
            continue  # not all were run
        if not all(found):
            not_all.append(f"`{method}` ({found.count(False)} of {len(found)})")
        else:
            stood.append(f"`{method}`")
    reached = percent(value(case(own, method=MEAN, attack="none")))
    return (
        f"- {where.capitalize()}: the plain mean has {reached} without attackers, and falls to {listed(fallen)} (by so "
        f"many attackers). All attacks are stood by {listed(stood, 'no screen')}; not all by {listed(not_all, 'none')}."
    )


def _gains(own: pd.DataFrame, screen: str) -> list[float]:
    """Return by how much accuracy is higher with mixing, in each case, over the seeds that were run with both.

    Empty where not all cases were run.
    """
    gains = []
    for attack, number in (("none", 0), *itertools.product(ATTACKS, (1, 2))):
        plain, mixed = (
            case(own, method=method, attack=attack, attackers=number).set_index("seed")["accuracy"]
            for method in (screen, NNM + screen)
        )
        pairs = (mixed - plain).dropna()
        if len(pairs):
            gains.append(float(pairs.mean()))
    return gains if len(gains) == 1 + 2 * len(ATTACKS) else []


def _mixing(own: pd.DataFrame, where: str) -> str:
    """Return with which screens mixing helps: in most of the cases, by more than a point."""
    gains = {screen: found for screen in MIXED if (found := _gains(own, screen))}
    if not gains:
        return ""
    helps = [screen for screen, found in gains.items() if 2 * sum(gain > POINT for gain in found) > len(found)]
    others = [screen for screen in gains if screen not in helps]
    verdict = "helps" if not others else "helps some screens" if helps else "does not help"
    said = f"in most cases, by more than a point, it is ahead with {listed(helps, 'no screen')}"
    return f"- **Nearest-neighbor mixing {verdict}**, {where}: {said}" + (
        f", and not with {listed(others)}." if helps and others else "."
    )
