"""The command line's part for running runs: ``ray-pcasgd status | delay | leave | join``.

What takes long to import is imported where it is used.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.text import NOTHING, duration
from ray_pcasgd.cli.output import print_table
from ray_pcasgd.engines.ray import discovery

if TYPE_CHECKING:
    from ray_pcasgd.engines.live.commands import Command

REFUSED = 1
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a running run.")]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster's address; if left out, the one of your own run there, or RAY_ADDRESS."),
]
AgentNumber = Annotated[int, typer.Option("--agent", help="Number of the agent.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (status, delay, leave, join):
        app.command()(command)


def status(
    run: RunArgument,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the state of a running run: steps, losses, staleness of every link, which agents are lost."""
    with _reaching(run, address) as found:
        from ray_pcasgd.engines.ray.control import status_of

        view = status_of(run, found)
    if as_json:
        print(json.dumps(view))
        return
    print_status(view, Console())


def print_status(view: dict[str, Any], console: Console) -> None:
    """Print a run's status."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not view:
        say("the run is starting")
        return
    say(f"{view['run']}: {view['algorithm']}, {view['mode']}, {view['num_steps']} steps each")
    print_table([_row(one, view["has_rounds"]) for one in view["agents"]], console)
    for event in view["events"]:
        if event["kind"] not in ("agent_started", "scheduler_started"):
            say(f"{event['kind'].replace('_', ' ')}: {event['detail']}")


def _row(one: dict[str, Any], has_rounds: bool) -> dict[str, str]:
    heard = "" if one["heard_at"] is None else f"{duration(max(0.0, time.time() - one['heard_at']))} ago"
    # In what --json has printed, the keys are texts.
    staleness = sorted((int(neighbor), value) for neighbor, value in one["staleness"].items())
    counted = f"staleness of each neighbor{' in rounds' if has_rounds else ''}"
    return {
        "agent": str(one["agent"]),
        "health": one["health"],
        "step": str(one["step"]),
        "loss": NOTHING if one["loss"] is None else f"{one['loss']:.4g}",
        "s a step": f"{one['step_seconds']:.3g}",
        "heard of": heard,
        counted: "  ".join(f"{neighbor}: {value}" for neighbor, value in staleness),
    }


def delay(
    run: RunArgument,
    link: Annotated[
        list[str], typer.Option("--link", metavar="A-B", help="Two agents, whose messages to each other are late.")
    ] = [],
    between: Annotated[
        str | None, typer.Option(metavar="clusters|all", help="Instead of --link: the links between clusters, or all.")
    ] = None,
    law: Annotated[
        str | None, typer.Option(metavar="LAW", help="How late: 'pareto(2, 0.1s)', 'constant(10)' steps, 200ms.")
    ] = None,
    isolate: Annotated[list[int], typer.Option("--isolate", metavar="AGENT", help="Cut all links of an agent.")] = [],
    heal: Annotated[bool, typer.Option("--heal", help="Undo all changes of links.")] = False,
    address: Address = None,
) -> None:
    """Change the links of a live run: delays, isolated agents, and back again."""
    commands = delay_commands(link, law, isolate, heal, between)
    for command in commands:
        _send(run, command, address)


def delay_commands(
    link: Sequence[str], law: str | None, isolate: Sequence[int], heal: bool, between: str | None = None
) -> "list[Command]":
    """Return the commands that the options stand for.

    Raises:
        SettingsError: they do not make a command.

    """
    from ray_pcasgd.engines.live.commands import Heal, Isolate

    if bool(link or between) != (law is not None):
        raise SettingsError("--link or --between, and --law: allowed is both of them, or neither")
    commands: list[Command] = [Heal()] if heal else []
    if law is not None:
        commands.append(_set_delay(link, between, law))
    if isolate:
        commands.append(Isolate(agents=tuple(isolate)))
    if not commands:
        raise SettingsError("delay: allowed are --link or --between with --law, --isolate and --heal")
    return commands


class _Names(NamedTuple):
    """What the fields of a delay are called where it was given."""

    link: str
    between: str
    law: str


_OPTIONS = _Names("--link", "--between", "--law")
_LABELS = _Names("Agents", "Which links", "Delay")
"""On the page."""


def _set_delay(link: Sequence[str], between: str | None, law: str, names: _Names = _OPTIONS) -> "Command":
    from pydantic import ValidationError

    from ray_pcasgd.engines.live.commands import SetDelay
    from ray_pcasgd.runs.settings.errors import explain
    from ray_pcasgd.schedule.delays import LinkDelay
    from ray_pcasgd.schedule.law_text import parse_delay

    if between is not None and (link or between not in ("clusters", "all")):
        alone = ", without --link" if names is _OPTIONS else ""
        raise SettingsError(f"{names.between} {between!r}: allowed are clusters and all{alone}")
    where = {"links": [_pair(text, names.link) for text in link]} if link else {"between": between}
    try:
        written = parse_delay(law)
    except ValueError as error:
        raise SettingsError(f"{names.law} {law!r}: {str(error).removeprefix(f'law = {law!r}: ')}") from None
    tree = {**written._asdict(), **where}
    try:
        return SetDelay(entry=LinkDelay.model_validate(tree))
    except ValidationError as error:
        # Of a bare number there is no more to be said than what it may be.
        lines = (re.sub(r"^delay\.(value = [^:]+: )?", "", line) for line in explain(error, tree, LinkDelay))
        raise SettingsError("\n".join(f"{names.law} {law!r}: {line}" for line in lines)) from None


def page_command(tree: Any) -> "Command":
    """Return the command that a page has sent.

    Raises:
        SettingsError: it is none.

    """
    from ray_pcasgd.engines.live.commands import Heal, Join

    match tree:
        case {"do": "delay", "links": str(links), "law": str(law)}:
            return _set_delay(links.split() or [links], None, law, _LABELS)
        case {"do": "delay", "between": str(between), "law": str(law)}:
            return _set_delay([], between, law, _LABELS)
        case {"do": "heal"}:
            return Heal()
        case {"do": "join", "agent": int(agent)} if not isinstance(agent, bool):
            return Join(agent=agent)
    raise SettingsError("allowed are delay, heal and join")


def _pair(text: str, name: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]{1,9})-([0-9]{1,9})", text)
    if not found:
        raise SettingsError(f"{name} {text!r}: allowed are two agents, such as 0-3")
    if int(found[1]) == int(found[2]):
        raise SettingsError(f"{name} {text!r}: allowed are two different agents")
    return int(found[1]), int(found[2])


def leave(run: RunArgument, agent: AgentNumber, address: Address = None) -> None:
    """Let an agent leave a live run."""
    from ray_pcasgd.engines.live.commands import Leave

    _send(run, Leave(agent=agent), address)


def join(run: RunArgument, agent: AgentNumber, address: Address = None) -> None:
    """Let an agent join a live run: one that has left, was lost, or is listed in engine.join_later."""
    from ray_pcasgd.engines.live.commands import Join

    _send(run, Join(agent=agent), address)


@contextmanager
def _reaching(run: str, address: str | None) -> Iterator[discovery.Address]:
    """Find a run's cluster, before Ray is imported, which takes seconds.

    Raises:
        SettingsError: the run is not running, or cannot be reached.

    """
    try:
        yield discovery.address_of(run, address)
    except discovery.NotRunningError as error:
        raise SettingsError(str(error)) from None


def _send(run: str, command: "Command", address: str | None) -> None:
    """Send a command to a running run, and print its answer."""
    with _reaching(run, address) as found:
        from ray_pcasgd.engines.ray.control import send_command

        answer = send_command(run, command, found)
    if answer.startswith("refused"):
        print(f"error: {answer}", file=sys.stderr)
        raise typer.Exit(REFUSED)
    print(answer)
