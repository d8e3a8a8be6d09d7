"""The registry of the update rules between peers."""

from typing import Annotated

from pydantic import Field

from ray_pcasgd.rules.bridge import Bridge
from ray_pcasgd.rules.choco import ChocoSGD
from ray_pcasgd.rules.dcs3gd import DCS3GD
from ray_pcasgd.rules.dpsgd import DASGD, DPSGD
from ray_pcasgd.rules.gossip import GossipPull, GossipPush
from ray_pcasgd.rules.importance import DASGDImportance
from ray_pcasgd.rules.outer_peers import GASLoC, NoLoCo, SlowMo
from ray_pcasgd.rules.pcasgd import CASGD, PASGD, PCASGD
from ray_pcasgd.rules.practical import PCASGDPV
from ray_pcasgd.rules.push import SGP, OverlapSGP

Algorithm = Annotated[
    DPSGD
    | DASGD
    | CASGD
    | PASGD
    | PCASGD
    | PCASGDPV
    | DCS3GD
    | DASGDImportance
    | GossipPull
    | GossipPush
    | SGP
    | OverlapSGP
    | SlowMo
    | NoLoCo
    | GASLoC
    | ChocoSGD
    | Bridge,
    Field(discriminator="name"),
]
"""Any rule's settings, told apart by ``name``."""
