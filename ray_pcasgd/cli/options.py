"""Options that several commands have."""

from typing import Annotated

import typer

from ray_pcasgd.cli import settings as cli_settings

Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, for example algorithm.theta=0.5.",
        autocompletion=cli_settings.complete_assignment,
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Trust the folder's settings as your own: use the code and cluster that they name."),
]
