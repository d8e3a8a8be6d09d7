"""The laboratory's operator: starts Ray on both hosts, and counts what leaves their interfaces during each run."""

import json
import sys
from typing import Any

from experiments.late_network.operator import HOSTS, on

_NODE = "--num-cpus=1 --object-store-memory=500000000 --disable-usage-stats"


def bytes_out() -> int:
    """Return the bytes that both hosts have sent since they are there."""
    return sum(int(on(host, "cat /sys/class/net/eth0/statistics/tx_bytes")) for host in HOSTS)


def counted(run: dict[str, Any]) -> dict[str, int]:
    """Return what the reports of a run say, and what the interfaces have counted meanwhile."""
    before = bytes_out()
    said = on(HOSTS[0], f"RAY_ADDRESS={HOSTS[0]}:6379 python -m experiments.wire_bytes.runs '{json.dumps(run)}'")
    found = json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))
    if found["error"]:
        raise RuntimeError(found["error"])
    return {"reported": found["bytes"], "counted": bytes_out() - before}


def main() -> None:
    """Run what is missing; each cell is a line of JSON on standard output."""
    chosen, storage = json.loads(sys.argv[1]), sys.argv[2]
    on(HOSTS[0], f"ray start --head --node-ip-address={HOSTS[0]} --port=6379 --include-dashboard=false {_NODE}")
    on(HOSTS[1], f"ray start --address={HOSTS[0]}:6379 --node-ip-address={HOSTS[1]} {_NODE}")
    for local_steps, wire in chosen["missing"]:
        run = {"local_steps": local_steps, "wire": wire, "hidden": chosen["hidden"], "storage": storage}
        short, long = (counted(run | {"rounds": rounds}) for rounds in chosen["rounds"])
        more = {name: long[name] - short[name] for name in short}
        print(json.dumps({"local_steps": local_steps, "wire": wire, **more}), flush=True)


if __name__ == "__main__":
    main()
