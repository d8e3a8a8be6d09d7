"""A model that a run has left, tested again: on the run's own test data, or on any other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ray_pcasgd.base.errors import RunError, SettingsError
from ray_pcasgd.base.foreign_files import read_mapping
from ray_pcasgd.base.imports import unreadable
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import Config
from ray_pcasgd.engines.failures import described
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.runs.consensus import AveragedModel, evaluation_device
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import load_config, merge, parse_assignment, read_yaml
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.checkpoints import Checkpoint, kept_in
from ray_pcasgd.runs.storage.fetched import fetched_run
from ray_pcasgd.runs.storage.names import CONFIG, RESULT
from ray_pcasgd.runs.storage.remote import is_remote, reason_of

LAST = "last"
"""The model of a run's last complete evaluation, among those that it has kept."""


class Evaluated(NamedTuple):
    """What an evaluation of a run's model found."""

    checkpoint: Checkpoint
    """The model."""
    step: int | None
    """The agents' steps behind it; ``None`` where the run has not said how far it came."""
    metrics: dict[str, float]
    """Test loss and metrics, named as in ``Result.metrics``: ``test_loss``, ``test_accuracy``."""
    remarks: tuple[str, ...]
    """What a reader of these should know, in a line each."""


def evaluate(
    run: str | Path,
    checkpoint: int | str = LAST,
    *,
    task: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    trust: bool = False,
) -> Evaluated:
    """Test a model of a run again; nothing is written.

    On the run's own data the figures are those that the run has measured, to the last digit, where library versions
    and device are those of the run.

    Args:
        run: the run's folder, or its location on remote storage.
        checkpoint: the step of a model that was kept (setting ``checkpoint``), or of the last one; or ``last``.
        task: parts of the task's settings in place of those of the run: other data, metrics, or what was given as
            objects of a script, which no file can hold.
        assignments: the same in the words of the command line, as ``task.data.test_share=0.5``.
        trust: whether the run's settings may name code, though you have not run them before.

    Raises:
        SettingsError: there is no such run or model, the settings cannot be used, or the model does not fit them.
        RunError: the user's own model, loss, metric or data raises.

    """
    location = str(run) if is_remote(str(run)) else str(Path(run).expanduser())
    changes = changes_of(task)
    _require_task(assignments)
    with fetched_run(location, (RESULT,)) as folder:
        model, step = _chosen(location, _last_step(folder), checkpoint)
        tree = read_yaml(folder / CONFIG)
        written = merge(tree, changes)
        for assignment in assignments:
            written = merge(written, parse_assignment(assignment))
        if objects := unreadable(written.get("task")):
            raise SettingsError(
                f"{location}: task.{objects[0]}: given as an object of a script, which no file can hold; evaluate it "
                "from Python, with Result.evaluate() or evaluate(run, task={...}) and the same objects"
            )
        config = load_run_settings(folder, assignments, changes, trust)
    return tested(config, model, step, location)


def changes_of(task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return changes of a run's settings that are parts of its task.

    Raises:
        SettingsError: they are no mapping.

    """
    if task is not None and not isinstance(task, Mapping):
        raise SettingsError(f"task = {yaml_value(task)}: allowed is a mapping of settings, such as {{'data': ...}}")
    return {} if task is None else {"task": dict(task)}


def evaluate_again(
    location: str, config: Config, checkpoint: int | str, last: int | None, task: Mapping[str, Any] | None
) -> Evaluated:
    """Do what ``evaluate`` does, of a run whose settings and objects are at hand."""
    model, step = _chosen(location, last, checkpoint)
    return tested(load_config(config, changes=changes_of(task)), model, step, location)


def tested(config: Config, model: Checkpoint, step: int | None, location: str) -> Evaluated:
    """Return what a model's test under some settings finds.

    Raises:
        SettingsError: the model cannot be read, or does not fit the settings.
        RunError: the user's own code raises.

    """
    try:
        state = model.state_dict()
    except Exception as error:  # whatever the file holds
        raise SettingsError(f"{model.path}: its model cannot be read ({one_line(error, 300)})") from error
    with _threads_of(config):
        try:
            data = config.task.load()
            how = (config.seed, evaluation_device(config.engine), config.mixed_buffers, config.precision)
            averaged = AveragedModel(config.task, data, *how)
        except ValueError as error:
            raise SettingsError(one_line(error)) from None
        except Exception as error:
            raise SettingsError(f"{location}: its data or model cannot be made ({described(error)})") from error
        try:
            averaged.take_state(state)
        except ValueError as error:
            told = f"{model.path}: its model does not fit the settings of the task ({error})"
            raise SettingsError(
                f"{told}; for other data, task.data.num_classes may say how many outputs it has"
            ) from None
        try:
            found = averaged.examine()
        except Exception as error:  # whatever the user's own model, loss or metric raises
            noted = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            raise RunError(f"{location}: {noted}fails on the test samples ({described(error)})") from error
    metrics = {f"test_{name}": float(value) for name, value in found.values.items()}
    return Evaluated(model, step, metrics, (*data.remarks, *found.remarks))


def _require_task(assignments: Sequence[str]) -> None:
    for assignment in assignments:
        if set(parse_assignment(assignment)) != {"task"}:
            key = assignment.partition("=")[0]
            raise SettingsError(f"--set {one_line(key, 200)}: allowed are settings of the task, such as task.data")


@contextmanager
def _threads_of(config: Config) -> Iterator[None]:
    """Compute on as many threads as the run's own evaluations: another number rounds sums otherwise."""
    before = torch.get_num_threads()
    if isinstance(config.engine, LocalSettings):
        torch.set_num_threads(config.engine.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _last_step(folder: Path) -> int | None:
    """Return the step of a run's last model, if the run says so."""
    try:
        final = read_mapping(folder / RESULT).get("final")
    except (OSError, ValueError):
        return None
    step = final.get("step") if isinstance(final, Mapping) else None
    return step if isinstance(step, int) else None


def _chosen(location: str, last: int | None, checkpoint: int | str) -> tuple[Checkpoint, int | None]:
    """Return a run's model, and its step.

    Raises:
        SettingsError: it is not there.

    """
    if str(checkpoint) == LAST or str(checkpoint) == str(last):
        return Checkpoint(location), last
    try:
        kept = kept_in(location)
    except OSError as error:
        raise SettingsError(f"{location}: cannot be read ({reason_of(error)})") from None
    for step, model in kept.items():
        if str(checkpoint) == str(step):
            return model, step
    steps = ", ".join(map(str, sorted({*kept, *([] if last is None else [last])}))) or "none"
    raise SettingsError(
        f"checkpoint = {checkpoint}: {location} has no model of that step; allowed are {LAST} and steps, here {steps}"
    )
