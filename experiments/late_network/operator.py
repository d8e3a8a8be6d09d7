"""The laboratory's operator: measures the network, starts Ray on both hosts, and lets the runs run there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.cluster.cycle import ROOT

HOSTS = ("10.77.0.1", "10.77.0.2")
_NODE = "--num-cpus=2 --object-store-memory=500000000 --disable-usage-stats"


def on(host: str, command: str, check: bool = True) -> str:
    """Run a command on a host, and return what it prints."""
    key = Path(os.environ["L"]) / "id"
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    tools = Path(sys.executable).parent
    line = f"cd {ROOT}; export PATH={tools}:$PATH RAY_AUTH_MODE=disabled; {command}"
    result = subprocess.run(
        ["ssh", "-i", str(key), *options, f"root@{host}", line], capture_output=True, text=True, check=False
    )
    if check and result.returncode:
        raise RuntimeError(f"{host}: {command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return result.stdout


def round_trip_ms() -> dict[str, float]:
    """Return the round trips between the hosts, as ping measures them."""
    said = on(HOSTS[0], f"ping -q -c 20 -i 0.1 {HOSTS[1]}")
    found = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/([\d.]+) ms", said)
    assert found, said
    return dict(zip(("min", "mean", "max", "deviation"), map(float, found.groups()), strict=True))


def main() -> None:
    """Run everything; the last line on standard output is JSON."""
    chosen, data, storage, runs_of = sys.argv[1:5]
    measured: dict[str, Any] = {"round_trip_ms": round_trip_ms()}
    on(HOSTS[0], f"ray start --head --node-ip-address={HOSTS[0]} --port=6379 --include-dashboard=false {_NODE}")
    on(HOSTS[1], f"ray start --address={HOSTS[0]}:6379 --node-ip-address={HOSTS[1]} {_NODE}")
    runs = f"RAY_ADDRESS={HOSTS[0]}:6379 python -m {runs_of} '{chosen}' {data} {storage}"
    measured["runs"] = [json.loads(line) for line in on(HOSTS[0], runs).splitlines() if line.startswith("{")]
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
