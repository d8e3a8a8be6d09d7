"""The laboratory's operator: starts Ray on both hosts, and lets the runs run on the first."""

import json
import sys

from experiments.late_network.operator import HOSTS, on


def main() -> None:
    """Run what is missing; each cell is a line of JSON on standard output."""
    chosen, storage = json.loads(sys.argv[1]), sys.argv[2]
    node = "--num-cpus=12 --object-store-memory=500000000 --disable-usage-stats"
    on(HOSTS[0], f"ray start --head --node-ip-address={HOSTS[0]} --port=6379 --include-dashboard=false {node}")
    on(HOSTS[1], f"ray start --address={HOSTS[0]}:6379 --node-ip-address={HOSTS[1]} {node}")
    for cell in chosen["cells"]:
        run = json.dumps({"cell": cell, "rounds": chosen["rounds"], "storage": storage})
        said = on(HOSTS[0], f"RAY_ADDRESS={HOSTS[0]}:6379 python -m experiments.host_copies.runs '{run}'")
        found = json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))
        if found["error"]:
            raise RuntimeError(found["error"])
        del found["error"]
        print(json.dumps({**cell, **found}), flush=True)


if __name__ == "__main__":
    main()
