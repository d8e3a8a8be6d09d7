import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests run without Ray: starting it here is an error."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unit tests do not start Ray")

    monkeypatch.setattr(ray, "init", refuse)
