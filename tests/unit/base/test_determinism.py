"""Which kernels torch is asked for on GPUs, and that nothing is asked on CPUs."""

import os
from collections.abc import Iterator

import pytest
import torch

from ray_pcasgd.base.determinism import configure, deterministic, require_determinism


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = flags


def asked() -> tuple[bool, bool, bool]:
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), is_warning, torch.backends.cudnn.deterministic


def test_on_cpus_nothing_is_asked_for() -> None:
    before = asked()
    configure("cpu")
    with deterministic("cpu"):
        assert asked() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_on_gpus_deterministic_kernels_are_asked_for_as_long_as_it_lasts() -> None:
    before = asked()
    with deterministic("cuda"):
        assert asked() == (True, True, True)
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
        with deterministic("cuda:1"):  # an evaluation within a step that allows nothing else
            assert asked() == (True, True, True)
        assert asked() == (True, False, True)
    assert asked() == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    configure("cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_step_that_can_be_deterministic_has_to_be(caplog: pytest.LogCaptureFixture) -> None:
    require_determinism(lambda: torch.ones(3).cumsum(0))
    assert asked()[:2] == (True, False)
    assert not caplog.records


def test_a_step_that_cannot_be_is_named_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def puts() -> None:
        torch.zeros(3).put_(torch.tensor([1]), torch.tensor([2.0]))  # the same on CPUs and GPUs

    require_determinism(puts)
    assert asked()[:2] == (True, True)
    (record,) = caplog.records
    assert "this run may not repeat its bits: put_" in record.getMessage()


def test_an_error_of_the_step_itself_is_raised() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        require_determinism(lambda: torch.ones(2) + torch.ones(3))
