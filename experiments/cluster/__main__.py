"""Runs the cycle in the network laboratory: ``python -m experiments.cluster [--hosts 2]`` (root, Debian's packages)."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from experiments.cluster.cycle import ROOT

LABORATORY = ROOT.parent / "shared" / "lab" / "netlab.sh"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1, help="machines, each with an SSH server")
    arguments = parser.parse_args()
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    command = [str(LABORATORY), str(arguments.hosts), sys.executable, "-m", "experiments.cluster.cycle"]
    sys.exit(subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode)
