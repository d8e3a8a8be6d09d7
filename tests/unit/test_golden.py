"""Schedules and losses of small runs of every family are what they were."""

import json
from pathlib import Path

import pytest

from tests.devices import GPUS
from tests.golden.freezing import freeze, names

FROZEN = json.loads((Path(__file__).parents[1] / "golden" / "frozen.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("case", "batched"), list(names()), ids=str)
def test_a_run_gives_what_it_gave(case: str, batched: str, tmp_path: Path) -> None:
    frozen, now = FROZEN[f"{case} / {batched}"], freeze(case, batched, tmp_path)
    assert now.schedule == frozen["schedule"]
    assert now.test_loss == pytest.approx(frozen["test_loss"], rel=1e-3)


@pytest.mark.parametrize(("case", "batched"), list(names()) if GPUS else [], ids=str)
def test_a_gpu_repeats_its_bits(case: str, batched: str, tmp_path: Path) -> None:
    frozen = FROZEN[f"{case} / {batched}"]
    one, other = (freeze(case, batched, tmp_path / place, "cuda") for place in ("one", "other"))
    assert one == other
    assert one.schedule == frozen["schedule"]
    # Sums in another order than a CPU's, in a run in which a rule may choose by their sign.
    assert one.test_loss == pytest.approx(frozen["test_loss"], rel=1e-2)
