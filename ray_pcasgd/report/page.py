"""One self-contained page about one run, or about several side by side."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.base.text import NOTHING, SPREAD, deviation_over, duration, format_value, printable, spoken
from ray_pcasgd.report.data import RunData, load_run
from ray_pcasgd.report.delays import delay_notes
from ray_pcasgd.report.drawing import own_style
from ray_pcasgd.report.groups import Group, final_table, group_runs, metric_of
from ray_pcasgd.report.illustrations import illustrations
from ray_pcasgd.report.labels import differing_keys, flattened, labels_of
from ray_pcasgd.report.pictures import time_name
from ray_pcasgd.report.targets import check_target, target_table

_MOST_EVENTS = 30


def write_report(
    runs: Sequence[Path],
    output: Path,
    title: str,
    labels: Sequence[str] | None = None,
    target: float | None = None,
) -> Path:
    """Write the page about the given run folders, and return where it lies.

    Runs of one label count as one method over several seeds. Where no labels are given, runs that differ in the seed
    alone have one label. With a ``target`` of the metric, a table says when it was reached.

    Raises:
        ValueError: there is no run, a folder is no run folder, there are not as many labels as runs, or the metric
            cannot have that value.

    """
    with own_style():
        text = page(load_groups(runs, labels), title, target)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text)
    return output


def load_groups(runs: Sequence[Path], labels: Sequence[str] | None = None) -> list[Group]:
    """Return the runs of the given folders by label, as ``write_report`` takes them.

    Raises:
        ValueError: as ``write_report``.

    """
    if not runs:
        raise ValueError("runs = []: allowed is one run folder or more")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"labels = {list(labels)}: allowed is one for each of the {len(runs)} runs")
    loaded = [load_run(path) for path in runs]
    return group_runs(loaded, labels or labels_of([run.config for run in loaded]))


def page(groups: Sequence[Group], title: str, target: float | None = None) -> str:
    """Return the page as text.

    Raises:
        ValueError: as ``write_report``.

    """
    metric = metric_of(groups)
    sections = [
        ("Final figures", _final_figures(groups, metric)),
        *([] if target is None or metric is None else [_time_to_target(groups, metric, target)]),
        ("Pictures", illustrations(groups, metric)),
        ("Gradients", _told(groups, "gradients", lambda run: run.gradients)),
        ("Screening", _told(groups, "what was screened", lambda run: run.screening)),
        ("Schedule", _schedules(groups)),
        ("Settings", _settings(groups)),
        ("Events", _events(groups)),
    ]
    return render(title, _headline(groups, metric), sections)


def render(title: str, headline: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a page of sections, each a heading and its HTML; empty ones are left out."""
    template = Template(resources.files("ray_pcasgd.report").joinpath("page.html").read_text(encoding="utf-8"))
    drawn = [_section(heading, content) for heading, content in sections]
    return template.substitute(
        title=escape(printable(title)), headline=headline, sections="\n".join(filter(None, drawn))
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def _headline(groups: Sequence[Group], metric: str | None) -> str:
    parts = [f'<p class="soft">{escape(_what_ran(groups))}</p>']
    if len(groups) == 1 and metric is not None:
        values = groups[0].values(lambda run: run.final("averaged", metric))
        if values.size:
            figure = escape(format_value(metric, values.mean(), deviation_over(values)))
            parts.append(f"<p>The averaged model reached a {escape(spoken(metric))} of <strong>{figure}</strong>.</p>")
    for group in groups:
        parts += [_failure(run) for run in group.runs if run.error is not None]
    return "\n".join(parts)


def _failure(run: RunData) -> str:
    return f'<p class="error"><strong>{escape(run.path.name)} failed.</strong> {escape(run.error or "")}</p>'


def _what_ran(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    parts = [groups[0].label if len(groups) == 1 else f"{len(groups)} methods"]
    seeds = list(dict.fromkeys(str(run.seed) for run in runs if run.seed is not None))
    parts += [f"seed {seeds[0]}"] if len(seeds) == 1 else [f"seeds {', '.join(seeds)}"] if seeds else []
    settings = [flattened(run.config) for run in runs]
    # What is not the same in all runs stands among the settings that differ.
    common = {key: text for key, text in settings[0].items() if all(flat.get(key) == text for flat in settings)}
    phrases = {
        "task.data.name": "{}",
        "task.model.name": "{}",
        "num_agents": "{} agents",
        "num_steps": "{} steps each",
        "local_steps": "{} to a round",
        "topology.name": "{} graph",
        "engine.name": "engine {}",
        "engine.mode": "{}",
    }
    if any(run.num_workers is not None for run in runs):
        del phrases["topology.name"]
    if common.get("local_steps") == "1":
        del phrases["local_steps"]
    parts += [phrase.format(common[key]) for key, phrase in phrases.items() if key in common]
    seconds = sum(float(run.result.get("wall_seconds", 0.0)) for run in runs)
    return " · ".join([*parts, f"wall time {duration(seconds)}"])


def _final_figures(groups: Sequence[Group], metric: str | None) -> str:
    if metric is None:
        return '<p class="soft">No run came as far as its first evaluation.</p>'
    rows = final_table(groups, metric)
    for row, group in zip(rows, groups, strict=True):
        row["method"] = row["method"] if any(run.error is None for run in group.runs) else f"{row['method']} (failed)"
    note = "Failed runs do not count, unless a method has no others. " if any("failed" in row for row in rows) else ""
    note += "Each agent counts with its last evaluation; consensus distance: root mean square over agents. "
    note += "Mean staleness and predicting: over all reads and steps of the run."
    if any(run.has_rounds for group in groups for run in group.counted):
        note += " With local steps, staleness counts rounds."
    if (seeds := max(len(group.counted) for group in groups)) > 1:
        note += f" {SPREAD}, here {seeds}, and so are the bands of pictures that say so."
    return table_of(rows, "numbers") + f'\n<p class="soft">{note}</p>'


def _time_to_target(groups: Sequence[Group], metric: str, target: float) -> tuple[str, str]:
    check_target(metric, target)
    note = (
        "At the first evaluation that reaches it: steps, seconds and bytes of the averaged model; then the first and "
    )
    note += f"the last agent. Time is in {time_name(groups, 'seconds')}. Means over seeds stand where every seed does."
    table = table_of(target_table(groups, metric, target), "numbers")
    return f"Time to a {spoken(metric)} of {format_value(metric, target)}", f'{table}\n<p class="soft">{note}</p>'


def _told(groups: Sequence[Group], heading: str, lines: Callable[[RunData], Sequence[str]]) -> str:
    """Return what is said of each run in lines; empty where nothing is."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        return "\n".join(f"<p>{escape(line)}</p>" for line in lines(runs[0]))
    rows = [{"run": run.path.name, heading: "; ".join(told)} for run in runs if (told := lines(run))]
    return table_of(rows, "text") if rows else ""


def _settings(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        text = yaml.safe_dump(dict(runs[0].config), sort_keys=False, allow_unicode=True)
        return f"<details>\n<summary>config.yaml, complete</summary>\n<pre>{escape(text)}</pre>\n</details>"
    rows = differing_settings(groups)
    if not rows:
        return "<p>All runs have the same settings.</p>"
    return "<p>Only what differs is shown.</p>\n" + table_of(rows, "text")


def differing_settings(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return the settings that differ among all runs, names of runs aside: one row each, one column per label."""
    flat = {group.label: [flattened(run.config) for run in group.runs] for group in groups}
    keys = differing_keys([settings for members in flat.values() for settings in members])
    return [
        {"setting": key}
        | {
            label: ", ".join(dict.fromkeys(settings.get(key, NOTHING) for settings in members))
            for label, members in flat.items()
        }
        for key in keys
        if key not in ("name", "storage_path")
    ]


def _schedules(groups: Sequence[Group]) -> str:
    by_hash: dict[str | None, dict[str, list[str]]] = {}
    for group in groups:
        for run in group.runs:
            by_hash.setdefault(run.schedule_hash, {}).setdefault(group.label, []).append(str(run.seed))
    known = [f"<code>{escape(digest)}</code>" for digest in by_hash if digest is not None]
    num_runs = sum(len(group.runs) for group in groups)
    notes = "".join(f"\n<p>{escape(note)}</p>" for note in delay_notes(groups))
    if num_runs == 1:
        said = f"<p>Hash {known[0]}: equal for runs in which every step read the same versions.</p>" if known else ""
        return said + notes
    if len(known) == len(by_hash) == 1:
        said = f"<p>All {num_runs} runs share one schedule: every step read the same versions. Hash {known[0]}.</p>"
        return said + notes
    rows = [
        {"schedule hash": digest or NOTHING, "runs": ", ".join(_with_seeds(*member) for member in members.items())}
        for digest, members in by_hash.items()
    ]
    said = f"<p>The {num_runs} runs were under {len(known)} different schedules.</p>"
    return f"{said}{notes}\n{table_of(rows, 'text')}"


def _with_seeds(label: str, seeds: Sequence[str]) -> str:
    return f"{label} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)})"


def _events(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    each = max(1, _MOST_EVENTS // len(runs))
    events = [(run.path.name, event) for run in runs for event in run.events[-each:]][:_MOST_EVENTS]
    rows = [{"run": name} | {key: str(value) for key, value in event.items()} for name, event in events]
    more = sum(run.num_events for run in runs) - len(rows)
    said = f"\n<p>The newest ones{' of each run' if len(runs) > 1 else ''}; {more} more are in events.jsonl.</p>"
    return (table_of(rows, "text") + (said if more else "")) if rows else ""


def table_of(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Return rows as an HTML table of the class ``numbers`` or ``text``."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(str(row.get(heading, '')))}</td>" for heading in headings) + "</tr>"
        for row in rows
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="table {kind}">\n{table}\n</div>'
