"""Classes that are not the package's own, tried out with a run's settings before anything starts."""

from ray_pcasgd.base.doors import is_others
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.config import Config
from ray_pcasgd.engines.failures import described
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.server import ServerRule


def check_algorithm(algorithm: Rule | ServerRule, num_agents: int) -> None:
    """Raise ``ValueError`` where an algorithm's settings do not fit the run, or its own code raises."""
    try:
        algorithm.check(num_agents)
    except ValueError as error:
        raise ValueError(f"algorithm.{error}") from None
    except Exception as error:
        parts = (getattr(algorithm, name) for name in type(algorithm).model_fields)
        if not any(is_others(part) for part in (algorithm, *parts) if isinstance(part, Settings)):
            raise
        raise ValueError(f"algorithm: its check fails ({described(error)})") from error


def try_out_own(config: Config) -> None:
    """Raise ``ValueError`` where a rule that is not the package's own does not keep what every rule promises."""
    rule = config.algorithm
    if not (isinstance(rule, Rule | ServerRule) and is_others(rule)):
        return
    setting = f"algorithm.name = {rule.name!r}"
    if (
        isinstance(config.engine, LocalSettings)
        and config.engine.batched == "always"
        and not getattr(rule, "stackable", True)
    ):
        raise ValueError(f"engine.batched = 'always': {setting} cannot run stacked; allowed are auto and never")
    try:
        check_rule(rule, config.num_agents)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
