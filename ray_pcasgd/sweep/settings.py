"""Settings of a sweep: what varies, how points are chosen, how much may be spent."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.runs.settings.errors import explain
from ray_pcasgd.runs.settings.keys import refuse_keys_in
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, read_yaml
from ray_pcasgd.runs.settings.reference import takes_whole_numbers_alone
from ray_pcasgd.runs.storage.remote import is_remote

Point = dict[str, Any]
"""Values by the names of settings, for example ``{"algorithm.theta": 0.3}``."""


_CHANGED_ON_THE_WAY = ("step_size", "algorithm.theta")
"""Settings that are curves over steps, so that what was changed when can be written down."""


class Range(Settings):
    """Numbers between two limits."""

    low: float
    """The smallest value."""
    high: float
    """The largest value."""
    log: bool = False
    """Whether values are drawn evenly in their logarithm."""
    integer: bool | None = None
    """Whether values are whole numbers; not given: whether the setting takes no others."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}: allowed is low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low:g}: allowed with log are values above 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low = {self.low:g}, high = {self.high:g}: allowed with integer are whole numbers")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """Both limits, as whole numbers where values are."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


class GridSearch(Settings):
    """Every combination of the listed values."""

    name: Literal["grid"] = "grid"


class RandomSearch(Settings):
    """Points drawn at random."""

    name: Literal["random"] = "random"
    num_points: int = Field(20, ge=1)
    """How many points are drawn."""


class OptunaSearch(Settings):
    """Points that Optuna proposes (tree-structured Parzen estimators), from the results of those before."""

    name: Literal["optuna"] = "optuna"
    num_points: int = Field(20, ge=1)
    """How many points are tried."""


class RunAll(Settings):
    """Every trial runs to its end."""

    name: Literal["fifo"] = "fifo"


class ASHA(Settings):
    """Asynchronous successive halving: the worse trials are stopped early (Li et al. 2020)."""

    name: Literal["asha"] = "asha"
    grace_steps: int | None = Field(None, ge=1)
    """Steps that every trial takes; not given: those to its first evaluation."""
    reduction: float = Field(3.0, gt=1)
    """Fraction of the trials that goes on at each rung: one in this many."""


class PopulationBased(Settings):
    """Population-based training (Jaderberg et al. 2017): the worst trials go on from the best ones' states.

    They do so with other numbers: a trial's step size or theta changes during the trial, and its own settings say when.
    The space may vary ``step_size`` and ``algorithm.theta`` alone. What is drawn by ``search`` is the population. Which
    trial goes on from which is drawn anew in each sweep; ``best.yaml`` has the best trial's settings, and trains to the
    same bits.
    """

    name: Literal["population"] = "population"
    interval_steps: int | None = Field(None, ge=1)
    """Steps from one exchange to the next, a multiple of evaluate_every; not given: evaluate_every."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the trials that is replaced, and from which replacements come."""
    resample: float = Field(0.25, ge=0, le=1)
    """Probability that a number is drawn anew instead of being changed by a fifth."""


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="name")]
TrialScheduler = Annotated[RunAll | ASHA | PopulationBased, Field(discriminator="name")]


class SweepConfig(Settings):
    """One sweep."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the sweep and of its folder, up to 100 characters; not given: sweep and a number."""
    storage_path: str | None = None
    """Folder of the sweep's folder, in which the trials' run folders lie: one that all nodes of the cluster see, or a
    location that pyarrow knows (s3://, gs://); not given: the storage_path of ``config``."""
    config: dict[str, Any] | str = Field(default_factory=dict)
    """What all trials share: settings of a run, or the path of a YAML file of them. Runs have names of their own."""
    space: dict[str, tuple[Any, ...] | Range] = Field(min_length=1)
    """What varies, by the name of the setting: a list of values, or a range of numbers."""
    seeds: int = Field(1, ge=1)
    """Seeds of each point, from the settings' own upwards; points are judged by their mean."""
    search: Annotated[Search, BeforeValidator(from_name)] = GridSearch()
    """How points are chosen."""
    scheduler: Annotated[TrialScheduler, BeforeValidator(from_name)] = RunAll()
    """Which trials go on."""
    batched: Literal["auto", "always", "never"] = "auto"
    """Whether points of a grid that differ only in numbers (step size, theta, lambda) run together in one process, on
    the local engine: ``auto`` where that is faster, for the package's own networks without convolutions. Seeds are
    apart, since each has a schedule of its own."""
    metric: str | None = None
    """The averaged model's metric; not given: test_accuracy where there is one, else test_loss."""
    mode: Literal["max", "min"] | None = None
    """Whether more of the metric is better; not given: max for accuracies, min for errors and losses; needed for
    your own metric, unless that says so itself (``higher_is_better``)."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at the same time; not given: as many as there is room for."""
    samples: int | None = Field(None, ge=1)
    """Training samples of all trials together, about, after which the sweep stops its trials; not given: no limit."""
    dashboard: bool = False
    """Whether a cluster that the sweep starts for itself has Ray's dashboard, which shows the trials as actors; for
    trials on the ray engine, ``engine.dashboard`` says so."""
    tables: bool = False
    """Whether Tune shows its own tables while it runs, instead of a line every few seconds."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Seconds after which a trial on the local engine writes its state, at the next evaluation; it goes on from there
    when an interrupted sweep is resumed."""
    seconds: float | None = Field(None, gt=0)
    """Seconds after which the sweep stops its trials; not given: no limit."""

    def stored(self, base: Config) -> str:
        """Return the folder of the sweep's folder."""
        return base.storage_path if self.storage_path is None else self.storage_path

    def base(self, schedule: str | None = None) -> Config:
        """Return the settings that all trials share.

        Raises:
            SettingsError: they are no settings of a run, or say where the sweep or its runs are otherwise than it does.

        """
        given = self.config if isinstance(self.config, dict) else {}
        if given.get("name") is not None:
            raise SettingsError(f"config.name = {given['name']!r}: runs of a sweep are named after its points")
        place = given.get("storage_path")
        # Settings that were written out in full have the default, which nobody asked for.
        unasked = (None, Config.model_fields["storage_path"].default, self.storage_path)
        if self.storage_path is not None and place not in unasked:
            raise SettingsError(
                f"config.storage_path = {place!r}: allowed is null, or storage_path = {self.storage_path!r}"
            )
        if schedule is not None and not is_remote(schedule):
            schedule = str(Path(schedule).resolve())
        return load_config(self.config, changes={} if schedule is None else {"schedule": schedule})

    def in_whole_numbers(self, base: Config) -> "SweepConfig":
        """Return the sweep with whole numbers in the ranges of settings that take no others.

        Raises:
            SettingsError: a limit of such a range is not a whole number, or the range asks for other values.

        """
        space: dict[str, Any] = dict(self.space)
        for key, values in self.space.items():
            if not isinstance(values, Range) or values.integer or not takes_whole_numbers_alone(key, base):
                continue
            if values.integer is False:
                raise SettingsError(f"space.{key}.integer = false: the setting takes whole numbers; allowed is true")
            for name, limit in (("low", values.low), ("high", values.high)):
                if not limit.is_integer():
                    raise SettingsError(f"space.{key}.{name} = {limit:g}: allowed are whole numbers, as for {key}")
            space[key] = values.model_copy(update={"integer": True})
        return self.model_copy(update={"space": space})

    def check_with(self, base: Config) -> None:
        """Raise ``SettingsError`` where the scheduler cannot be used with a run's settings."""
        if not isinstance(self.scheduler, RunAll) and (base.num_epochs is not None or "num_epochs" in self.space):
            raise SettingsError(
                f"scheduler.name = {self.scheduler.name!r}: allowed together with num_epochs is 'fifo'; write num_steps"
            )
        if not isinstance(self.scheduler, PopulationBased):
            return
        steps, every = self.scheduler.interval_steps, base.evaluate_every
        if steps is not None and steps % every:
            raise SettingsError(
                f"scheduler.interval_steps = {steps}: allowed are multiples of evaluate_every = {every}"
            )
        if not (isinstance(base.engine, LocalSettings) and isinstance(base.algorithm, Rule)):
            raise SettingsError(
                "scheduler.name = 'population': allowed with rules between peers on the local engine, whose runs can "
                "be left and taken up"
            )

    def exchange_steps(self, base: Config) -> int | None:
        """Return after how many steps every trial's state is written; ``None`` where time decides."""
        if not isinstance(self.scheduler, PopulationBased):
            return None
        return self.scheduler.interval_steps or base.evaluate_every

    def points(self) -> Iterator[Point]:
        """Yield every combination of the listed values; for a range, its two limits stand for it."""
        listed = {key: values if isinstance(values, tuple) else values.limits for key, values in self.space.items()}
        for combination in itertools.product(*listed.values()):
            yield dict(zip(listed, combination, strict=True))

    @property
    def num_trials(self) -> int:
        """Runs that there will be, one for each point and seed."""
        drawn = None if isinstance(self.search, GridSearch) else self.search.num_points
        return self.seeds * (sum(1 for _ in self.points()) if drawn is None else drawn)

    def judged_by(self, base: Config) -> tuple[str, Literal["max", "min"]]:
        """Return the metric and its mode."""
        known = ["test_loss", *(f"test_{metric.key}" for metric in base.task.measured)]
        metric = self.metric or ("test_accuracy" if "test_accuracy" in known else "test_loss")
        if metric not in known and not base.task.has_own_figures:
            raise SettingsError(f"metric = {metric!r}: allowed are {', '.join(known)}")
        if self.mode is not None:
            return metric, self.mode
        measures = {f"test_{measure.key}": measure for measure in base.task.measured}
        rises = measures[metric].higher_is_better if metric in measures else False if metric in known else None
        if rises is None:
            raise SettingsError(f"mode: needed for metric = {metric!r}, which does not say; allowed are max and min")
        return metric, "max" if rises else "min"


def load_sweep(
    source: str | Path | Mapping[str, Any] | SweepConfig, changes: Mapping[str, Any] | None = None
) -> SweepConfig:
    """Return checked settings of a sweep; every combination of listed values makes settings that can be run.

    Raises:
        SettingsError: something is unknown, or not allowed.

    """
    tree = source.model_dump() if isinstance(source, SweepConfig) else source
    if isinstance(tree, str | Path):
        tree = read_yaml(Path(tree), pipes=True)
    tree = {**tree, **(changes or {})}
    refuse_keys_in(tree)
    try:
        sweep = SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, tree, SweepConfig))) from None
    for key, values in sweep.space.items():
        if isinstance(values, Range) and sweep.search.name == "grid":
            raise SettingsError(f"space.{key}: a range; allowed with search.name = 'grid' are lists of values")
        if isinstance(values, tuple) and not values:
            raise SettingsError(f"space.{key} = []: allowed is one value or more")
        if key == "seed":
            raise SettingsError("space.seed: allowed is the setting seeds, over which results are averaged")
    if isinstance(sweep.scheduler, PopulationBased):
        _check_population(sweep)
    return sweep


def _check_population(sweep: SweepConfig) -> None:
    if other := sorted(set(sweep.space) - set(_CHANGED_ON_THE_WAY)):
        raise SettingsError(
            f"space.{other[0]}: allowed with scheduler.name = 'population' are {' and '.join(_CHANGED_ON_THE_WAY)}"
        )
    if sweep.seeds > 1:
        raise SettingsError(f"seeds = {sweep.seeds}: allowed with scheduler.name = 'population' is 1")
    if isinstance(sweep.search, OptunaSearch):
        raise SettingsError("search.name = 'optuna': allowed with scheduler.name = 'population' are grid and random")


def nested(point: Point) -> dict[str, Any]:
    """Return a point as nested changes of settings.

    >>> nested({"seed": 1, "algorithm.theta": 0.3})
    {'seed': 1, 'algorithm': {'theta': 0.3}}
    """
    changes: dict[str, Any] = {}
    # Names first: a name of another kind drops what was set before it.
    for key in sorted(point, key=lambda key: (key.count("."), not key.endswith("name"))):
        place = changes
        *parts, last = key.split(".")
        for part in parts:
            inner = place.get(part, {})
            place[part] = {"name": inner} if isinstance(inner, str) else dict(inner)
            place = place[part]
        place[last] = point[key]
    return changes
