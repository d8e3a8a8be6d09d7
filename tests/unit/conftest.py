import tempfile

import pytest


@pytest.fixture(autouse=True)
def own_temporary_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run rescues stays where tests leave their files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests run without Ray: starting it here is an error."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unit tests do not start Ray")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and commands whose pictures a test does not look at leave them out: they take a second a page."""
    from ray_pcasgd.report import page

    monkeypatch.setattr(page, "illustrations", lambda groups, metric: "")
