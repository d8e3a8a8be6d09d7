"""What may be sent in which form."""

from ray_pcasgd.config import Config
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.compensation import AdaptiveCompensation
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.rules.server import ServerRule


def check_wire(config: Config) -> None:
    """Raise ``ValueError`` where formats are given for messages that have none, or parts of what is sent whole."""
    algorithm, wire = config.algorithm, config.wire
    sends_differences = isinstance(algorithm, Rule) and algorithm.sends_differences
    if wire.weights.is_sparse and not sends_differences:
        raise ValueError(
            f"wire.weights.name = {wire.weights.name!r}: allowed are float32, bf16, int8 and int4, since a part of the "
            "weights is no version; directions may be sparse, and with choco-sgd what weights differ by"
        )
    if wire.fragments > 1:
        _check_fragments(config)
    if wire.is_plain or not isinstance(algorithm, ADPSGD):
        return
    part = "directions" if wire.weights.is_plain else "weights"
    name = (wire.directions if wire.weights.is_plain else wire.weights).name
    raise ValueError(
        f"wire.{part}.name = {name!r}: allowed with algorithm.name = {algorithm.name!r} is 'float32'; others are for "
        "all other algorithms"
    )


def _check_fragments(config: Config) -> None:
    algorithm, wire = config.algorithm, config.wire
    allowed = f"allowed with wire.fragments = {wire.fragments} is"
    if not (isinstance(algorithm, Rule | ServerRule) and algorithm.takes_fragments):
        raise ValueError(
            f"wire.fragments = {wire.fragments}: allowed with algorithm.name = {algorithm.name!r} is 1; others are for "
            "d-psgd, d-asgd, c-asgd, p-asgd, pc-asgd and pc-asgd-pv, and with a server for diloco, fedasync and "
            "elastic-averaging"
        )
    if isinstance(algorithm, ServerRule):
        if algorithm.by_tensor is not None:
            raise ValueError(
                f"wire.fragments = {wire.fragments}: allowed with algorithm.{algorithm.by_tensor} is 1, since it looks "
                "at whole tensors"
            )
        return
    if isinstance(algorithm, PredictingRule):
        if algorithm.prediction != "direction":
            raise ValueError(f"algorithm.prediction = {algorithm.prediction!r}: {allowed} direction")
        if isinstance(algorithm.compensation, AdaptiveCompensation):
            raise ValueError(f"algorithm.compensation.name = 'adaptive': {allowed} constant or relative")
    if wire.directions.is_sparse:
        raise ValueError(f"wire.directions.name = {wire.directions.name!r}: {allowed} float32, bf16, int8 or int4")


def check_parts(fragments: int, num_parameters: int, whose: str = "the model's parameters") -> None:
    """Raise ``ValueError`` where weights have fewer numbers than they are to have parts."""
    if fragments > num_parameters:
        raise ValueError(f"wire.fragments = {fragments}: allowed are 1 to {num_parameters}, {whose}")
