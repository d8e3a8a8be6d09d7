"""What a run's callbacks can do to it: raise in any hook, and change what they are given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import Callback, Config, SettingsError, Trainer, load_config
from ray_pcasgd.cli.app import run_command
from ray_pcasgd.runs.trainer import fit_together

HOOKS = ("on_start", "on_step", "on_evaluation", "on_checkpoint", "on_pause", "on_end")


class Raising(Callback):
    def __init__(self, hook: str) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError(f"in {hook}")

        setattr(self, hook, fail)


class Careless(Callback):
    def on_evaluation(self, rows: Sequence[Any]) -> None:
        for row in rows:
            row.clear()

    def on_checkpoint(self, checkpoint: Any, metrics: Any) -> None:
        metrics.clear()


def config(path: Path, **changes: Any) -> Config:
    kept = {"every_evaluations": 1, "state_seconds": 0}
    sizes = {"num_agents": 2, "num_steps": 4, "evaluate_every": 2, "engine": "local", "checkpoint": kept}
    return load_config(sizes | {"storage_path": str(path)}, changes=changes)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_command_line_says_in_one_line_which_callback_raised(
    hook: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        Trainer(config(tmp_path), callbacks=[Raising(hook)]).fit()

    assert run_command(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: raised in the callback {__name__}:Raising, {hook}: ZeroDivisionError: in {hook}")


def test_what_no_callback_raised_is_not_taken_for_it() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command)


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_evaluation", "on_end"])
def test_what_a_callback_raises_is_raised_again_by_runs_that_run_together(hook: str, tmp_path: Path) -> None:
    variants = [config(tmp_path, step_size=eta, name=f"eta-{eta}") for eta in (0.1, 0.2)]
    with pytest.raises(ZeroDivisionError, match=f"in {hook}"):
        fit_together(variants, [[Raising(hook)], []])
    assert all((tmp_path / str(one.name) / "result.json").is_file() for one in variants)


def test_what_a_callback_does_to_what_it_is_given_changes_nothing_of_the_run(tmp_path: Path) -> None:
    careless, careful = (Trainer(config(tmp_path), callbacks=some).fit() for some in ([Careless()], []))
    assert careless.error is None
    assert careless.metrics["test_loss"] == careful.metrics["test_loss"]
    assert [metrics for _, metrics in careless.best_checkpoints] == [metrics for _, metrics in careful.best_checkpoints]


class Misspelled(Callback):
    on_the_gpu = True

    def on_evaluate(self, rows: Sequence[Any]) -> None: ...

    def best(self) -> None: ...

    @property
    def on_what(self) -> str:
        raise AssertionError("no property is looked at")


class Foreign(Callback):
    @classmethod
    def on_train_epoch_finished(cls) -> None: ...


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Misspelled, "on_evaluate is no hook; did you mean on_evaluation?"),
        (Foreign, "on_train_epoch_finished is no hook; did you mean on_"),
    ],
)
def test_a_method_that_looks_like_a_hook_and_is_none_is_refused(
    kind: type[Callback], told: str, tmp_path: Path
) -> None:
    settings = config(tmp_path / "runs")
    path = f"{kind.__module__}:{kind.__qualname__}"
    starts: list[tuple[str, Any]] = [
        (f"callbacks.0 = <{path}>", lambda: Trainer(settings, callbacks=[kind()])),
        (f"callbacks.0 = {path!r}", lambda: Trainer(settings, callbacks=[path]).fit()),
    ]
    for named, start in starts:
        with pytest.raises(SettingsError) as refused:
            start()
        assert str(refused.value).startswith(f"{named}: {told}")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_methods_and_attributes_with_other_names_are_ones_own(tmp_path: Path) -> None:
    class Own(Callback):
        on_gpu = False
        called = 0

        def once(self) -> None:
            self.called += 1

        def on_step(self, report: Any) -> None:
            self.once()

    own = Own()
    assert Trainer(config(tmp_path), callbacks=[own]).fit().error is None
    assert own.called == 8
