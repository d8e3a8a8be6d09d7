"""Hosts: machines whose agents share one uplink and one downlink."""

from collections.abc import Sequence

from pydantic import model_validator

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.schedule.bandwidth import Bandwidth


class Host(Settings):
    """A machine whose agents share its uplink and its downlink, each for what leaves or enters the machine."""

    agents: tuple[int, ...]
    """Agents that run on the host, servers included; messages between them use neither uplink nor downlink."""
    up: Bandwidth | None = None
    """Bandwidth of the uplink, such as ``1 Gbit/s``; not given: unlimited."""
    down: Bandwidth | None = None
    """Bandwidth of the downlink; not given: unlimited."""

    @model_validator(mode="after")
    def _with_agents_and_a_limit(self) -> "Host":
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise ValueError(f"agents = {list(self.agents)}: allowed are one agent or more, each once")
        if self.up is None and self.down is None:
            raise ValueError("up: is required, or down; without both the host has no limit")
        return self


def check_hosts(hosts: Sequence[Host], num_agents: int) -> None:
    """Raise ``ValueError`` where an agent is named that the run does not have, or one that is on another host."""
    host_of: dict[int, int] = {}
    for place, host in enumerate(hosts):
        for agent in host.agents:
            if not 0 <= agent < num_agents:
                raise ValueError(f"hosts.{place}.agents: agent {agent}; allowed are 0 to {num_agents - 1}")
            if agent in host_of:
                raise ValueError(f"hosts.{place}.agents: agent {agent} is on host {host_of[agent]} too; allowed is one")
            host_of[agent] = place
