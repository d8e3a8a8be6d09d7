"""The command line's ``ray-pcasgd calibrate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_pcasgd.base.text import printable
from ray_pcasgd.cli.options import Trust

if TYPE_CHECKING:
    from ray_pcasgd.runs.calibrating import Calibration


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(calibrate)


def calibrate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of live runs, or their locations on remote storage; those whose messages differ in size, by "
            "their wire for instance, tell of bandwidths.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The settings file to write; a new one.")] = Path("calibrated.yaml"),
    trust: Trust = False,
) -> None:
    """Write settings of a planned run that is as slow as live ones were: its compute times, its messages' delays."""
    from ray_pcasgd.runs.calibrating import calibrate as calibrated

    for line in _lines(calibrated(runs, output, trust)):
        print(printable(line))


def _lines(found: "Calibration") -> list[str]:
    from ray_pcasgd.runs.calibrating import WITHIN, bandwidth_text, delay_text

    lines = [f"{found.path}: compute times in {found.table}"]
    for agent, seconds in sorted(found.compute.items()):
        mean, evaluations = sum(seconds) / len(seconds), found.evaluations.get(agent, 0.0)
        more = f"; evaluations took {evaluations:.3g} s in all, which plans do not count" if evaluations else ""
        lines.append(f"agent {agent}: {1000 * mean:.3g} ms a step{more}")
    for pair, law in sorted(found.links.items()):
        place = "within sites" if pair == WITHIN else f"between {pair[0]} and {pair[1]}"
        told = "no message was late or waited for: no delay" if law is None else delay_text(law)
        if (bandwidth := found.bandwidths.get(pair)) is not None:
            told += f", {bandwidth_text(bandwidth)}"
        lines.append(f"messages {place}: {told}")
    return lines
