"""What a run's actors are called."""

from ray_pcasgd.engines.ray.naming import Identity


def test_the_newest_scheduler_is_the_one_with_the_largest_number() -> None:
    identity = Identity("/runs/first-2")
    assert identity.run == "first-2"
    names = [
        "first-2 scheduler",
        "first-2 scheduler (2)",
        "first-2 scheduler (10)",
        "first-2 agent 11",
        "x scheduler (99)",
    ]
    assert identity.newest_scheduler(names) == "first-2 scheduler (10)"
    assert identity.newest_scheduler(names[:1]) == "first-2 scheduler"
    assert identity.newest_scheduler(names[3:]) is None


def test_the_name_is_the_last_part_of_a_folder_or_a_remote_location() -> None:
    assert Identity("s3://bucket/runs/first/").run == "first"
