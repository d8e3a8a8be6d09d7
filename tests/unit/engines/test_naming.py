"""What a run's actors are called."""

from ray_pcasgd.engines.ray.naming import Identity


def test_the_name_is_the_last_part_of_a_folder_or_a_remote_location() -> None:
    assert Identity("s3://bucket/runs/first/").run == "first"
