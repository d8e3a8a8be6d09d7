"""What fits the optimizer or the wire format where nobody gave it: step size, compensation, gossip's step size.

It is the agents that get it, and not the run's settings: a replay under another optimizer has what fits that one.
"""

from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.sparse_wire import Sparse, TopK
from ray_pcasgd.agents.torch_optimizer import TorchOptimizer
from ray_pcasgd.base.curves import Constant
from ray_pcasgd.config import Config
from ray_pcasgd.rules.choco import ChocoSGD
from ray_pcasgd.rules.compensation import ConstantCompensation
from ray_pcasgd.rules.prediction import PredictingRule


def fitting_optimizer(config: Config) -> Config:
    """Return the settings as the agents have them.

    Raises:
        ValueError: a step size is needed, and neither the settings nor the optimizer has one.

    """
    return with_step_size(with_compensation(with_gossip(config)))


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


def with_gossip(config: Config) -> Config:
    """Return the settings with the step size of CHOCO-SGD's gossip that fits the wire format, where none is given.

    Without gradients, on rings and complete graphs of 4, 8 and 16 agents, disagreement shrinks with these at shares of
    0.01 to 0.9; twice as much drives agents of a complete graph apart.
    """
    rule, form = config.algorithm, config.wire.weights
    if not isinstance(rule, ChocoSGD) or rule.gamma is not None:
        return config
    gamma = 1.0
    if isinstance(form, Sparse):
        gamma = min(1.0, 1.5 * form.share) if isinstance(form, TopK) else form.share / 2
    return config.model_copy(update={"algorithm": rule.model_copy(update={"gamma": gamma})})


def with_compensation(config: Config) -> Config:
    """Return the settings with the compensation that fits the optimizer, where a rule predicts and none is given.

    Its Taylor term takes a direction for a gradient, which that of SGD alone is.
    """
    rule = config.algorithm
    if not isinstance(rule, PredictingRule) or not rule.predicts or rule.compensation is not None:
        return config
    fitting = ConstantCompensation() if isinstance(config.optimizer, SGD) else ConstantCompensation(lambda_0=0.0)
    return config.model_copy(update={"algorithm": rule.model_copy(update={"compensation": fitting})})
