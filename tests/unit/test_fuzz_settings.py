"""Random settings of every family, plausible and nasty: a result, or an error of settings that names one.

``python -m tests.fuzz`` runs as many as are wanted, in processes of their own.
"""

from collections import Counter
from pathlib import Path

import pytest

from ray_pcasgd.runs.settings.reference import kind_of, settings_classes
from tests.fuzz.executing import examine, make_resources
from tests.fuzz.generating import NASTY, Resources, make_case
from tests.fuzz.mutating import examine_file, make_file

CASES = range(200)
FILES = range(300)


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    return make_resources(tmp_path_factory.mktemp("fuzz"))


def test_every_case_ends_in_a_result_or_in_an_error_that_helps(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resources.folder)
    outcomes = {number: examine(make_case(1, number, resources), resources, number % 25 == 0) for number in CASES}
    assert {number: outcome for number, outcome in outcomes.items() if outcome.is_finding} == {}
    kinds = Counter(outcome.kind for outcome in outcomes.values())
    assert kinds["ran"] > 10
    assert kinds["refused"] > 20


def test_every_damaged_file_is_settings_or_an_error_that_helps(resources: Resources) -> None:
    outcomes = {number: examine_file(make_file(1, number), resources) for number in FILES}
    assert {number: outcome for number, outcome in outcomes.items() if outcome.is_finding} == {}


def test_a_case_is_the_same_each_time(resources: Resources) -> None:
    for number in range(50):
        assert repr(make_case(2, number, resources)) == repr(make_case(2, number, resources))
        assert make_file(2, number) == make_file(2, number)


@pytest.mark.slow
def test_cases_have_every_kind_of_thing_and_every_nasty_value() -> None:
    """In a few thousand of them: nothing of the tree is left out."""
    resources = Resources(Path("nowhere"), (Path("nowhere/schedule.parquet"),))
    written = " ".join(repr(make_case(2, number, resources)) for number in range(5000))
    kinds = {str(kind_of(owner)) for owner in settings_classes()} - {"None"}
    assert {kind for kind in kinds if f"'{kind}'" not in written} == set()
    names = {name for owner in settings_classes() for name in owner.model_fields}
    assert {name for name in names if f"'{name}'" not in written} == set()
    assert [value for value in map(repr, NASTY) if value not in written] == []
