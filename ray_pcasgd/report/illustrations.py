"""The pictures of a page, each with a sentence that says what to look for."""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ray_pcasgd.base.text import spoken
from ray_pcasgd.report.drawing import HALF, as_data_uri, as_pdf, as_svg, own_style
from ray_pcasgd.report.groups import Group
from ray_pcasgd.report.pictures import (
    adaptivity_notes,
    consensus_distance,
    gradients_per_update,
    loss_against,
    metric_against,
    predicting_share,
    total_momentum,
)
from ray_pcasgd.report.schedule_pictures import staleness_histogram, time_line, waiting_bars
from ray_pcasgd.report.server_pictures import server_time_line

_LONGEST_NAME = 80


class Illustration(NamedTuple):
    """A picture and its words."""

    title: str
    caption: str
    figure: Figure | None


def illustrations(groups: Sequence[Group], metric: str | None) -> str:
    """Return all pictures of runs that have something to show, as HTML; empty where there are none."""
    return framed(_all(groups, metric))


def write_figures(groups: Sequence[Group], metric: str | None, folder: Path) -> list[Path]:
    """Write each picture of the page of runs into a folder, as PDF and as SVG, and return where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with own_style():
        for each in _all(groups, metric):
            if each.figure is not None:
                name = re.sub(r"[^a-z0-9]+", "-", each.title.lower()).strip("-")[:_LONGEST_NAME]
                for suffix, draw in (("pdf", as_pdf), ("svg", as_svg)):
                    paths.append(folder / f"{name}.{suffix}")
                    paths[-1].write_bytes(draw(each.figure))
    return paths


def framed(pictures: Iterable[Illustration]) -> str:
    """Return pictures as HTML, those that have something to show; empty where there are none."""
    drawn = [_html(each.title, each.caption, each.figure) for each in pictures if each.figure is not None]
    return '<div class="pictures">\n' + "\n".join(drawn) + "\n</div>" if drawn else ""


def _all(groups: Sequence[Group], metric: str | None) -> Iterator[Illustration]:
    yield from _learning(groups, metric)
    yield Illustration(
        "Share of predicting choices",
        " ".join(["Near 0 or 1 the method always does the same.", *adaptivity_notes(groups)]),
        predicting_share(groups),
    )
    yield Illustration(
        "Total momentum",
        "As yellowfin measures it: its own momentum, which may be below 0, and what asynchrony adds.",
        total_momentum(groups),
    )
    yield Illustration(
        "Gradients of one update",
        "What a server averages over; AdaSync lets it grow as the loss falls.",
        gradients_per_update(groups),
    )
    yield Illustration(
        "Consensus distance",
        "While it grows, the agents drift apart; the averaged model can then be worse, or better, than any of them.",
        consensus_distance(groups),
    )
    yield Illustration(
        "Staleness of what was read",
        "Between peers, steps (with local steps, rounds) that a neighbor had taken since the version that was read; "
        "at a server, its updates "
        "since the version that a gradient was computed at. 0 is fresh.",
        staleness_histogram(groups),
    )
    if len(groups) == 1 and len(groups[0].runs) == 1:
        run = groups[0].runs[0]
        why = "Agents that wait much are held up by slower ones, through the barrier."
        if run.num_workers is not None:
            why = "What a worker waits for the server's answer: for other workers' gradients, and for messages."
        yield Illustration("Waiting", why, waiting_bars(run))
        if run.num_workers is None:
            caption = (
                "A dot is where a version was sent, its line ends where it was read: the longer the line, the older "
                "the version."
            )
            yield Illustration("The first steps", caption, time_line(run))
        else:
            caption = "Each line is an update of a server; it ends at the workers whose gradients it takes."
            yield Illustration("The first steps", caption, server_time_line(run))


def _learning(groups: Sequence[Group], metric: str | None) -> Iterator[Illustration]:
    if metric is not None:
        name = spoken(metric)
        yield Illustration(
            f"{name.capitalize()} against steps",
            "What the same number of steps buys; a gap between averaged model and agents says that they disagree.",
            metric_against(groups, metric, "step"),
        )
        yield Illustration(
            f"{name.capitalize()} against seconds",
            "What the same time buys: a method that waits for slow neighbors falls behind only in this picture. The "
            "averaged model of a step is known once the slowest agent has taken it; an agent that is done keeps its "
            "model.",
            metric_against(groups, metric, "seconds"),
        )
        yield Illustration(
            f"{name.capitalize()} against bytes sent",
            "What the same traffic buys: a message counts where it is sent, once for each receiver.",
            metric_against(groups, metric, "bytes_sent"),
        )
    yield Illustration(
        "Loss against steps",
        "Training loss that falls while test loss rises is overfitting; both rising is divergence. Training loss is "
        "the mean of the mini-batches since the evaluation before.",
        loss_against(groups, "step"),
    )
    yield Illustration("Loss against seconds", "The same against time.", loss_against(groups, "seconds"))


def _html(title: str, caption: str, figure: Figure) -> str:
    kind = ' class="wide"' if figure.get_figwidth() > HALF else ""
    return (
        f'<figure{kind}>\n<img alt="{escape(title)}" src="{as_data_uri(figure)}">\n'
        f"<figcaption><strong>{escape(title)}.</strong> {escape(caption)}</figcaption>\n</figure>"
    )
