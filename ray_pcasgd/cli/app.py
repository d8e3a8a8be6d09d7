"""The command line: ``ray-pcasgd train | compare | replay | sweep | report | theory``, and others of this folder.

Help, versions and usage errors need no more than what is imported here; commands import where they are called.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from ray_pcasgd.base.errors import RunError, SettingsError
from ray_pcasgd.base.imports import look_also_in, unreadable
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.text import one_line, printable
from ray_pcasgd.cli import calibration as cli_calibration
from ray_pcasgd.cli import control as cli_control
from ray_pcasgd.cli import evaluation as cli_evaluation
from ray_pcasgd.cli import settings as cli_settings
from ray_pcasgd.cli import watch as cli_watch
from ray_pcasgd.cli.options import Assignments, Trust
from ray_pcasgd.cli.output import LenientOutput

if TYPE_CHECKING:
    from ray_pcasgd.runs.result import Result

SETTINGS_ERROR = 2
RUN_ERROR = 1
INTERRUPTED = 130


class _Commands(cli_settings.Commands):
    def invoke(self, ctx: Any) -> Any:
        # Typer itself would end without a word.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            print(str(stopped) or "interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)

EngineName = Annotated[str | None, typer.Option("--engine", help="The engine that executes the agents: ray or local.")]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the run and of its folder.")]
ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.yaml]", help="YAML file of settings; if left out, the embedded task of digits."),
]


@app.command()
def train(
    config: ConfigFile = None,
    assignments: Assignments = [],
    engine: EngineName = None,
    name: RunName = None,
    resumed: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with the interrupted run in this folder.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Train one model on many agents that get each other's weights late."""
    from ray_pcasgd.cli.terminal import Terminal
    from ray_pcasgd.runs.settings.loading import load_config
    from ray_pcasgd.runs.trainer import Trainer, resume

    console = _console()
    if resumed is not None:
        if config or assignments or engine or name:
            raise SettingsError("--resume: a run goes on with its own settings; allowed are no other settings with it")
        _finish(resume(resumed, [Terminal(console)], trust=trust), console)
        return
    if trust:
        raise SettingsError("--trust: allowed with --resume only; settings that you name yourself are trusted anyway")
    settings = load_config(config, [*_shortcuts(engine, name), *assignments])
    _finish(Trainer(settings, callbacks=[Terminal(console)]).fit(), console)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="Folder of the run whose recorded schedule is replayed, or its location.")],
    assignments: Assignments = [],
    engine: EngineName = "local",
    name: RunName = None,
    trust: Trust = False,
) -> None:
    """Run a recorded schedule again, under other settings; the report shows both runs."""
    from ray_pcasgd.cli.terminal import Terminal
    from ray_pcasgd.runs.plan.replaying import as_replay
    from ray_pcasgd.runs.settings.loading import read_yaml
    from ray_pcasgd.runs.settings.trust import load_run_settings
    from ray_pcasgd.runs.storage.fetched import fetched_run
    from ray_pcasgd.runs.storage.names import PAGE_FILES
    from ray_pcasgd.runs.storage.remote import is_remote, location_in, parent_of
    from ray_pcasgd.runs.trainer import Trainer

    console = _console()
    # The new run lies next to the recorded one, wherever that has come from.
    if is_remote(run):
        storage, schedule = parent_of(run)[0], location_in(run, "schedule.parquet")
    else:
        folder = Path(run)
        storage = str(folder.parent if folder.name not in ("", "..") else folder.resolve().parent)
        schedule = str(folder / "schedule.parquet")
    changes = {"name": None, "schedule": schedule, "storage_path": storage}
    with fetched_run(run, PAGE_FILES) as recorded:
        if objects := unreadable(read_yaml(recorded / "config.yaml")):
            raise SettingsError(
                f"{run}: {' and '.join(objects)}: given as objects of a script, which no file can hold; replay it from "
                "Python, with Trainer(..., schedule=...) and the same objects"
            )
        settings = as_replay(load_run_settings(recorded, [*_shortcuts(engine, name), *assignments], changes, trust))
        _finish(Trainer(settings, callbacks=[Terminal(console)]).fit(), console, compared=[recorded])


@app.command("compare")
def compare_command(
    config: ConfigFile = None,
    assignments: Assignments = [],
    engine: EngineName = "local",
    name: RunName = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from the settings' own seed upwards.")] = 3,
    algorithm: Annotated[
        list[str],
        typer.Option(metavar="NAME[,KEY=VALUE...]", help="A method to compare; may be given several times."),
    ] = [],
) -> None:
    """Run several algorithms under the same schedule and seeds, and D-PSGD without delay to compare with."""
    from ray_pcasgd.cli.terminal import Terminal, print_comparison
    from ray_pcasgd.report.page import write_report
    from ray_pcasgd.runs.comparison import METHODS, UNDELAYED, compare, parse_method
    from ray_pcasgd.runs.interrupting import RunInterrupted
    from ray_pcasgd.runs.settings.loading import load_config

    console = _console()
    settings = load_config(config, [*_shortcuts(engine, name), *assignments])
    methods = [UNDELAYED, *map(parse_method, algorithm)] if algorithm else METHODS
    try:
        comparison = compare(settings, methods, seeds, lambda label: [Terminal(console, label, details=False)])
    except RunInterrupted as stopped:
        raise KeyboardInterrupt(f"interrupted; the runs so far are in {Path(stopped.result.path).parent}") from None
    labels = dict(zip(comparison.runs["path"], comparison.runs["label"], strict=True))
    report = write_report(
        [Path(path) for path in labels],
        comparison.path / "report.html",
        comparison.path.name,
        labels=list(labels.values()),
    )
    print_comparison(comparison, console)
    _say(f"report: {report}", console)
    failed = comparison.runs[comparison.runs["error"].notna()]
    for _, row in failed.iterrows():
        _complain(f"{row['label']}, seed {row['seed']}: {row['error']}")
    if len(failed):
        raise typer.Exit(RUN_ERROR)


@app.command("sweep")
def sweep_command(
    config: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP.yaml|SWEEP", help="YAML file of a sweep; with --resume, its folder or remote location."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the sweep and of its folder.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="A recorded schedule under which all trials run; its path or remote location.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted sweep in the given folder.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Run many trials with Ray Tune, and say which settings are best."""
    from ray_pcasgd.cli.terminal import print_sweep
    from ray_pcasgd.sweep import running as sweeping
    from ray_pcasgd.sweep.settings import load_sweep

    if trust and not resume:
        raise SettingsError("--trust: allowed with --resume only; settings that you name yourself are trusted anyway")
    if resume:
        result = sweeping.resume(config, trust)
    else:
        settings = load_sweep(config, {"name": name} if name else {})
        result = sweeping.sweep(settings, schedule)
    print_sweep(result.points, result.metric, result.files, _console())
    failed = result.trials["error"].notna()
    for _, row in result.trials[failed].iterrows():
        _complain(f"{row['path']}: {row['error']}")
    if failed.all():
        raise typer.Exit(RUN_ERROR)


@app.command()
def theory(
    config: ConfigFile = None,
    assignments: Assignments = [],
    updates: Annotated[int, typer.Option(min=100, help="Number of updates that are planned for each policy.")] = 4000,
    staleness_penalty: Annotated[
        float, typer.Option(min=0, max=0.99, help="gamma of the error bound: how far stale gradients are off.")
    ] = 0.5,
    output: Annotated[Path, typer.Option(help="Folder of the table and the picture.")] = Path("runs/theory"),
) -> None:
    """Draw error against runtime for each way to gather gradients, under the settings' compute times."""
    from ray_pcasgd.cli.terminal import print_theory
    from ray_pcasgd.report.theory_page import check_theory, theory_table, write_theory
    from ray_pcasgd.runs.settings.loading import load_config
    from ray_pcasgd.schedule.runtime_theory import Bound

    settings = load_config(config, assignments)
    check_theory(settings)
    console = _console()
    bound = Bound(staleness_penalty=staleness_penalty)
    table = theory_table(settings.compute.law, settings.num_agents, updates, settings.seed)
    print_theory(table, console)
    for path in write_theory(table, settings.num_agents, output, bound):
        _say(str(path), console)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs, or their locations, or folders of comparisons.")],
    output: Annotated[
        Path | None, typer.Option(help="File of the page; if left out, report.html in the first folder.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="A value of the test metric, such as 0.9: a table says when it was reached.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write each picture into this folder, too, as PDF and SVG.")
    ] = None,
) -> None:
    """Draw one page about one run, or several runs side by side."""
    from ray_pcasgd.runs.storage.fetched import fetched_run
    from ray_pcasgd.runs.storage.names import PAGE_FILES, REPORT
    from ray_pcasgd.runs.storage.remote import is_remote, location_in, put

    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(fetched_run(run, PAGE_FILES)) if is_remote(run) else Path(run) for run in runs]
        # Where the user says that it is to lie, a link is followed.
        for place in (output, figures):
            refuse_key(place or "")
        page = output.expanduser().resolve() if output else places[0] / REPORT
        _draw(places, page, target, figures, _console())
        location = str(output or page)
        if is_remote(runs[0]) and output is None:
            location = location_in(runs[0], REPORT)
            try:
                put(location, page.read_bytes())
            except OSError as error:
                raise SettingsError(f"{location}: cannot be written ({error})") from None
    _say(f"report: {location}", _console())


def _draw(runs: Sequence[Path], page: Path, target: float | None, figures: Path | None, console: Console) -> None:
    from ray_pcasgd.report.groups import metric_of
    from ray_pcasgd.report.illustrations import write_figures
    from ray_pcasgd.report.page import load_groups, write_report

    folders = [folder for run in runs for folder in _run_folders(run)]
    title = " against ".join(run.resolve().name for run in runs)
    # Before anything is drawn, which takes seconds.
    for option, folder in (("--output", page.parent), ("--figures", figures)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"{option} {folder}: cannot be written ({error})") from None
    if page.is_dir():
        raise SettingsError(f"--output {page}: is a folder; allowed is a file")
    try:
        write_report(folders, page, title, target=target)
        groups = [] if figures is None else load_groups(folders)
    except (OSError, ValueError) as error:
        raise SettingsError(one_line(error)) from None
    if figures is not None:
        paths = write_figures(groups, metric_of(groups), figures)
        _say(f"figures: {len(paths) // 2} in {figures}, as PDF and SVG", console)


cli_evaluation.register(app)
cli_calibration.register(app)
cli_control.register(app)
cli_watch.register(app)
cli_settings.register(app)


def _run_folders(path: Path) -> list[Path]:
    if (path / "config.yaml").exists():
        return [path]
    inside = sorted(folder.parent for folder in path.glob("*/config.yaml"))
    if not inside:
        raise SettingsError(f"{path}: is no run folder; allowed are folders with a config.yaml")
    return inside


def _shortcuts(engine: str | None, name: str | None) -> list[str]:
    given = {"engine.name": engine, "name": name}
    # A JSON text is a text in YAML, too: the name 20240501 is no number.
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]


def _console() -> Console:
    return Console(file=cast(IO[str], LenientOutput(sys.stdout)))


def _finish(result: "Result", console: Console, compared: Sequence[Path] = ()) -> None:
    from ray_pcasgd.cli.terminal import print_final_table
    from ray_pcasgd.engines.failures import described
    from ray_pcasgd.report.page import write_report
    from ray_pcasgd.runs.storage.names import REPORT
    from ray_pcasgd.runs.storage.remote import at_hand

    try:
        with at_hand(result.path, REPORT) as path:
            if path.is_dir():
                runs = [*compared, path]
                write_report(runs, path / REPORT, " against ".join(run.resolve().name for run in runs))
            print_final_table(result, console, path)
    except Exception as error:  # the run itself is safe
        print(f"error: the report could not be drawn: {described(error)}", file=sys.stderr)
        print_final_table(result, console)
    if result.error:
        _complain(result.error)
        raise typer.Exit(RUN_ERROR)


def _say(line: str, console: Console) -> None:
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _complain(line: object) -> None:
    print(f"error: {printable(line)}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and end the process with its exit status: 2 for settings, 1 for a failed run."""
    with contextlib.suppress(OSError):  # a directory that was removed
        look_also_in(Path.cwd())
    sys.exit(run_command(lambda: app(arguments, standalone_mode=True)))


def run_command(command: Callable[[], Any]) -> int:
    """Run a command; print its errors as lines, and return the exit status."""
    try:
        command()
    except SettingsError as error:
        for line in str(error).splitlines():
            _complain(line)
        return SETTINGS_ERROR
    except RunError as error:
        _complain(one_line(error))
        return RUN_ERROR
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from ray_pcasgd.runs.callbacks import blamed

        if (told := blamed(error)) is None:
            raise
        _complain(told)
        return RUN_ERROR
    return 0
