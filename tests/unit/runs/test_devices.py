"""Which GPU a run may ask for, and where the averaged model is tested."""

import pytest
import torch

from ray_pcasgd import SettingsError
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.consensus import evaluation_device
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.plan.memory import check_memory
from ray_pcasgd.runs.settings.loading import load_config


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "device", "allowed"),
    [
        (0, "cuda", "allowed on this machine is 'cpu'; it has no GPU"),
        (1, "cuda:1", "allowed on this machine are 'cpu', 'cuda' and 'cuda:0', its only GPU"),
        (4, "cuda:4", "allowed on this machine are 'cpu', 'cuda' and 'cuda:0' to 'cuda:3', its GPUs"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    gpus: int, device: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(SettingsError) as error:
        with_defaults(load_config({"engine": {"name": "local", "device": device}}))
    assert str(error.value) == f"engine.device = {device!r}: {allowed}"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:3"])
def test_those_that_are_there_are_not(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    assert with_defaults(load_config({"engine": {"name": "local", "device": device}})).engine.device == device


def test_the_averaged_model_is_tested_where_the_agents_are_if_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_cpu = RaySettings(gpus_per_agent=0.5), RaySettings()
    machine(monkeypatch, 1)
    assert evaluation_device(on_gpu) == evaluation_device(LocalSettings(device="cuda")) == "cuda"
    assert evaluation_device(on_cpu) == evaluation_device(LocalSettings()) == "cpu"
    assert evaluation_device(LocalSettings(device="cuda:1")) == "cpu"
    machine(monkeypatch, 0)
    assert evaluation_device(on_gpu) == evaluation_device(LocalSettings(device="cuda")) == "cpu"


def test_a_model_that_a_gpu_cannot_hold_is_refused_as_such() -> None:
    config = with_defaults(load_config({"engine": "local"}))
    with pytest.raises(ValueError, match=r"in all .* GB; this GPU has 80 GB; allowed is num_agents up to"):
        check_memory(config, 10**9, 80 * 10**9, "this GPU")
