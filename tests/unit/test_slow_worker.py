"""What the study of a slow worker tests: the model that was there at a moment, and when it first was good enough."""

import pandas as pd
import pytest
import torch

from experiments.slow_worker.track import Noted, Step, Track, measured_at, seconds_to
from ray_pcasgd.runs.settings.loading import load_config


def test_the_newest_weights_of_all_models_are_averaged_and_tested() -> None:
    config = load_config(None, ["task.model={name: mlp, hidden: []}", "engine=local"])
    data = config.task.load()
    start = torch.cat([p.detach().flatten() for p in config.task.build_model(data, config.seed).parameters()])
    noted = [Noted(0, 1.0, 3 * start), Noted(1, 2.0, -3 * start), Noted(0, 3.0, 9 * start)]
    steps = [Step(0, 1.0, 1.0), Step(1, 2.0, 2.0), Step(0, 3.0, 1.0)]
    track = Track(0.0, steps, [(step.seconds, 0.0) for step in steps], noted, 0.0, cancelled=[0.7, 3.5])

    rows = measured_at(track, config, data, [0.5, 1.5, 2.5, 3.5])

    for row, factor in zip(rows, (1, 2, 0, 3), strict=True):
        model = config.task.build_model(data, config.seed)
        torch.nn.utils.vector_to_parameters(factor * start, model.parameters())
        assert row["loss"] == pytest.approx(config.task.examine(model, data).values["loss"], rel=1e-5)
    assert [row["updates"] for row in rows] == [0, 1, 2, 3]
    assert [row["cancelled"] for row in rows] == [0, 1, 1, 2]


def test_the_first_time_counts_and_every_seed_must_have_it() -> None:
    rows = pd.DataFrame(
        [(0, 0, 0.1), (0, 3, 0.6), (0, 6, 0.5), (0, 9, 0.7), (1, 0, 0.1), (1, 3, 0.2), (1, 6, 0.3), (1, 9, 0.6)],
        columns=["seed", "seconds", "accuracy"],
    )
    assert seconds_to(rows, 0.6) == 6
    assert seconds_to(rows[rows["seed"] == 0], 0.65) == 9
    assert seconds_to(rows, 0.65) != seconds_to(rows, 0.65)
