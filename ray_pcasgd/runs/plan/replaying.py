"""Settings of live runs as those of the planned runs that replay a recording."""

import logging

from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.plan.defaults import with_defaults

logger = logging.getLogger("ray_pcasgd")


def as_replay(config: Config) -> Config:
    """Return settings with a recorded schedule as those of a planned run, and say so where they were a live run's.

    What live runs do by default, such as keeping predictions bounded, the replay does too: it is to tell what a live
    run would come to.

    Raises:
        SettingsError: a setting has no meaning, or no meaning together with another one.

    """
    engine = config.engine
    if config.schedule is None or not isinstance(engine, RaySettings) or engine.mode != "live":
        return config
    logger.warning(
        "engine.mode = 'live': a recorded schedule is replayed by planned runs, with the defaults of live ones"
    )
    live = with_defaults(config.model_copy(update={"schedule": None}), runs_here=False)
    planned = engine.model_copy(update={"mode": "planned", "join_later": ()})
    changes = {"engine": planned, "algorithm": live.algorithm, "reliability": live.reliability}
    return config.model_copy(update=changes)
