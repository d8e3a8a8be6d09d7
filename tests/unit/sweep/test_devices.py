"""Sweeps on GPUs that the process that plans them does not have."""

from typing import Any

import pytest
import torch

from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.sweep.devices import check_device, require_gpus
from ray_pcasgd.tune import trainable

ON_GPU: dict[str, Any] = {
    "engine": {"name": "local", "device": "cuda"},
    "num_agents": 3,
    "task": {"model": {"hidden": [8]}},
}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, and uses it")


@WITHOUT_GPU
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_run_for_another_machine_s_gpu_is_planned_without_one(precision: str) -> None:
    config = load_config(ON_GPU, changes={"precision": precision})
    with pytest.raises(
        SettingsError, match=r"^engine.device = 'cuda': allowed on this machine is 'cpu'; it has no GPU$"
    ):
        make_plan(config)
    plan = make_plan(config, runs_here=False)
    # What is planned is the run on the GPU, though it was tried out here.
    assert {spec.recipe.device for spec in plan.specs} == {"cuda"}
    assert trainable(config)
    with pytest.raises(SettingsError, match=r"^task.model.hidden"):
        make_plan(load_config(config, changes={"task": {"model": {"hidden": [-1]}}}), runs_here=False)


@pytest.mark.parametrize(
    ("device", "shared"), [("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda", "cuda:0")]
)
def test_a_trial_has_the_one_gpu_that_it_gets(device: str, shared: str) -> None:
    settings = [load_config({"engine": {"name": "local", "device": one}}) for one in (device, shared)]
    check_device(*settings)


def test_other_gpus_and_gpus_for_some_of_the_trials_are_refused() -> None:
    cpu, gpu, second = (load_config({"engine": {"name": "local", "device": one}}) for one in ("cpu", "cuda", "cuda:1"))
    with pytest.raises(
        SettingsError, match=r"^engine.device = 'cuda:1': allowed in a sweep are 'cpu' and 'cuda'; a trial"
    ):
        check_device(second, second)
    with pytest.raises(SettingsError, match=r"^engine.device = 'cuda': allowed is 'cpu', as in the settings that all"):
        check_device(gpu, cpu)


def test_a_cluster_without_gpus_is_refused_where_trials_ask_for_one() -> None:
    gpu, cpu, ray = (load_config({"engine": one}) for one in (ON_GPU["engine"], "local", "ray"))
    with pytest.raises(
        SettingsError, match=r"^engine.device = 'cuda': allowed on this cluster is 'cpu'; none of its nodes"
    ):
        require_gpus(gpu, {"CPU": 8.0})
    require_gpus(gpu, {"CPU": 8.0, "GPU": 1.0})
    require_gpus(cpu, {"CPU": 8.0})
    require_gpus(ray, {"CPU": 8.0})
