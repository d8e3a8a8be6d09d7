"""The command line's ``ray-pcasgd evaluate``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_pcasgd.base.text import format_value, printable, spoken
from ray_pcasgd.cli import settings as cli_settings
from ray_pcasgd.cli.options import Trust

if TYPE_CHECKING:
    from ray_pcasgd.runs.evaluation import Evaluated


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or its location on remote storage.")],
    checkpoint: Annotated[
        str,
        typer.Option(metavar="STEP", help="Step of a model that was kept, or last: that of the last evaluation."),
    ] = "last",
    assignments: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="task.KEY=VALUE",
            help="Change a setting of the task, for example task.data.test_share=0.5.",
            autocompletion=cli_settings.complete_assignment,
        ),
    ] = [],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, with all digits.")] = False,
    trust: Trust = False,
) -> None:
    """Test a model of a run again, on its own test data or on other data: --set task.data..."""
    from ray_pcasgd.runs.evaluation import evaluate as evaluated

    found = evaluated(run, checkpoint, assignments=assignments, trust=trust)
    print(_as_json(found) if as_json else _as_text(found))


def _as_json(found: "Evaluated") -> str:
    from ray_pcasgd.base.plain_json import dumps

    told: dict[str, Any] = {"model": found.checkpoint.path, "step": found.step, "metrics": found.metrics}
    return dumps({**told, "remarks": found.remarks}, indent=2)


def _as_text(found: "Evaluated") -> str:
    of_step = "" if found.step is None else f", step {found.step}"
    lines = [f"{found.checkpoint.path}{of_step}: averaged model"]
    lines += [f"{spoken(name)} {format_value(name, value)}" for name, value in found.metrics.items()]
    return "\n".join(printable(line) for line in [*lines, *found.remarks])
