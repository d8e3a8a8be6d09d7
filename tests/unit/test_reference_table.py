"""The table of references: its smallest scale, and that it would show a difference."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.references.drawing import planned
from experiments.references.engine import computing_in, difference, versions_of
from experiments.references.page import page
from experiments.references.study import HERE, METHODS, TYPES, case, rows_of
from experiments.references.study import measure as measure_all
from experiments.running import SCALES, settings_of
from tests.speed import slow_unless

BY_NAME = {method.name: method for method in METHODS}
QUICK = (
    "`pc-asgd`, adaptive lambda",
    "`noloco`",
    "`ad-psgd`, `acid`",
    "`sgp-overlap`",
    "`bridge`, `krum`",
    "`bridge`, `centered-clipping`, nearest-neighbor mixing",
    "`server`, screen geometric-median, nearest-neighbor mixing",
    "attack `alie` on asgd",
    "correction kardam",
    "ringleader, with its schedule",
    "`svrg`",
    "`diloco`, `heloco`",
)


def test_every_line_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(METHODS)
    assert set(QUICK) <= BY_NAME.keys()
    assert [settings_of(HERE, scale)["cases"] for scale in SCALES] == [1, 5, 100]


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in BY_NAME])
def test_a_method_is_its_reference_but_for_rounding(name: str) -> None:
    method = BY_NAME[name]
    found = {kind: case(method, 0, kind) for kind in TYPES}
    assert not found["float64"] > 1e-11
    assert found["float32"] < 1e-4
    assert np.isnan(found["float64"]) != method.runs_in_double


def test_a_wrong_reference_shows() -> None:
    """One of another theta, held against the same run."""
    one, other = (BY_NAME[f"`pc-asgd`, {name}"] for name in ("constant lambda", "adaptive lambda"))
    with computing_in(TYPES["float64"]):
        settings = one.settings(1)
        own = planned(settings)
        assert difference(versions_of(own), other.reference(planned(settings))) > 1e-4


def test_the_page_says_what_was_measured() -> None:
    numbers = [place for place, method in enumerate(METHODS) if method.name in ("`d-psgd`", "`choco-sgd`, `top-k`")]
    results = pd.DataFrame([row for number in numbers for row in rows_of(number, 2)])
    text = page(results, "smoke")
    (line,) = [line for line in text.splitlines() if line.startswith("| `d-psgd` |")]
    assert line.split(" | ")[2] == "2"
    assert f"{results['float32'][results['method'] == '`d-psgd`'].max():.1e}" in line
    assert "| – |" in text
    loose = results.assign(float32=0.5)
    assert "In float32 beyond 1e-4: `d-psgd` 5.0e-01" in page(loose, "smoke")


@pytest.mark.slow  # `make studies` does the same
def test_the_smallest_scale_measures_every_method(tmp_path: Path) -> None:
    measure_all(settings_of(HERE, "smoke"), tmp_path, tmp_path, 1)
    assert pd.read_parquet(tmp_path / "results.parquet")["method"].nunique() == len(METHODS)
