"""The command line's part about settings: ``settings``, ``new``, ``--version``, and what a wrong option means.

What takes long to import is imported where it is used.
"""

import difflib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.cli.starter import write_starter
from ray_pcasgd.runs.settings import hints

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Of what the command line's parser raises; typer names it in no public place."""

_COMMANDS = {
    "train": "run fit start launch execute go",
    "report": "plot show view html results eval test",
    "settings": "config options doc docs parameters params help",
    "new": "init create scaffold example",
    "sweep": "tune search hpo optimize",
    "status": "ps list info top",
    "leave": "stop kill remove",
    "train --resume RUN": "resume continue restart",
}
"""Other words for commands."""


class Commands(TyperGroup):
    """The commands; what cannot be understood is answered in one line that says what to write."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read what stands before the command."""
        self.given = list(args)
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except _UsageError as error:
            raise _explained(error, self.given, list(self.commands)) from None

    def invoke(self, ctx: Any) -> Any:
        """Read what stands behind the command, and run it."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            raise _explained(error, self.given, list(self.commands)) from None


def _explained(error: Exception, given: Sequence[str], commands: Sequence[str]) -> Exception:
    """Return an error of the parser as one of settings; help that is shown for want of arguments stays what it is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error
    message = str(getattr(error, "message", "")) or str(error)
    option = getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None
    if option is not None:
        return SettingsError(f"{option}: no such option; {_for_option(option, given)}")
    if message.startswith("No such command"):
        word = next((argument for argument in given if not argument.startswith("-")), "")
        return SettingsError(f"{word}: no such command; {_for_command(word, commands)}")
    context = getattr(error, "ctx", None)
    command = context.command.name if context is not None and context.parent is not None else ""
    described = " ".join(str(getattr(error, "format_message", lambda: message)()).split())
    help_of = " ".join(["ray-pcasgd", *([command] if command else []), "--help"])
    return SettingsError(f"{described.rstrip('.')}; {help_of} shows what is allowed")


def _for_option(option: str, given: Sequence[str]) -> str:
    """Return what to write in place of an option that is a setting, or is near to one."""
    word = option.lstrip("-")
    if word in ("config", "config-file", "config_file", "file", "yaml"):
        return "write the file's path by itself: ray-pcasgd train FILE.yaml"
    value = _value_of(option, given)
    paths = complete_setting("")
    key = ".".join(hints.plain(part) for part in word.split("."))
    hint = hints.for_word(key)
    same = [path for path in paths if path == key] or [path for path in paths if path.rsplit(".", 1)[-1] == key]
    # Deep within the settings, the same word may mean something else: --workers are agents, not task.loading.workers.
    if same and not (hint and same[0].count(".") > 1):
        return f"write --set {same[0]}={value}"
    if hint:
        path = hint.removeprefix("write ")
        return f"write --set {path}={value}" if path in paths else hint
    close = difflib.get_close_matches(key, paths, 1)
    return f"write --set {close[0]}={value}" if close else "settings are changed by --set KEY=VALUE"


def _value_of(option: str, given: Sequence[str]) -> str:
    """Return the value that stood behind an option."""
    for place, argument in enumerate(given):
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
        if argument == option and place + 1 < len(given) and not given[place + 1].startswith("-"):
            return given[place + 1]
    return "VALUE"


def _for_command(word: str, commands: Sequence[str]) -> str:
    meant = next((name for name, words in _COMMANDS.items() if hints.plain(word) in words.split()), "")
    meant = meant or next(iter(difflib.get_close_matches(word, commands, 1)), "")
    if not meant and word.endswith((".yaml", ".yml")):
        meant = f"train {word}"
    return f"did you mean ray-pcasgd {meant}?" if meant else f"allowed are {', '.join(commands)}"


def complete_setting(incomplete: str) -> list[str]:
    """Return the settings that a word may become."""
    from ray_pcasgd.runs.settings.reference import places

    return list(dict.fromkeys(place.path for place in places() if place.path.startswith(incomplete)))


def complete_assignment(incomplete: str) -> list[str]:
    """Return what ``--set`` may be followed by."""
    return [f"{path}=" for path in complete_setting(incomplete)]


def register(app: typer.Typer) -> None:
    """Add the commands, and ``--version``, to the command line."""
    app.callback()(versions)
    app.command()(settings)
    app.command()(new)


def _show_version(wanted: bool) -> None:
    if wanted:
        others = ", ".join(f"{name} {_version_of(name)}" for name in ("ray", "torch"))
        print(f"ray-pcasgd {_version_of('ray-pcasgd')} (Python {platform.python_version()}, {others})")
        raise typer.Exit


def versions(
    shown: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    """Train one model on many agents whose weights reach each other late."""


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def settings(
    path: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]", help="A setting, for example algorithm.theta.", autocompletion=complete_setting
        ),
    ] = "",
    as_page: Annotated[bool, typer.Option("--markdown", help="Print all settings, as one Markdown page.")] = False,
) -> None:
    """Show what a setting means, what it allows, its default, and the settings below it."""
    from ray_pcasgd.cli.settings_page import markdown
    from ray_pcasgd.cli.settings_text import told

    print(markdown() if as_page else told(path), end="" if as_page else "\n")


def new(name: Annotated[str, typer.Argument(help="Name of the two files, NAME.yaml and NAME_task.py.")]) -> None:
    """Write a commented starter into this folder: settings, and a module with data, model and metric of your own."""
    for path in write_starter(name, Path.cwd()):
        print(path.name)
    print(f"run it: ray-pcasgd train {name}.yaml")
