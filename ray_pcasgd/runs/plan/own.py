"""Classes that are not the package's own, tried out with a run's settings before anything starts."""

from ray_pcasgd.base.doors import is_others
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
        if not is_others(algorithm):
            raise
        raise ValueError(f"algorithm: its check fails ({described(error)})") from error


def try_out_own(config: Config) -> None:
    """Raise ``ValueError`` where a rule that is not the package's own does not keep what every rule promises."""
    rule = config.algorithm
    if not (isinstance(rule, Rule) and is_others(rule)):
        return
    setting = f"algorithm.name = {rule.name!r}"
    if isinstance(config.engine, LocalSettings) and config.engine.batched == "always" and not rule.stackable:
        raise ValueError(f"engine.batched = 'always': {setting} cannot run stacked; allowed are auto and never")
    try:
        check_rule(rule)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
