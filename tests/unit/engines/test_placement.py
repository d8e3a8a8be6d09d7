"""What agents and servers reserve, and what is said of nodes that are being started."""

from collections import Counter

import pytest

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.engines.ray.autoscaling import of_first_autoscaler, said
from ray_pcasgd.engines.ray.placement import bundles_of
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config


def test_agents_share_the_cpus_and_have_at_most_one_each() -> None:
    assert bundles_of(RaySettings(), 3, 0, {"CPU": 8.0}) == [{"CPU": 1.0}] * 3
    assert bundles_of(RaySettings(), 3, 1, {"CPU": 2.0}) == [{"CPU": 0.5}] * 4
    assert bundles_of(RaySettings(cpus_per_agent=0), 1, 0, {}) == [{"CPU": 0.01}]


def test_servers_may_do_without_gpus_and_without_machines_that_have_them() -> None:
    settings = RaySettings(cpus_per_agent=1, gpus_per_agent=0.5, gpus_per_server=0, accelerator_type="A100")
    worker, server = bundles_of(settings, 1, 1, {})
    assert worker == {"CPU": 1.0, "GPU": 0.5, "accelerator_type:A100": 0.001}
    assert server == {"CPU": 1.0}


def test_servers_without_gpus_compute_on_cpus_while_workers_have_them() -> None:
    engine = {"name": "ray", "gpus_per_agent": 1, "gpus_per_server": 0}
    *workers, server = make_plan(
        load_config(None, changes={"algorithm": "server", "links": [], "engine": engine})
    ).specs
    assert {worker.recipe.device for worker in workers} == {"cuda"}
    assert server.recipe.device == "cpu"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"gpus_per_agent": 1.5}, "engine.gpus_per_agent = 1.5"),
        ({"gpus_per_agent": 2}, "engine.gpus_per_agent = 2"),
        ({"accelerator_type": "A100"}, "accelerator_type = 'A100': allowed with gpus_per_agent = 0"),
        ({"label_selector": {"zone": "in(a"}}, "label_selector = {'zone': 'in(a'}"),
        ({"gpus_per_server": 0}, "engine.gpus_per_server = 0: allowed with algorithm.name = 'pc-asgd'"),
    ],
)
def test_what_cannot_be_reserved_is_refused_in_a_line(engine: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(None, changes={"engine": {"name": "ray", **engine}}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_nodes_that_are_being_started_are_counted_by_type() -> None:
    report = {
        "active_nodes": {"head": 1},
        "pending_launches": {"gpu_worker": 1},
        "pending_nodes": [["10.0.0.2", "gpu_worker", "setting-up"], ["10.0.0.3", "cpu_worker", "waiting-for-ssh"]],
    }
    numbers = of_first_autoscaler({"autoscaler_report": report})
    assert said(numbers) == "; being started: 1 cpu_worker, 2 gpu_worker"
    assert said(of_first_autoscaler({})) == said(Counter({"gpu_worker": 0})) == ""
