"""Runs the cycle in the network laboratory: ``python -m experiments.cluster [--hosts 2]`` (root, Debian's packages).

The hosts are bare machines with a Python, which the set-up commands of cluster-local.yaml set up. They reach no package
index: pip and uv are configured there, as in a closed data center, to take what this machine has fetched before.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.cluster.cycle import ROOT

LABORATORY = ROOT.parent / "shared" / "lab" / "netlab.sh"


def fetch_packages(folder: Path) -> None:
    """Fetch uv for pip, and into uv's cache what set-up installs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(folder / "wheels"), "uv"], check=True)
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", str(folder / "fetched")], check=True)
    install = [*uv, "pip", "install", "--python", str(folder / "fetched"), "--constraint", "requirements.lock"]
    subprocess.run([*install, "--editable", "."], cwd=ROOT, check=True)


def configure_hosts(folder: Path, hosts: int) -> None:
    """Write what the home folders of the hosts, which the laboratory lays over this machine's, have on top of it."""
    for host in range(1, hosts + 1):
        home = folder / f"h{host}" / "up"
        (home / ".config" / "uv").mkdir(parents=True)
        (home / ".config" / "uv" / "uv.toml").write_text('offline = true\nlink-mode = "copy"\n')
        (home / ".config" / "pip").mkdir()
        settings = f"[global]\nno-index = true\nfind-links = {folder / 'wheels'}\n"
        (home / ".config" / "pip" / "pip.conf").write_text(settings)


def run_laboratory(hosts: int) -> int:
    """Run the cycle on so many hosts; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="cluster_") as name:
        folder = Path(name)
        fetch_packages(folder)
        configure_hosts(folder, hosts)
        tools = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", "LAB": name}
        command = [str(LABORATORY), str(hosts), sys.executable, "-m", "experiments.cluster.cycle"]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1, help="machines, each with an SSH server")
    sys.exit(run_laboratory(parser.parse_args().hosts))
