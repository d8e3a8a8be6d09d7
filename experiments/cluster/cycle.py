"""The whole cycle of a cluster of your own machines: up, submit, watch, change a delay, fetch the report, down.

Runs as the operator of the network laboratory, whose hosts are 10.77.0.1 and so on: see ``__main__``.
"""

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 1.0
JOB_SECONDS = 900.0
SETUP_SECONDS = 1800.0  # gigabytes of packages are copied to each host


class Cycle:
    """Runs commands, and notes how long each took."""

    def __init__(self, hosts: int, keys: Path, folder: Path) -> None:
        self.hosts = hosts
        self.keys = keys
        self.folder = folder
        self.file = folder / "cluster.yaml"
        self.done: list[dict[str, Any]] = []
        self.environment = os.environ | {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token"}

    def run(self, what: str, *command: str, seconds: float = JOB_SECONDS) -> str:
        """Run a command, and return what it prints."""
        began = time.monotonic()
        result = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
        self.note(what, began)
        if result.returncode:
            raise RuntimeError(f"{what}: {shlex.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result.stdout

    def on_head(self, what: str, command: str) -> str:
        """Run a command on the head, as a user does."""
        return self.run(what, "ray", "exec", str(self.file), command)

    def ask(self, command: str) -> str:
        """Return what a command on the head prints; empty where it fails."""
        command_line = ["ray", "exec", str(self.file), command]
        result = subprocess.run(
            command_line,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
            check=False,
        )
        return "" if result.returncode else result.stdout

    def note(self, what: str, began: float) -> None:
        """Note how long something took."""
        self.done.append({"what": what, "seconds": round(time.monotonic() - began, 1)})
        print(f"{self.done[-1]['seconds']:6.1f} s  {what}", flush=True)

    def until(self, what: str, holds: Callable[[], Any], seconds: float = JOB_SECONDS) -> Any:
        """Ask again and again until something holds, and return it."""
        began = time.monotonic()
        while not (found := holds()):
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"{what}: not within {seconds:g} s")
            time.sleep(POLL_SECONDS)
        self.note(what, began)
        return found

    def write_file(self) -> None:
        """Write cluster-local.yaml with this laboratory's machines, key and name; nothing else of it is changed."""
        cluster = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
        cluster["cluster_name"] = self.folder.name.replace(
            "_", "-"
        )  # Ray keeps a cluster's state under its name in /tmp
        cluster["provider"] |= {
            "head_ip": "10.77.0.1",
            "worker_ips": [f"10.77.0.{k}" for k in range(2, self.hosts + 1)],
        }
        cluster["max_workers"] = self.hosts - 1
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.keys)}
        self.file.write_text(yaml.safe_dump(cluster, sort_keys=False))

    def status(self, run: str) -> dict[str, Any]:
        """Return a run's status, as the operator on the head sees it; empty while it starts."""
        said = self.ask(f"ray-pcasgd status {run} --json --address auto")
        lines = [line for line in said.splitlines() if line.startswith("{")]
        status: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return status


def whole_cycle(hosts: int, keys: Path) -> list[dict[str, Any]]:
    """Go through the cycle, and return what was done and how long it took."""
    folder = Path(tempfile.mkdtemp(prefix="cycle_"))
    cycle, run = Cycle(hosts, keys, folder), folder / "runs" / "job"
    start_cluster(cycle)
    submit(cycle, run)
    change_delay(cycle, run)
    wait_for_job(cycle)
    report = folder / "report.html"
    cycle.run("fetch the report", "ray", "rsync-down", str(cycle.file), str(run / "report.html"), str(report))
    assert "<title>" in report.read_text()
    cycle.run("ray down", "ray", "down", "-y", str(cycle.file))
    cycle.done.append(result_of(run))
    print(json.dumps(cycle.done[-1]))
    return cycle.done


def start_cluster(cycle: Cycle) -> None:
    """Start the cluster, and wait until all of its hosts are alive with what set-up has made."""
    cycle.write_file()
    subprocess.run(["ray", "get-auth-token", "--generate"], check=True, capture_output=True, env=cycle.environment)
    said = cycle.run("ray up", "ray", "up", "-y", str(cycle.file), "--no-config-cache", seconds=SETUP_SECONDS)
    print(said[-2000:])
    alive = "import ray, sys; ray.init('auto', log_to_driver=False); print('alive', len(ray.nodes()), sys.prefix)"
    expected = f"alive {cycle.hosts} /root/ray_pcasgd_env"  # not this checkout's environment
    cycle.until(
        f"{cycle.hosts} node(s) alive", lambda: expected in cycle.ask(f'python -c "{alive}"'), seconds=SETUP_SECONDS
    )


def submit(cycle: Cycle, run: Path) -> None:
    """Submit a live run as a job, and wait until its agents train."""
    agents, job = 2 * cycle.hosts, run.parent.parent / "job"
    settings = {
        "name": run.name,
        "storage_path": str(run.parent),
        "num_agents": agents,
        "num_steps": 16000,  # some minutes: on a busy machine each command takes half a minute
        "evaluate_every": 4000,
        "links": [],
        "algorithm": "pc-asgd",
        "compute": {"stragglers": dict.fromkeys(range(agents), 0.02)},
        "engine": {"name": "ray", "mode": "live", "cpus_per_agent": 0.5, "placement_strategy": "SPREAD"},
    }
    job.mkdir()
    (job / "settings.yaml").write_text(yaml.safe_dump(settings))
    options = f"--no-wait --submission-id cycle --working-dir {job}"
    cycle.on_head("ray job submit", f"ray job submit {options} -- ray-pcasgd train settings.yaml")

    def train() -> bool:
        if "failed" in cycle.ask("ray job status cycle").lower():
            raise RuntimeError(f"the job has failed\n{cycle.ask('ray job logs cycle')[-3000:]}")
        return any(one["step"] > 50 for one in cycle.status(str(run)).get("agents", []))

    cycle.until("agents train", train)
    print(cycle.on_head("ray-pcasgd status", f"ray-pcasgd status {run} --address auto"))


def change_delay(cycle: Cycle, run: Path) -> None:
    """Delay a link of the run, wait until that shows in the staleness, and heal it."""
    change = f"ray-pcasgd delay {run} --link 0-1 --law 'constant(0.2s)' --address auto"
    cycle.on_head("ray-pcasgd delay", change)

    def staleness() -> bool:
        agents = cycle.status(str(run)).get("agents", [{"staleness": {}}] * 2)
        return max(agents[0]["staleness"].get("1", 0), agents[1]["staleness"].get("0", 0)) >= 4

    cycle.until("the delay shows in the staleness", staleness)
    cycle.on_head("ray-pcasgd delay --heal", f"ray-pcasgd delay {run} --heal --address auto")


def wait_for_job(cycle: Cycle) -> None:
    """Wait until the job has ended, and raise ``RuntimeError`` unless it has succeeded."""
    ended = ("succeeded", "failed", "stopped")
    said = cycle.until(
        "the job ends", lambda: next((s for s in ended if s in cycle.ask("ray job status cycle").lower()), None)
    )
    log = cycle.on_head("ray job logs", "ray job logs cycle")
    print(log[-2000:])
    if said != "succeeded":
        raise RuntimeError(f"the job has {said}")


def result_of(run: Path) -> dict[str, Any]:
    """Return the run's final figures, and on how many hosts its agents were."""
    result = json.loads((run / "result.json").read_text())
    places = {line for line in (run / "events.jsonl").read_text().splitlines() if "agent_started" in line}
    hosts = len({line.split(" on ")[1].split(",")[0] for line in places})
    return {"what": "result", "final": result["final"], "hosts": hosts}


if __name__ == "__main__":
    whole_cycle(int(os.environ["N"]), Path(os.environ["L"]) / "id")
