"""What fits the optimizer where nobody gave it: the step size, and the compensation of predictions.

It is the agents that get it, and not the run's settings: a replay under another optimizer has what fits that one.
"""

from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.torch_optimizer import TorchOptimizer
from ray_pcasgd.base.curves import Constant
from ray_pcasgd.config import Config
from ray_pcasgd.rules.compensation import ConstantCompensation
from ray_pcasgd.rules.prediction import PredictingRule


def fitting_optimizer(config: Config) -> Config:
    """Return the settings as the agents have them.

    Raises:
        ValueError: a step size is needed, and neither the settings nor the optimizer has one.

    """
    return with_step_size(with_compensation(config))


def with_step_size(config: Config) -> Config:
    """Return the settings with the optimizer's usual step size, where none is given.

    Raises:
        ValueError: the optimizer has none.

    """
    if config.step_size is not None:
        return config
    optimizer = config.optimizer
    usual = optimizer.own_step_size() if isinstance(optimizer, TorchOptimizer) else optimizer.usual_step_size
    return config.model_copy(update={"step_size": Constant(value=usual)})


def with_compensation(config: Config) -> Config:
    """Return the settings with the compensation that fits the optimizer, where a rule predicts and none is given.

    Its Taylor term takes a direction for a gradient, which that of SGD alone is.
    """
    rule = config.algorithm
    if not isinstance(rule, PredictingRule) or rule.compensation is not None:
        return config
    fitting = ConstantCompensation() if isinstance(config.optimizer, SGD) else ConstantCompensation(lambda_0=0.0)
    return config.model_copy(update={"algorithm": rule.model_copy(update={"compensation": fitting})})
